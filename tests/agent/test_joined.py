"""The agent's modules, joined into the one file that guests get."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from agent_rig import AGENT, agent

import volferry.agent as package

MODULES = sorted(p.stem for p in Path(package.__file__).parent.glob("*.py") if p.stem[0] != "_")


def test_every_module_is_in_it() -> None:
    text = AGENT.read_text()
    missing = [name for name in MODULES if f"# ---- {name} -" not in text]
    assert missing == []


def test_every_name_of_every_module_is_in_it() -> None:
    for name in MODULES:
        tree = ast.parse((Path(package.__file__).parent / f"{name}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert hasattr(agent, node.name), f"{name}.{node.name}"


def test_nothing_of_ours_is_imported_by_it() -> None:
    assert "import volferry" not in AGENT.read_text()
    assert "from volferry" not in AGENT.read_text()


def test_modules_that_import_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    first = package._Part(f"from {package.__name__}.wire import say\n")
    monkeypatch.setattr(package, "_Part", lambda text: first)
    with pytest.raises(ValueError, match="wire -> wire"):
        package._collect("wire", {}, ())


def test_a_name_in_two_modules_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(name: str, parts: dict[str, object], above: tuple[str, ...]) -> None:
        parts["one"] = package._Part("LIMIT = 1\n")
        parts["two"] = package._Part("def LIMIT():\n    pass\n")

    monkeypatch.setattr(package, "_collect", twice)
    with pytest.raises(ValueError, match="LIMIT is in one and in two"):
        package.program.__wrapped__()

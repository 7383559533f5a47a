"""The agent has to run on whatever Python a guest has, from 3.6 on, with nothing installed."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import AGENT

TEXT = AGENT.read_text()

# Names that came after 3.6.
LATER_NAMES = {
    "capture_output",
    "text",
    "monotonic_ns",
    "time_ns",
    "preadv",
    "pwritev",
    "nullcontext",
    "breakpoint",
    "fromisoformat",
    "dataclasses",
    "contextvars",
    "register_at_fork",
    "isascii",
    "copy_file_range",
    "memfd_create",
    "shlex_join",
    "cached_property",
    "dirs_exist_ok",
    "missing_ok",
    "prod",
    "TypedDict",
    "Literal",
    "Protocol",
    "Final",
    "removeprefix",
    "removesuffix",
    "pidfd_open",
    "randbytes",
    "is_relative_to",
    "waitstatus_to_exitcode",
    "cancel_futures",
    "splice",
    "pairwise",
    "anext",
    "aiter",
}


def test_its_syntax_is_that_of_python_3_6() -> None:
    ast.parse(TEXT, feature_version=(3, 6))


def test_no_annotation_is_evaluated_in_a_way_that_3_6_cannot() -> None:
    """``list[int]`` and ``int | None`` parse on 3.6, and fail when the function is defined."""
    annotations: list[ast.expr] = []
    for node in ast.walk(ast.parse(TEXT)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every = node.args.args + node.args.kwonlyargs + node.args.posonlyargs
            annotations += [a.annotation for a in every if a.annotation]
            annotations += [node.returns] if node.returns else []
        elif isinstance(node, ast.AnnAssign):
            annotations.append(node.annotation)
    wrong = [
        ast.unparse(part)
        for annotation in annotations
        for part in ast.walk(annotation)
        if isinstance(part, ast.BinOp)
        or (
            isinstance(part, ast.Subscript)
            and isinstance(part.value, ast.Name)
            and part.value.id in ("list", "dict", "set", "tuple", "type")
        )
    ]
    assert wrong == []


def unguarded(node: ast.AST) -> Iterator[ast.AST]:
    """All but what stands behind ``if hasattr(…)``."""
    yield node
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.If) and ast.unparse(part.test).startswith("hasattr("):
            for other in part.orelse:
                yield from unguarded(other)
        else:
            yield from unguarded(part)


def test_it_calls_nothing_that_came_after_3_6() -> None:
    used = set()
    for node in unguarded(ast.parse(TEXT)):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:
            used.add(node.arg)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            used.update(alias.name for alias in node.names)
            used.add(getattr(node, "module", "") or "")
    assert used & LATER_NAMES == set()


def test_it_imports_the_standard_library_alone() -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(TEXT)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names <= set(sys.stdlib_module_names)


def real_pythons() -> list[str]:
    """Other interpreters of this machine: pyenv's and the distribution's."""
    found = sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"))
    return [str(path) for path in [*found, Path("/usr/bin/python3")] if path.exists()]


@pytest.mark.parametrize("python", real_pythons())
def test_it_answers_under_every_python_that_is_here(python: str) -> None:
    done = subprocess.run(
        [python, "-W", "error", "-", "find", json.dumps({"refs": []})],
        input=AGENT.read_bytes(),
        capture_output=True,
        check=False,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    assert done.stderr == b""
    assert json.loads(done.stdout) == {"ok": True, "result": {"disks": []}}


def test_every_command_has_a_deadline() -> None:
    """Nothing waits for ever: no bare wait() or communicate() on a process."""
    bare = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(TEXT))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("communicate", "wait", "check_call", "check_output")
        and not any(keyword.arg == "timeout" for keyword in node.keywords)
    ]
    assert bare == ["child.wait()"], "only the supervisor waits for its worker without a limit"


def test_it_never_unmounts_lazily_and_never_runs_a_shell_of_its_own() -> None:
    assert '"-l"' not in TEXT.replace('["tune2fs", "-l"', "")
    assert "shell=True" not in TEXT
    assert TEXT.count('"/bin/sh"') == 1

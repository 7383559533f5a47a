"""The lock file: complete, hashed, and free of where this machine gets its packages."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PINS = re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)(.*(?:\n +--hash=\S+.*)*)", LOCK, re.M)


def folded(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_and_every_pin_is_hashed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {folded(re.split(r"[<>=!~ ;\[]", one)[0]) for one in project["dependencies"]}
    pinned = {folded(name) for name, _, _ in PINS}
    assert wanted <= pinned, wanted - pinned
    assert len(pinned) == len(PINS) > len(wanted)
    for name, _, rest in PINS:
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}", rest), name


def test_the_extra_that_an_error_names_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = (ROOT / "src").rglob("*.py")
    named = {name for path in sources for name in re.findall(r"volferry\[(\w+)", path.read_text())}
    assert named == set(project["optional-dependencies"])


def test_the_lock_names_no_index_and_no_host() -> None:
    lines = [line for line in LOCK.splitlines() if line.strip()]
    known = re.compile(
        r"[A-Za-z0-9._-]+==\S+( ; .*)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?|\s*#.*"
    )
    assert [line for line in lines if not known.fullmatch(line)] == []
    assert not re.search(r"://|index-url|find-links|trusted-host|@ ", LOCK)

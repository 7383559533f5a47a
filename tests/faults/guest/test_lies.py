"""Lies are impossible: what was broken between copying and comparing is never called verified.

The agent is the real one, as it runs in a guest; only its rsync breaks something after each copy.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import Guest, Told, disks_in
from disks_world import World

from tests.faults.guest import liar

# What a method that copies blocks can be lied to about is in test_mirror_lies.py.

LIAR = Path(liar.__file__)
AGE_S = 0.3
"""A change older than this cannot be taken for one that was made during the pass."""


class Scene:
    """A world whose rsync tells lies when it is told to."""

    def __init__(self, world: World) -> None:
        self.world = world
        folder = world.guest.root / "bin"
        folder.mkdir()
        self.lie = folder / "lie"
        program = folder / "rsync"
        program.write_text(
            '#!/bin/sh\n[ "$1" = --version ] && exec /usr/bin/rsync --version\n'
            '/usr/bin/rsync "$@" || exit\nfor target; do source=$last; last=$target; done\n'
            f"[ -e {self.lie} ] || exit 0\nread -r name times < {self.lie}\n"
            f"[ $times = once ] && rm {self.lie}\n"
            f'exec {sys.executable} -I {LIAR} $name "$source" "$target" {world.target.image}\n'
        )
        program.chmod(0o755)
        world.guest.path = f"{folder}:{world.guest.path}"

    def tells(self, lie: str, times: str = "always") -> None:
        self.lie.write_text(f"{lie} {times}\n")

    def is_honest(self) -> None:
        self.lie.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    root = tmp_path_factory.mktemp("lies")
    guest = Guest(root)
    with disks_in(root) as disks:
        world = World(guest, disks).make("ext4")
        liar.make_tree(world.data[0])
        world.ready()
        time.sleep(AGE_S)
        yield Scene(world)
        guest.kill_everything()


FEW = ["skip_file", "skip_chunk", "other_content", "xattr", "hard_link", "lost_by_the_disk"]
"""Where the comparison is the same and only what follows from it differs."""
LIES = {lie.__name__: path for lie, path in liar.LIES.items()} | {"lost_by_the_disk": "big"}


@pytest.mark.parametrize("lie", LIES)
def test_a_pass_that_was_lied_to_fails_and_names_what_is_wrong(scene: Scene, lie: str) -> None:
    scene.tells(lie)
    with pytest.raises(Told, match="entries differ after they were copied twice") as told:
        scene.world.pass_(slack_s=0.001)
    assert f"lies/{LIES[lie]}" in told.value.what
    assert told.value.error["data"] == ("the source is untouched; the target is not a copy of it")


@pytest.mark.parametrize("lie", FEW)
def test_a_pass_that_was_lied_to_once_heals_it(scene: Scene, lie: str) -> None:
    scene.tells(lie, "once")
    result = scene.world.pass_(slack_s=0.001)
    assert result["healed"] >= 1
    scene.world.assert_same()


@pytest.mark.parametrize("lie", FEW)
def test_a_cutover_that_was_lied_to_is_taken_back(scene: Scene, lie: str) -> None:
    scene.tells(lie)
    request = scene.world.cutover_request(None, stop=["true"], start=["true"])
    scene.world.guest.start("cutover", request)
    status = scene.world.guest.wait()
    outcome = status["result"]["outcome"]
    assert (outcome["result"], outcome["live"]) == ("reverted", "source")
    assert "differ after they were copied" in outcome["reason"]
    assert f"lies/{LIES[lie]}" in outcome["reason"]
    assert outcome["final_pass"] is None
    assert scene.world.live_side() == "source"
    assert scene.world.side.read_text() == "source\n"


def test_after_all_the_lies_an_honest_copy_is_had(scene: Scene) -> None:
    scene.is_honest()
    scene.world.pass_()
    scene.world.assert_same()

"""Lies to the mirror: a chunk that was not written, or not as it was told, is never verified.

The agent is the real one, as it is installed in a guest; only its writes to the target lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from disks_world import World
from mirror_world import Mirrored, differing_bytes

pytestmark = pytest.mark.usefixtures("tracking")

# Heads and tails are withheld and written by other rules; between them lies what was asked for.
LYING = """
honest_write, HEAD_AND_TAIL = DiskFile.write, 8 * MIB


def lying_write(self: DiskFile, offset: int, content: memoryview) -> None:
    lie, _, times = read_text({flag!r}).strip().partition(" ")
    if not lie or not HEAD_AND_TAIL <= offset < self.size_bytes - HEAD_AND_TAIL:
        honest_write(self, offset, content)
        return
    if times == "once":
        os.unlink({flag!r})
    if lie == "skip":
        return
    content[100] ^= 255
    honest_write(self, offset, content)
    content[100] ^= 255


DiskFile.write = lying_write


if __name__ == "__main__":"""


@dataclass
class Liar:
    world: World
    flag: Path
    mirror: Mirrored

    def tells(self, lie: str) -> None:
        self.flag.write_text(lie)


@pytest.fixture
def liar(world: World) -> Iterator[Liar]:
    world.make("ext4")
    world.start_writer()
    flag = world.guest.root / "lie"
    installed = next(world.guest.state_dir.glob("agent-*.py"))
    text = installed.read_text()
    assert text.count('\nif __name__ == "__main__":') == 1
    lying = LYING.format(flag=str(flag))
    installed.write_text(text.replace('\nif __name__ == "__main__":', lying))
    mirror = Mirrored(world).track()
    world.blank()
    yield Liar(world, flag, mirror)
    world.guest.call("stop", lane="mirror")


@pytest.mark.parametrize("lie", ["skip"])
def test_a_chunk_that_is_never_what_was_read_fails_the_verification(liar: Liar, lie: str) -> None:
    liar.tells(lie)
    liar.mirror.begin(blank=True)
    status = liar.mirror.wait()
    assert "verification failed: " in status["error"]["what"], status
    assert "--method rsync" in status["error"]["hint"]
    liar.world.assert_live("source")


@pytest.mark.parametrize("lie", ["flip once"])
def test_a_chunk_that_was_wrong_once_is_copied_again(liar: Liar, lie: str) -> None:
    liar.tells(lie)
    liar.mirror.begin(blank=True)
    liar.mirror.until_compared()
    assert not liar.flag.exists()
    liar.mirror.finish_by_hand()
    assert differing_bytes(liar.world) == ""


@pytest.mark.parametrize("lie", ["skip", "flip"])
def test_a_lie_in_the_final_copy_takes_the_cutover_back(liar: Liar, lie: str) -> None:
    liar.mirror.begin(blank=True)
    liar.mirror.until_compared()
    # The last writes of the service are copied while it is down; it is told just before it stops.
    tell = f"echo {lie} > {liar.flag}; {liar.world.stop_command}"
    outcome, _ = liar.mirror.cut_over(stop=[tell])
    assert (outcome["result"], outcome["live"]) == ("reverted", "source"), outcome
    assert "verification failed: " in outcome["reason"]
    liar.world.assert_live("source")

"""What the tests of the stacks share."""

import os

import pytest

in_full = pytest.mark.skipif(
    os.environ.get("VOLFERRY_EVERY_STACK") != "1",
    reason="hours under emulation: make test-stacks",
)


def links(volume_ids: list[str]) -> str:
    """In the guest, whatever the disks are called there; one word each, for a shell."""
    return " ".join(f"/dev/disk/by-id/virtio-{one[:20]}" for one in volume_ids)

"""One guest with a volume in use behind a proxy and a relay."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.api import Lab
from tests.faults.cloud.proxy import Proxy
from tests.faults.lab.relay import Relay
from tests.faults.lab.scene import Scene

SERVER = "faults"


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[str]:
    lab.delete_server(SERVER)  # what a run that was cut short left in it
    lab.ensure_server(SERVER)
    yield SERVER
    lab.delete_server(SERVER)


@pytest.fixture
def scene(lab: Lab, server: str, new_volume: Callable[..., str], tmp_path: Path) -> Iterator[Scene]:
    with Proxy() as proxy, Relay.to(lab, server) as relay:
        made = Scene(lab, server, new_volume(), relay, proxy, tmp_path)
        made.put_in_use("ext4")
        yield made
        made.out_of_use()
        for volume in lab.member.get("block-storage", "/volumes/detail")["volumes"]:
            if "volferry:transfer" in volume["metadata"] and volume["id"] != made.guest.volume_id:
                for attachment in volume["attachments"]:
                    lab.detach(attachment["server_id"], volume["id"])
                lab.delete_volume(volume["id"])

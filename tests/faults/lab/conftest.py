"""One guest with a volume in use behind a proxy and a relay."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.api import Lab
from tests.faults.cloud.proxy import Proxy
from tests.faults.lab.relay import Relay
from tests.faults.lab.scene import Scene


@pytest.fixture
def scene(
    lab: Lab,
    servers: Any,
    new_volume: Callable[..., str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Scene]:
    """The parameter is the method, and what the filesystem lies on where that is not the disk."""
    method, _, stack = request.param.partition(" ")
    server = servers.get("debian-12")
    with Proxy() as proxy, Relay.to(lab, server) as relay:
        made = Scene(lab, server, new_volume(), relay, proxy, tmp_path)
        made.method = method
        made.put_in_use("ext4", stack or "bare")
        yield made
        made.volferry.end()
        if stack:  # what was put together on a disk is not taken apart
            servers.drop(server)
        else:
            servers.give_back(made.guest)

"""Nova and Cinder as they meet a request that is said twice: every effect counts, none is forgiven.

Unlike the fake behind ``CloudVerbs`` this one does not look before it acts, because what is tested
is whether the client does. Operations stay in the middle (``creating``, ``detaching``) until
``settle``, or end at once.
"""

import re
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

from tests.fakes.http_cloud import Reply, StandIn

Json: TypeAlias = dict[str, Any]
SERVER_ID = "58074d33-df74-46dd-909c-e2cde4b31fb5"
IN_USE = ("available", "in-use")


class OpenStack(StandIn):
    """One server; volumes and snapshots as the services show them."""

    def __init__(self) -> None:
        self.begin()
        super().__init__()

    def begin(self, *, at_once: bool = False) -> None:
        """An empty project."""
        self.at_once = at_once
        self.refused_tokens: set[str] = set()
        self.effects: Counter[str] = Counter()
        self.volumes: dict[str, Json] = {}
        self.snapshots: dict[str, Json] = {}
        self.lines: dict[str, Json] = {}
        self._due: list[Callable[[], object]] = []

    def add_volume(self, name: str = "data", *, attached: bool = False, **fields: Any) -> str:
        made = {
            "id": str(uuid.uuid4()), "name": name, "size": 1, "status": "available",
            "volume_type": "standard", "metadata": {}, "attachments": [], **fields,
        }  # fmt: skip
        self.volumes[made["id"]] = made
        if attached:
            self._plug(made)
        return str(made["id"])

    def add_snapshot(self, volume_id: str, **fields: Any) -> str:
        made = {"id": str(uuid.uuid4()), "volume_id": volume_id, "size": 1, "status": "available"}
        self.snapshots[made["id"]] = {**made, "metadata": {}, **fields}
        return str(made["id"])

    def settle(self) -> None:
        """Let everything that was begun end."""
        for end in self._due:
            end()
        self._due.clear()

    def _then(self, end: Callable[[], object]) -> None:
        self._due.append(end)
        if self.at_once:
            self.settle()

    # ---- requests --------------------------------------------------------------------------------

    def reply(self, method: str, path: str, body: Any) -> Reply:
        for pattern, verbs in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method in verbs:
                answer: Reply = getattr(self, verbs[method])(*found.groups(), body)
                return answer
        return Reply(404, {"itemNotFound": {"code": 404, "message": f"no {method} {path}"}})

    def list_volumes(self, body: Any) -> Reply:
        return Reply(body={"volumes": list(self.volumes.values())})

    def show_volume(self, id: str, body: Any) -> Reply:
        return Reply(body={"volume": self.volumes[id]}) if id in self.volumes else _missing(id)

    def list_snapshots(self, body: Any) -> Reply:
        return Reply(body={"snapshots": list(self.snapshots.values())})

    def show_snapshot(self, id: str, body: Any) -> Reply:
        found = self.snapshots.get(id)
        return Reply(body={"snapshot": found}) if found else _missing(id)

    def list_lines(self, server_id: str, body: Any) -> Reply:
        return Reply(body={"volumeAttachments": list(self.lines.values())})

    def create_volume(self, body: Any) -> Reply:
        self.effects["create volume"] += 1
        id = self.add_volume(**{**body["volume"], "status": "creating"})
        self._then(lambda: self.volumes[id].update(status="available"))
        return Reply(202, {"volume": dict(self.volumes[id])})

    def create_snapshot(self, body: Any) -> Reply:
        self.effects["create snapshot"] += 1
        id = self.add_snapshot(**{**body["snapshot"], "status": "creating"})
        self._then(lambda: self.snapshots[id].update(status="available"))
        return Reply(202, {"snapshot": dict(self.snapshots[id])})

    def act(self, id: str, body: Any) -> Reply:
        [(action, wanted)] = body.items()
        volume = self.volumes[id]
        before = volume["status"]
        if action == "os-update_readonly_flag":
            self.effects["set read-only"] += 1
            volume["metadata"]["readonly"] = str(wanted["readonly"])
            return Reply(202)
        if before not in IN_USE or volume["volume_type"] == wanted["new_type"]:
            return _wrong(f"Retype needs volume to be in available or in-use state: {before}")
        self.effects["retype"] += 1
        volume["status"] = "retyping"
        new = {"status": before, "volume_type": wanted["new_type"]}
        self._then(lambda: volume.update(new))
        return Reply(202)

    def update_volume(self, id: str, body: Any) -> Reply:
        self.effects["update volume"] += 1
        self.volumes[id].update(body["volume"])
        return Reply(body={"volume": self.volumes[id]})

    def add_metadata(self, id: str, body: Any) -> Reply:
        self.effects["add metadata"] += 1
        self.volumes[id]["metadata"].update(body["metadata"])
        return Reply(body=body)

    def delete_volume(self, id: str, body: Any) -> Reply:
        return self._delete(self.volumes, id, "delete volume")

    def delete_snapshot(self, id: str, body: Any) -> Reply:
        return self._delete(self.snapshots, id, "delete snapshot")

    def _delete(self, where: dict[str, Json], id: str, effect: str) -> Reply:
        if id not in where:
            return _missing(id)
        if where[id]["status"] != "available":
            return _wrong(f"status must be available or error, not {where[id]['status']}")
        self.effects[effect] += 1
        where[id]["status"] = "deleting"
        self._then(lambda: where.pop(id, None))
        return Reply(202)

    def attach(self, server_id: str, body: Any) -> Reply:
        volume = self.volumes[body["volumeAttachment"]["volumeId"]]
        if volume["id"] in self.lines:
            return _wrong(f"volume {volume['id']} already attached")
        if volume["status"] != "available":
            return _wrong(f"volume '{volume['id']}' status must be 'available'")
        self.effects["attach"] += 1
        volume["status"] = "reserved"
        self._then(lambda: self._plug(volume))
        return Reply(200, {"volumeAttachment": {"volumeId": volume["id"]}})

    def _plug(self, volume: Json) -> None:
        attachment = {"server_id": SERVER_ID, "device": "/dev/vdb", "attachment_id": "a"}
        volume.update(status="in-use", attachments=[attachment])
        self.lines[volume["id"]] = {"volumeId": volume["id"], "device": "/dev/vdb"}

    def detach(self, server_id: str, id: str, body: Any) -> Reply:
        if id not in self.lines:
            return _missing(id)
        volume = self.volumes[id]
        if volume["status"] != "in-use":
            return _wrong(f"volume status must be 'in-use'. Currently in '{volume['status']}'")
        self.effects["detach"] += 1
        volume["status"] = "detaching"

        def unplug() -> None:
            self.lines.pop(id, None)
            volume.update(status="available", attachments=[])

        self._then(unplug)
        return Reply(202)


def _missing(id: str) -> Reply:
    return Reply(404, {"itemNotFound": {"code": 404, "message": f"{id} could not be found."}})


def _wrong(message: str) -> Reply:
    return Reply(400, {"badRequest": {"code": 400, "message": message}})


_VOLUMES, _ID = "/volume/v3/volumes", "([0-9a-f-]{36})"
_SNAPSHOTS = "/volume/v3/snapshots"
_LINES = f"/compute/v2.1/servers/{_ID}/os-volume_attachments"
_ROUTES: list[tuple[str, dict[str, str]]] = [
    (f"{_VOLUMES}/detail", {"GET": "list_volumes"}),
    (_VOLUMES, {"POST": "create_volume"}),
    (
        f"{_VOLUMES}/{_ID}",
        {"GET": "show_volume", "PUT": "update_volume", "DELETE": "delete_volume"},
    ),
    (f"{_VOLUMES}/{_ID}/metadata", {"POST": "add_metadata"}),
    (f"{_VOLUMES}/{_ID}/action", {"POST": "act"}),
    (f"{_SNAPSHOTS}/detail", {"GET": "list_snapshots"}),
    (_SNAPSHOTS, {"POST": "create_snapshot"}),
    (f"{_SNAPSHOTS}/{_ID}", {"GET": "show_snapshot", "DELETE": "delete_snapshot"}),
    (_LINES, {"GET": "list_lines", "POST": "attach"}),
    (f"{_LINES}/{_ID}", {"DELETE": "detach"}),
]

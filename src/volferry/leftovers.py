"""What transfers left behind, and what of it may be removed. Facts in, verdicts out; no I/O.

Two witnesses have to agree before anything is called garbage. The *mark*: the transfer's id in the
metadata of a cloud object, or in the name of a file in a guest. The *journal*: this machine's
record that this very transfer made this very thing, and has ended. One alone proves nothing: marks
are copied along by whoever clones a volume with its metadata, and a journal may be of another
machine, or lost.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from volferry.model import MARK, Json, Noun, ServerVolume, Snapshot, State, Transfer, Volume
from volferry.store import ENDED


class Verdict(enum.StrEnum):
    GARBAGE = "garbage"
    """Marked, in the journal, of a transfer that has ended, and used by nobody."""
    IN_USE = "in use"
    MARK_ONLY = "mark only"
    JOURNAL_ONLY = "journal only"


class Leftover(Noun):
    verdict: Verdict
    kind: Literal["volume", "snapshot", "state", "claim", "rule", "unit", "trace"]
    id: str
    """Of the cloud object; the path of a file in a guest."""
    name: str = ""
    where: str
    """Name of the project's cloud, or of the server."""
    transfer: str = ""
    why: str


@dataclass(frozen=True)
class History:
    """One transfer as its journal tells it. ``made`` also holds what was taken back again."""

    transfer: Transfer
    made: frozenset[str]
    stands: frozenset[str]

    @classmethod
    def of(
        cls, transfer: Transfer, journal: Iterable[Json], standing: Mapping[str, Json]
    ) -> "History":
        entries = [e for e in journal if e["step"] in _MAKERS and e["kind"] == "receipt"]
        made = (found for e in entries for found in _ids(e["receipt"], _MAKERS[e["step"]]))
        kept = standing.get("target", {}) if transfer.state is State.DONE else {}
        return cls(transfer, frozenset(made), frozenset(_ids(kept, "volume_id")))


_MAKERS = {"target": "volume_id", "snapshot": "snapshot_id"}


def _ids(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == key and isinstance(inner, str):
                yield inner
            else:
                yield from _ids(inner, key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _ids(inner, key)


def in_cloud(
    where: str,
    volumes: Iterable[Volume],
    snapshots: Iterable[Snapshot],
    histories: Mapping[str, History],
) -> Iterator[Leftover]:
    """The cloud's objects that carry a mark, or that the journal made. Volumes come first: a back
    end may keep a snapshot for as long as a volume was made from it.

    The target of a transfer that is done is the user's volume and no leftover, marked or not; so is
    a snapshot that was to be kept.
    """
    for volume in volumes:
        verdict = _of_object(volume, histories)
        if verdict and volume.attachments and verdict[0] is Verdict.GARBAGE:
            servers = ", ".join(a.server_id for a in volume.attachments)
            verdict = Verdict.IN_USE, verdict[1], f"it is attached to server {servers}"
        if verdict:
            yield _leftover(where, "volume", volume, verdict)
    for snapshot in snapshots:
        verdict = _of_object(snapshot, histories)
        if verdict:
            yield _leftover(where, "snapshot", snapshot, verdict)


def _leftover(
    where: str,
    kind: Literal["volume", "snapshot"],
    one: Volume | Snapshot,
    verdict: tuple[Verdict, str, str],
) -> Leftover:
    said, transfer, why = verdict
    return Leftover(
        verdict=said,
        kind=kind,
        id=one.id,
        name=one.name,
        where=where,
        transfer=transfer,
        why=f"{why}; {one.size_gib} GiB, {one.status}",
    )


def _of_object(
    one: Volume | Snapshot, histories: Mapping[str, History]
) -> tuple[Verdict, str, str] | None:
    mark = one.metadata.get(MARK, "")
    makers = [h for h in histories.values() if one.id in h.made]
    if not (mark or makers) or any(one.id in h.stands or _wanted(h, one) for h in makers):
        return None
    if not mark:
        id = makers[0].transfer.id
        return Verdict.JOURNAL_ONLY, id, f"{id} made it, but it carries no mark (any more)"
    verdict, why = _of_marked(one, histories.get(mark))
    return verdict, mark, why


def _of_marked(one: Volume | Snapshot, history: History | None) -> tuple[Verdict, str]:
    if history is None:
        return Verdict.MARK_ONLY, "this journal knows no such transfer"
    if history.transfer.state not in ENDED:
        return Verdict.IN_USE, _under_way(history)
    if one.id not in history.made:
        return Verdict.MARK_ONLY, "the transfer has ended and never made this id"
    if one.status not in ("available", "error", "error_deleting"):
        return Verdict.IN_USE, "something is being done with it"
    return Verdict.GARBAGE, f"its transfer is {history.transfer.state.value}"


def _wanted(history: History, one: Volume | Snapshot) -> bool:
    done = history.transfer.state is State.DONE
    return done and isinstance(one, Snapshot) and history.transfer.plan.wanted.keep_snapshot


def _under_way(history: History) -> str:
    return f"its transfer is {history.transfer.state.value}: resume it or roll it back"


def in_guest(
    server_id: str,
    server_name: str,
    files: Iterable[Json],
    attached: Iterable[ServerVolume],
    histories: Mapping[str, History],
) -> list[Leftover]:
    """The files of ours that a guest has, as the agent lists them.

    What belongs to one transfer is removed together or not at all. A rule that keeps a disk which
    is plugged in out of use is what stands between two look-alike disks: it stays.
    """
    ids = [line.volume_id for line in attached]
    found: list[Leftover] = []
    for file in files:
        transfer, history = file["transfer"], histories.get(file["transfer"])
        guarded = [id for id in ids if id[:20] in file.get("text", "")]
        if history is None or history.transfer.plan.cloud.server.id != server_id:
            verdict, why = Verdict.MARK_ONLY, "this journal knows no such transfer in this server"
        elif history.transfer.state not in ENDED:
            verdict, why = Verdict.IN_USE, _under_way(history)
        elif file.get("alive"):
            verdict, why = Verdict.IN_USE, "a job of it is running"
        elif file["kind"] == "rule" and guarded:
            verdict, why = Verdict.IN_USE, f"it keeps volume {guarded[0]} out of use, which is here"
        else:
            verdict, why = Verdict.GARBAGE, f"its transfer is {history.transfer.state.value}"
        found.append(
            Leftover(
                verdict=verdict,
                kind=file["kind"],
                id=file["path"],
                where=server_name,
                transfer=transfer,
                why=why,
            )
        )
    busy = {one.transfer for one in found if one.verdict is Verdict.IN_USE}
    return [
        one.model_copy(update={"verdict": Verdict.IN_USE, "why": f"{one.why}, but not all of it"})
        if one.transfer in busy and one.verdict is Verdict.GARBAGE
        else one
        for one in found
    ]

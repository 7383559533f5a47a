"""All that is known of one transfer in one archive, for whoever has to find out what happened.

Everything comes from the journal and the files beside it; neither cloud nor guest is asked. Values
of the user's metadata and whatever looks like a secret are taken out (``scrub``); the archive says
in ``README`` what it holds, so that it can be read before it is sent.
"""

import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from volferry import scrub
from volferry.model import Json
from volferry.report import records, story, summary
from volferry.report.lines import logged
from volferry.store import Store

_LIBRARIES = ("volferry", "dbos", "openstacksdk", "keystoneauth1", "pydantic", "sqlalchemy")
_README = """\
volferry's support bundle of {id}, made {when}.

Read it before you send it. Names and ids of servers, volumes, mounts, units and processes are in
it, and the commands of --stop and --start. Values of metadata, and what looks like a password, a
token or a key, were replaced by {gone}.

  transfer.json   state, error and the plan with all facts it was made from
  journal.jsonl   intents, receipts, what was undone
  events.jsonl    what happened, as 'volferry logs -f json'; events.txt for reading
  passes.jsonl    figures of every pass
  requests.jsonl  what the operator asked of the running transfer
  report.json     what the report claims; report.txt for reading
  files.txt       files of the transfer on this machine, with owner, mode and size
  machine.json    versions, and the names (no values) of variables that rule us
  bug.log         only when volferry itself failed
"""


def write(store: Store, id: str, path: Path, secrets: Collection[str]) -> list[str]:
    """Write the archive (0600, whole or not at all); the names of what is in it."""
    half = path.with_name(f".{path.name}.half")
    half.unlink(missing_ok=True)
    fd = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    names = []
    try:
        with os.fdopen(fd, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for name, content in contents(store, id, secrets):
                entry = tarfile.TarInfo(f"{id}/{name}")
                body = content.encode(errors="backslashreplace")
                entry.size, entry.mode, entry.mtime = len(body), 0o600, int(time.time())
                archive.addfile(entry, io.BytesIO(body))
                names.append(name)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    return names


def contents(store: Store, id: str, secrets: Collection[str]) -> Iterator[tuple[str, str]]:
    """Name and scrubbed text of each file."""
    for name, value in _parts(store, id):
        if isinstance(value, str):
            yield name, scrub.text(value, secrets)
        elif name.endswith(".jsonl"):
            lines = (json.dumps(scrub.data(one, secrets), ensure_ascii=False) for one in value)
            yield name, "".join(f"{line}\n" for line in lines)
        else:
            clean = scrub.data(value, secrets)
            yield name, json.dumps(clean, ensure_ascii=False, indent=2) + "\n"


def _parts(store: Store, id: str) -> Iterator[tuple[str, Any]]:
    transfer = store.transfer(id)
    events = [numbered.event for numbered in store.events(id)]
    report = story.read(store, id)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    yield "README", _README.format(id=id, when=when, gone=scrub.GONE)
    yield "transfer.json", _without_metadata(transfer.model_dump(mode="json"))
    yield "journal.jsonl", store.journal(id)
    yield "events.jsonl", [json.loads(records.of_event(event)) for event in events]
    yield "events.txt", "".join(f"{logged(event)}\n" for event in events)
    yield "passes.jsonl", [one.model_dump(mode="json") for one in store.passes(id)]
    yield "requests.jsonl", store.requests(id)
    yield "report.json", report.model_dump(mode="json")
    text = (line.render(colour=False) for line in summary.summary_lines(report))
    yield "report.txt", "".join(f"{line}\n" for line in text)
    yield "files.txt", "".join(_listed(store.root / "transfers" / id))
    yield "machine.json", _machine()
    bug = store.root / "transfers" / id / "bug.log"
    if bug.exists():
        yield "bug.log", bug.read_text(errors="backslashreplace")


def _without_metadata(value: Any) -> Any:
    """Metadata is the user's own, and nobody can tell what is secret in it; ours is not."""
    if isinstance(value, dict):
        return {
            key: {k: v if k.startswith("volferry:") else scrub.GONE for k, v in one.items()}
            if key == "metadata" and isinstance(one, dict)
            else _without_metadata(one)
            for key, one in value.items()
        }
    return [_without_metadata(one) for one in value] if isinstance(value, list) else value


def _listed(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        status = path.lstat()
        name = path.relative_to(folder)
        yield f"{status.st_mode:o} {status.st_uid} {status.st_size:>10} {name}\n"


def _machine() -> Json:
    rules = sorted(n for n in os.environ if n.startswith(("OS_", "VOLFERRY_")) or "proxy" in n)
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return {
        "python": sys.version,
        "system": platform.platform(),
        "versions": versions,
        "variables_set": rules,
    }

"""The wire: one request, one answer; and the worker that a supervisor runs."""

import contextlib
import json
import os
import signal
import sys
import time
from typing import Callable, Dict, List, Optional, Tuple

from volferry.agent.basics import AgentError, Json, Log, Place, Room, Stopped, say, to_text
from volferry.agent.cutover import Cutover
from volferry.agent.disks import verb_find
from volferry.agent.facts import verb_facts
from volferry.agent.inside import inside
from volferry.agent.install import verb_apply, verb_install, verb_leftovers, verb_uninstall
from volferry.agent.jobs import (
    Job,
    Supervisor,
    attempt,
    lane_dir,
    locked,
    lower_priority,
    on_sigterm,
    own_namespace,
    place_of,
    stopped,
    supervise,
    transfer_dir,
    verb_start,
    verb_status,
    verb_stop,
    where,
)
from volferry.agent.listen import ask_listener
from volferry.agent.mirror import Mirror
from volferry.agent.passes import LivePass
from volferry.agent.prepare import Preparation

MIRROR_ENDED = "the mirror has ended and copies nothing any more; the live side is untouched"


def work(state_dir: str) -> int:
    """Do the job of ``job.json``, or take up what a killed worker left. -> exit code: 0 tells the
    supervisor that there is nothing more to do."""
    place = place_of(state_dir)
    Log.path = os.path.join(state_dir, "log")
    Room.folder = os.path.join(transfer_dir(state_dir), "room")
    job = Job(place, state_dir)
    with locked(os.path.join(state_dir, "work.lock"), 5.0) as got:
        if not got:
            Log.say("another worker is at it")
            return 0
        asked_for = job.read()
        if asked_for is None or job.read_status().get("state") == "ended":
            return 0
        signal.signal(signal.SIGTERM, on_sigterm)
        job.enter()
        if asked_for["job"] in ("cutover", "cutback"):
            return Cutover(place, job, asked_for).run()
        if asked_for["job"] == "mirror":
            return mirror(place, job, asked_for["request"])
        if job.read_status():
            gone = AgentError("failed", "the job's process died", "nothing is mounted any more")
            job.end(None, gone.as_json())
            return 0
        carry(job, lambda: run_job(place, job, asked_for))
    return 0


def carry(job: Job, work: Callable[[], Json]) -> None:
    """Do it and write its end. A SIGTERM that comes as it ends is no reason to die without a word
    (seen: a mirror that was told to stop, and stopped a moment later)."""

    def begin() -> Json:
        job.begin()
        lower_priority()
        return work()

    ended: Tuple[Optional[Json], Optional[Json]] = (None, stopped().as_json())
    with contextlib.suppress(Stopped):  # it may come before the second line; another raises nothing
        ended = attempt(begin)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job.end(*ended)


def mirror(place: Place, job: Job, request: Json) -> int:
    """One that was killed, or whose guest restarted, begins anew: it cannot know what was written
    meanwhile, so it compares everything. Its orders came over the socket, and are kept."""
    if job.read_status():
        request = dict(request, suspect="the agent or the guest was restarted")
    carry(job, lambda: Mirror(place, job, request).run())
    Supervisor.of(place, job.state_dir).disable()
    return 0


def early(state_dir: str) -> int:
    """At boot, before file systems are mounted: see ``Cutover.early``. Its failure must not keep
    the guest from booting: the worker tries again and tells."""
    place = place_of(state_dir)
    Log.path = os.path.join(state_dir, "log")
    Room.folder = os.path.join(transfer_dir(state_dir), "room")
    job = Job(place, state_dir)
    asked_for = job.read()
    if asked_for and asked_for["job"] in ("cutover", "cutback"):

        def look() -> Json:
            Cutover(place, job, asked_for).early()
            return {}

        _, error = attempt(look)
        if error:
            Log.say("early: {}".format(error["what"]))
    return 0


def verb_tell(place: Place, request: Json) -> Json:
    """Say something to the mirror over its socket; its answer. One that has only been started does
    not listen before it tracks: that is waited for. One that ended instead is told by its own
    error, which it writes once it has let go of everything."""
    job = Job(place, lane_dir(place, request["transfer"], "mirror"))
    timeout_s = float(request.get("timeout_s") or 60.0)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            left_s = max(0.1, deadline - time.monotonic())
            result: Json = ask_listener(job.state_dir, request["message"], left_s)
        except AgentError as error:
            if error.kind != "missing" or time.monotonic() >= deadline:
                raise
            if job.state() != "running":
                ended = job.read_status().get("error")
                if ended is None:
                    raise
                raise AgentError(**dict(ended, data=ended["data"] or MIRROR_ENDED))
            time.sleep(0.1)
        else:
            return result


def run_job(place: Place, job: Job, asked_for: Json) -> Json:
    needed = [job.state_dir] + [fs["mount"] for fs in asked_for["request"]["filesystems"]]
    own_namespace(place, needed)
    if asked_for["job"] == "prepare":
        return Preparation(place, job, asked_for["request"]).run()
    return LivePass(place, job.state_dir, asked_for["request"], job.report).run()


VERBS: Dict[str, Callable[[Place, Json], Json]] = {
    "facts": verb_facts,
    "find": verb_find,
    "install": verb_install,
    "apply": verb_apply,
    "start": verb_start,
    "status": verb_status,
    "stop": verb_stop,
    "tell": verb_tell,
    "uninstall": verb_uninstall,
    "leftovers": verb_leftovers,
}


def answer(verb: str, raw: bytes) -> Json:
    """One request, one answer."""

    def do() -> Json:
        try:
            request = json.loads(to_text(raw))
        except ValueError as error:
            raise AgentError("usage", "the request is no JSON: {}".format(error))
        if verb not in VERBS or not isinstance(request, dict):
            raise AgentError("usage", "there is no verb '{}'".format(verb))
        try:
            return VERBS[verb](Place(request.get("settings")), request)
        except KeyError as error:
            raise AgentError("usage", "the request lacks {} ({})".format(error, where(error)))

    result, error = attempt(do)
    return {"ok": True, "result": result} if error is None else {"ok": False, "error": error}


def main(argv: List[str]) -> int:
    os.umask(0o077)
    verb = argv[1] if len(argv) > 1 else ""
    if verb == "work":
        return work(argv[2])
    if verb == "early":
        return early(argv[2])
    if verb == "supervise":
        supervise(argv[2])
        return 0
    if verb == "inside":
        return inside()
    raw = os.fsencode(argv[2]) if len(argv) > 2 else sys.stdin.buffer.read()
    say(answer(verb, raw))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

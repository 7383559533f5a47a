"""The agent, killed with SIGKILL at a given moment. Usage: killing_agent.py AGENT STATE_DIR MOMENT

A moment is the name of a phase (right after its record was written) or ``before:PHASE`` (right
before), ``side:N`` (after the Nth side file was written) or ``back:N`` (the same while going back),
``shown`` (before the mirror is asked to show the target) or ``hidden`` (after it hid it again),
``hiding`` (the source is about to be hidden as a standby), ``unnoted`` (it is one, which is not in
the record yet) or ``standing`` (it is);
of the way back of a standby ``copied`` (it has the last writes and is hidden), ``brought`` (it can
be recognised, which is not in the record yet) and ``unstood`` (it is no standby any more);
of the way back of a source that was detached first also ``kept`` (what hides the target is kept,
nothing is hidden yet), ``staying`` (it is about to be shown again) and ``unkept`` (it was).
"""

import importlib.util
import os
import signal
import sys


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(agent_path: str, state_dir: str, moment: str) -> int:
    spec = importlib.util.spec_from_file_location("agent", agent_path)
    assert spec is not None and spec.loader is not None
    agent = importlib.util.module_from_spec(spec)
    sys.modules["agent"] = agent
    spec.loader.exec_module(agent)
    kind, _, what = moment.rpartition(":")
    note, put_side = agent.Cutover.note, agent.Sides.put_side
    written = {"target": 0, "source": 0}

    def noting(self: object, phase: str = "", **facts: object) -> None:
        if kind == "before" and phase == what:
            die()
        if what == "unnoted" and facts.get("standby"):
            die()
        if what == "brought" and facts.get("live", True) is None:
            die()
        note(self, phase, **facts)
        if (what, True) in (
            ("hiding", facts.get("source_hidden")),
            ("standing", facts.get("standby")),
            ("unstood", facts.get("standby") is False),
            ("copied", facts.get("copied_back")),
        ):
            die()
        if (what, facts.get("shown")) in (("shown", True), ("hidden", False)):
            die()
        if (what, facts.get("kept")) in (("kept", True), ("unkept", False)):
            die()
        if what == "staying" and facts.get("staying"):
            die()
        if (not kind and phase == what) or (kind == "going" and facts.get("going_back")):
            die()

    def putting(self: object, file: dict[str, object], side: str) -> None:
        put_side(self, file, side)
        written[side] += 1
        if (kind, what) in (("side", str(written["target"])), ("back", str(written["source"]))):
            die()

    agent.Cutover.note, agent.Sides.put_side = noting, putting
    result: int = agent.work(state_dir)
    return result


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

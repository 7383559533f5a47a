"""The agent in a guest whose wall clock is set in the middle. Usage:
jumping_agent.py AGENT STATE_DIR PHASE SECONDS: from that phase on the clock is off by so much.
"""

import importlib.util
import sys
import time


def main(agent_path: str, state_dir: str, phase: str, seconds: str) -> int:
    spec = importlib.util.spec_from_file_location("agent", agent_path)
    assert spec is not None
    assert spec.loader is not None
    agent = importlib.util.module_from_spec(spec)
    sys.modules["agent"] = agent
    spec.loader.exec_module(agent)
    real, note = time.time, agent.Cutover.note

    def noting(self: object, name: str = "", **facts: object) -> None:
        if name == phase:
            time.time = lambda: real() + float(seconds)
        note(self, name, **facts)

    agent.Cutover.note = noting
    result: int = agent.work(state_dir)
    return result


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

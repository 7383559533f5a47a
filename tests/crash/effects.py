"""The effects of a transfer's steps, as ``cut_command.py`` names them.

By hand, because the lab's tests are named by them before any transfer has been lived; the sweep,
which records the effects of one, holds them to it.
"""

EFFECTS = {
    "install": ["install"],
    "track": ["start mirror"],
    "snapshot": ["create_snapshot"],
    "target": ["create_volume"],
    "retype": ["retype"],
    "quarantine": ["apply"],
    "attach": ["attach"],
    "prepare": ["start prepare"],
    "sync": ["start pass"],
    "cutover": ["start cutover"],
    "detach": ["detach"],
    "protect": ["set_read_only"],
    "tidy": ["uninstall", "delete_snapshot"],
}
MIRROR = {"prepare": ["tell pairs"], "sync": [], "detach": ["stop", "detach"]}


def moments(name: str) -> list[tuple[str, str, str]]:
    """(method, step, moment), in the order in which they come."""
    effects = {**EFFECTS, **MIRROR} if name == "mirror" else EFFECTS
    if name != "mirror":
        effects = {step: own for step, own in effects.items() if step != "track"}
    return [
        (name, step, f"{when} {effect}")
        for step, own in effects.items()
        for effect in [f"intent {step}", *own, f"receipt {step}"]
        for when in ("before", "after")
    ]


def first_of_each(said: list[str]) -> list[str]:
    """Of a life's moments those at which ``cut_command.py`` can end it: the first of each name, and
    of the journal neither states nor passes, whose number is chance."""
    beyond = ("state", "pass", "request")
    return list(dict.fromkeys(one for one in said if one.split()[1] not in beyond))

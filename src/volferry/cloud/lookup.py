"""From what a person typed to one object: id first, then name, never a guess. Pure."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from volferry.errors import Usage

Kind: TypeAlias = Literal["server", "volume"]


def may_be_id(wanted: str) -> bool:
    """UUIDs with or without dashes: what Nova and Cinder take for an id."""
    return re.fullmatch(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}", wanted) is not None


def choose(kind: Kind, wanted: str, every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The one that is called ``wanted``.

    Raises ``Usage`` with both ids, their status and creation date when two are, and with similar
    names when none is.
    """
    named = [one for one in every if one.get("name") == wanted]
    if len(named) == 1:
        return dict(named[0])
    if named:
        listed = "\n".join(
            f"{one['id']}  {one.get('status')}  created "
            f"{one.get('created_at') or one.get('created')}"
            for one in named
        )
        raise Usage(
            f"{len(named)} {kind}s are called '{wanted}'",
            data=f"nothing was changed\n{listed}",
            hint=f"give the id of the {kind} instead of its name",
        )
    names = sorted({str(one.get("name") or "") for one in every} - {""})
    close = difflib.get_close_matches(wanted, names, n=3)
    raise Usage(
        f"there is no {kind} '{wanted}' in this project ({len(every)} {kind}s)",
        data="nothing was changed",
        hint="did you mean: " + ", ".join(f"'{name}'" for name in close)
        if close
        else f"'openstack {kind} list' shows those that the project has",
    )


def distinct(wanted: Sequence[str], ids: Sequence[str]) -> None:
    """Raise ``Usage`` when one volume was named twice, perhaps by its name and by its id."""
    for place, id in enumerate(ids):
        first = ids.index(id)
        if first < place:
            raise Usage(
                f"'{wanted[first]}' and '{wanted[place]}' are one volume, {id}",
                data="nothing was changed",
                hint="name each volume once",
            )

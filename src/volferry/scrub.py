"""Take out of a text what could authenticate somebody.

volferry itself writes no secret down, so this is the second net: for what a user put into a stop
command or a volume's metadata, what a service quoted in an error, and what we got wrong. Three
sieves, because each alone has holes: values that are known to be secret (the environment's,
clouds.yaml's), names that promise a secret, and shapes that tokens and keys have.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

GONE = "(removed)"

_NAMES = (
    r"(?:passw(?:or)?d|passphrase|secret|token|private_?key|access_?key|api_?key"
    r"|(?<![A-Za-z])(?:pass|pwd|credentials?)(?![A-Za-z]))"
)
_NAMED = re.compile(_NAMES, re.I)

_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
                re.S), GONE),
    (re.compile(r"(?<=://)[^/@\s\"']+@"), f"{GONE}@"),
    # Keystone's Fernet tokens and JSON web tokens.
    (re.compile(r"\bgAAAA[A-Za-z0-9_\-=%]{20,}"), GONE),
    (re.compile(r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+\.?[A-Za-z0-9_\-]*"), GONE),
    (re.compile(r"(\b(?:bearer|basic|x-(?:auth|subject)-token:?)\s+)\S+", re.I), rf"\1{GONE}"),
    # PGPASSWORD=x, --password=x, --token x, "secret": "x", password: x
    (re.compile(rf"([\w\-]*{_NAMES}\w*[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;\"'&]+)", re.I),
     rf"\1{GONE}"),
    (re.compile(rf"(--[\w\-]*{_NAMES}[\w\-]*\s+)(\"[^\"]*\"|'[^']*'|[^\s\"']+)", re.I),
     rf"\1{GONE}"),
    # mysql's -pSECRET, which no name announces
    (re.compile(r"(\bmy\w+\b[^|;&\n]*?\s-p)[^\s\"']+"), rf"\1{GONE}"),
)  # fmt: skip

_IN_URL = re.compile(r"://[^:/@\s]*:([^/@\s]+)@")

_SHORTEST = 4
"""A known secret that is shorter is not looked for: it would blacken half of the text."""


_learned: set[str] = set()


def learn(secrets: Iterable[str]) -> None:
    """What this process authenticates with; taken out of every error from now on."""
    _learned.update(secret for secret in secrets if len(secret) >= _SHORTEST)


def exact(said: str) -> str:
    """Without what is known to be secret; nothing else is touched."""
    for secret in sorted(_learned | known(os.environ), key=len, reverse=True):
        said = said.replace(secret, GONE)
    return said


def is_secret(name: str) -> bool:
    """Whether a variable or a key of this name is expected to hold a secret."""
    return bool(_NAMED.search(name))


def known(environment: Mapping[str, str], clouds: Any = None) -> frozenset[str]:
    """The secrets of an environment and of a parsed clouds.yaml."""
    found = {v for n, v in environment.items() if _is_secret_variable(n, v)}
    found |= {word for v in environment.values() for word in _IN_URL.findall(v)}
    todo = [clouds]
    while todo:
        one = todo.pop()
        if isinstance(one, Mapping):
            found |= {str(v) for k, v in one.items() if is_secret(str(k)) and _leaf(v)}
            todo += one.values()
        elif isinstance(one, list | tuple):
            todo += one
    return frozenset(value for value in found if len(value) >= _SHORTEST)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that authenticate nobody, as far as name and value tell."""
    return {
        name: value
        for name, value in environment.items()
        if not _is_secret_variable(name, value)
        and not any(shape.search(value) for shape, _ in _SHAPES)
    }


def _is_secret_variable(name: str, value: str) -> bool:
    # PWD is no password, and the name of a file that holds a secret is none either; but one key of
    # AWS in 64 begins with a slash.
    return is_secret(name) and not (value.startswith("/") and os.access(value, os.F_OK))


def text(said: str, secrets: Collection[str] = ()) -> str:
    """Without what is known to be secret, and without all that looks like it."""
    for secret in sorted(secrets, key=len, reverse=True):
        said = said.replace(secret, GONE)
    said = exact(said)
    for shape, instead in _SHAPES:
        said = shape.sub(instead, said)
    return said


def data(value: Any, secrets: Collection[str] = ()) -> Any:
    """The same for plain JSON: values under a secret's name, and every text."""
    if isinstance(value, Mapping):
        return {
            text(str(k), secrets): GONE
            if is_secret(str(k)) and isinstance(v, str) and v
            else data(v, secrets)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [data(one, secrets) for one in value]
    return text(value, secrets) if isinstance(value, str) else value


def _leaf(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)

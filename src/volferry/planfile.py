"""Plan files: a plan as YAML that people review, version and give to ``volferry run``.

The wishes of the user come first, what was found comes after. Loading never stops at the first
fault: a file is edited by hand and read by machines later, so all that is wrong is said at once,
each with its line. The same pydantic models that the program runs on validate the file and yield
its JSON Schema.

The YAML is read node by node instead of through a loader: nodes know their lines, loaders drop
duplicate keys and turn an unquoted time into something that is not text any more.
"""

import datetime
import difflib
import io
import os
import tempfile
import time
import typing
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

import volferry
from volferry import errors
from volferry.model import Json, Plan

VERSION = 2
LARGEST_BYTES = 4 * 1024 * 1024
"""A plan is some ten kilobytes; more is not a plan."""

Path_: TypeAlias = tuple[str | int, ...]

_OF_ONE = ("size_gib", "name")
_POSITIVE = ("size_gib", "bwlimit_bytes_s", "max_downtime_s")
_HINT = "volferry schema   prints the JSON Schema of a plan file"


# ---- save ----------------------------------------------------------------------------------------


def save(plan: Plan, path: Path) -> None:
    """Write ``plan`` to ``path``, whole or not at all.

    Raises ``Usage`` when the file cannot be written, or exists and is not a plan file: a slip of
    the fingers must not cost somebody's ``clouds.yaml``.
    """
    if path.exists() and not _is_ours(path):
        raise errors.Usage(
            f"{path} exists and is not a plan file, so it is not replaced",
            data="nothing was changed",
            hint="choose another name for --save",
        )
    text = dumps(plan)
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
        ) as half:
            half.write(text)
            half.flush()
            os.fsync(half.fileno())
        umask = os.umask(0)
        os.umask(umask)
        # A temporary file is 0600; a plan is for review and holds no secret.
        Path(half.name).chmod(0o666 & ~umask)
        Path(half.name).replace(path)
    except OSError as fault:
        raise errors.Usage(
            f"cannot write {path}: {fault.strerror}", data="nothing was changed"
        ) from fault


def dumps(plan: Plan) -> str:
    """The text of a plan file."""
    found = plan.model_dump(mode="json", exclude_defaults=True, exclude={"version", "wanted"})
    content = CommentedMap(
        {"version": VERSION, "wanted": _block(plan.wanted.model_dump(mode="json")), **_block(found)}
    )
    content.yaml_set_start_comment(_header(plan))
    asked = "\nWhat is asked for: yours to edit."
    content.yaml_set_comment_before_after_key("wanted", before=asked)
    if found:
        content.yaml_set_comment_before_after_key(
            next(iter(found)),
            before="\nWhat was decided and found, for review. `run` looks all of it up again.",
        )
    yaml = YAML()
    yaml.width = 10_000  # commands and paths stay on one line, so that they can be searched for
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def _header(plan: Plan) -> str:
    server = plan.cloud.server
    made = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    lines = (
        f"A plan of volferry {volferry.__dict__.get('__version__', '')}".rstrip()
        + f", made {made:%Y-%m-%dT%H:%M:%SZ}.",
        f"It moves, of server {_one(server.name)} ({server.id}),",
        *(
            f"volume {_one(pair.source.name)} ({pair.source.id}, {pair.source.size_gib} GiB, "
            f"{_one(pair.source.type)}) to a new one of {pair.target_size_gib} GiB, "
            f"type {_one(pair.target_type)}."
            for pair in plan.pairs
        ),
        "",
        "  volferry run FILE   checks everything again, says what differs, and carries it out",
        "  volferry schema     prints the JSON Schema of this file, for editors and reviews",
        "",
        "It holds no secret: clouds.yaml and ssh are read where it is run.",
    )
    return "\n".join(lines)


def _one(name: str) -> str:
    return repr("".join(sign if sign.isprintable() else "?" for sign in name))


def _block(value: Any) -> Any:
    """Texts of several lines (an fstab) as they were, not as one line full of ``\\n``."""
    if isinstance(value, dict):
        return CommentedMap({_word(key): _block(item) for key, item in value.items()})
    if isinstance(value, list):
        return [_block(item) for item in value]
    if isinstance(value, str) and "\n" in value and _literal(value):
        return LiteralScalarString(value)
    return _word(value) if isinstance(value, str) else value


def _word(text: str) -> str:
    """Odd signs are escaped, in quotes: other styles write U+0085 as the end of a line."""
    return text if text.isprintable() else DoubleQuotedScalarString(text)


def _literal(text: str) -> bool:
    """Whether a block scalar gives this text back: no control characters, no odd ends."""
    return all(sign in "\n\t" or sign.isprintable() for sign in text) and text[0] not in " \n\t"


def _is_ours(path: Path) -> bool:
    try:
        load(path)
    except errors.Usage as fault:
        return "as a plan file" in fault.what
    return True


# ---- the schema ----------------------------------------------------------------------------------


def schema() -> Json:
    """The JSON Schema (2020-12) of a plan file."""
    described = Plan.model_json_schema(mode="validation")
    described["required"] = sorted({"version", *described.get("required", [])})
    described["properties"]["version"].pop("default", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **described,
        "title": "volferry plan",
        "description": "What 'volferry plan --save' writes and 'volferry run' takes: the user's "
        "wishes in 'wanted', and what was decided and found for review.",
    }


# ---- load ----------------------------------------------------------------------------------------


def load(path: Path) -> Plan:
    """Read a plan file. Raises ``Usage`` with every fault in it, each with its line."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
        text = raw.decode("utf-8")
    except FileNotFoundError as fault:
        raise errors.Usage(
            f"there is no plan file {path}",
            data="nothing was changed",
            hint="volferry plan SERVER VOLUME --save FILE   writes one",
        ) from fault
    except OSError as fault:
        raise errors.Usage(
            f"cannot read {path}: {fault.strerror}", data="nothing was changed"
        ) from fault
    except UnicodeDecodeError as fault:
        raise _not_a_plan(path, "it is not text in UTF-8") from fault
    if len(raw) > LARGEST_BYTES:
        raise _not_a_plan(path, f"it is larger than {LARGEST_BYTES // 1024**2} MiB")
    return loads(text, path)


def loads(text: str, path: Path) -> Plan:
    """The plan in ``text``; ``path`` is only what its errors call it."""
    reader = _Reader()
    try:
        yaml = YAML(typ="safe", pure=True)
        content = reader.read(yaml.compose(text), ())
    except MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise _not_a_plan(path, f"{where}not YAML: {fault.problem or fault.context}") from fault
    except (YAMLError, RecursionError) as fault:
        raise _not_a_plan(path, f"not YAML: {str(fault).splitlines()[0]}") from fault
    _must_be_ours(content, path)
    _must_be_of_now(content, path)
    plan, faults = _validate(content, reader.lines)
    faults += reader.faults
    if faults or plan is None:
        ordered = [f"line {line}: {what}" for line, what in sorted(set(faults))]
        raise errors.Usage(
            f"{path} cannot be read as a plan file: {len(ordered)} "
            + ("fault" if len(ordered) == 1 else "faults"),
            data="\n".join([*ordered, "nothing was changed"]),
            hint=_HINT,
        )
    return plan


def _not_a_plan(path: Path, why: str) -> errors.Usage:
    return errors.Usage(
        f"{path} is not a plan file of volferry",
        data=f"{why}\nnothing was changed",
        hint="volferry plan SERVER VOLUME --save FILE   writes one",
    )


def _must_be_ours(content: Any, path: Path) -> None:
    """A file of something else gets one sentence, not fifty faults."""
    if content is None:
        raise _not_a_plan(path, "it is empty")
    if not isinstance(content, dict):
        raise _not_a_plan(path, "its top is not a mapping with 'version' and 'wanted'")
    if not {"wanted", "version"} & set(content) or not set(content) & set(Plan.model_fields):
        keys = ", ".join(f"'{key}'" for key in list(content)[:4]) or "nothing"
        raise _not_a_plan(path, f"it has {keys} at its top, and no 'wanted'")
    if "wanted" not in content and not {"cloud", "guest"} & set(content):
        keys = ", ".join(f"'{key}'" for key in list(content)[:4])
        raise _not_a_plan(path, f"it has {keys} at its top, and no 'wanted'")


def _must_be_of_now(content: Json, path: Path) -> None:
    """An older file gets one sentence as well: every figure in it may lie elsewhere today."""
    version = content.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and 0 < version < VERSION:
        raise errors.Usage(
            f"{path} cannot be read as a plan file: it is of version {version}, this volferry "
            f"reads {VERSION}",
            data="nothing was changed",
            hint="make and review a new one: volferry plan SERVER VOLUME --save FILE",
        )


class _Reader:
    """Nodes to plain data, remembering the line of every path and what YAML itself forgives."""

    def __init__(self) -> None:
        self.lines: dict[Path_, int] = {(): 1}
        self.faults: list[tuple[int, str]] = []
        self._seen: set[int] = set()

    def read(self, node: Node | None, path: Path_) -> Any:
        if node is None:
            return None
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if id(node) in self._seen:  # an alias: a few of them can stand for gigabytes
            self.faults.append((line, f"{_dotted(path)} is a YAML alias; write the value out"))
            return None
        self._seen.add(id(node))
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return _scalar(node)

    def _mapping(self, node: MappingNode, path: Path_) -> Json:
        content: Json = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self.faults.append((line, f"a key of {_dotted(path)} is not a word"))
                continue
            if key in content:
                first = self.lines[(*path, key)]
                self.faults.append(
                    (line, f"{_dotted((*path, key))} is said twice (first in line {first})")
                )
                continue
            self.lines[(*path, key)] = line
            content[key] = self.read(value_node, (*path, key))
        return content


def _scalar(node: ScalarNode) -> Any:
    """A value by YAML 1.2's core schema; a time stays the text that it is."""
    text = str(node.value)
    match str(node.tag).rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            digits = text.replace("_", "")
            try:
                return int(digits, 0)
            except ValueError:
                return int(digits)  # 010 is ten in YAML 1.2
        case "float":
            return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        case _:
            return text


def _validate(content: Json, lines: dict[Path_, int]) -> tuple[Plan | None, list[tuple[int, str]]]:
    faults: list[tuple[int, str]] = []
    version = content.get("version")
    if "version" not in content:
        faults.append((1, f"'version' is missing: this volferry writes version {VERSION}"))
    elif version != VERSION or isinstance(version, bool):
        faults.append(
            (lines[("version",)], f"version is {version!r}, this volferry reads {VERSION}")
        )
    plan = None
    try:
        plan = Plan.model_validate({**content, "version": VERSION})
    except ValidationError as fault:
        faults += [_fault(detail, lines) for detail in fault.errors(include_url=False)]
    wanted = content.get("wanted")
    if isinstance(wanted, dict):
        faults += _values(wanted, lines)
    return plan, faults


def _fault(detail: ErrorDetails, lines: dict[Path_, int]) -> tuple[int, str]:
    path: Path_ = detail["loc"]
    name = _dotted(path)
    line = next(lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines)
    match detail["type"]:
        case "extra_forbidden":
            known = _fields_at(path[:-1])
            close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
            advice = f", did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"
            return line, f"unknown key {name}{advice}"
        case "missing":
            return line, f"{name} is missing"
        case "literal_error" | "enum":
            expected = detail.get("ctx", {}).get("expected", "something else")
            return line, f"{name} is {_said(detail['input'])}, not {expected}"
        case "string_type" if isinstance(detail["input"], int | float):
            return line, f"{name} is the number {detail['input']}, not text: put it in quotes"
        case _:
            what = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            return line, f"{name} is {_said(detail['input'])}, not {what.split(',')[0]}"


def _values(wanted: Json, lines: dict[Path_, int]) -> list[tuple[int, str]]:
    """What is of the right type and still makes no sense."""
    faults = []

    def number(path: Path_, value: Any, *, zero: bool = False) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if not (value >= 0 if zero else value > 0):
            least = "not negative" if zero else "more than 0"
            faults.append((lines[path], f"{_dotted(path)} is {value}; it has to be {least}"))

    volumes = wanted.get("volumes")
    named = len(volumes) if isinstance(volumes, list) else 1
    for key in _OF_ONE if named > 1 else ():
        if wanted.get(key):
            what = f"'wanted.{key}' is for one volume, and {named} are named"
            faults.append((lines["wanted", key], what))
    for key in _POSITIVE:
        number(("wanted", key), wanted.get(key))
    number(("wanted", "settle_s"), wanted.get("settle_s"), zero=True)
    timeouts = wanted.get("timeouts")
    for key, value in timeouts.items() if isinstance(timeouts, dict) else ():
        number(("wanted", "timeouts", key), value)
    gate = wanted.get("cutover", "auto")
    if isinstance(gate, str) and gate not in ("auto", "manual") and not _is_time(gate):
        faults.append(
            (
                lines[("wanted", "cutover")],
                f"'wanted.cutover' is {_said(gate)}, not auto, manual or a time with its zone",
            )
        )
    return faults


def _is_time(text: str) -> bool:
    try:
        return datetime.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _dotted(path: Path_) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"'{text}'" if text else "the top"


def _said(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = {"None": "empty", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(path: Path_) -> list[str]:
    """Names that the mapping at ``path`` may have."""
    model: Any = Plan
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if _is_model(model) else None
        model = _model_in(field.annotation) if field else None
    return sorted(model.model_fields) if _is_model(model) else []


def _model_in(annotation: Any) -> Any:
    if _is_model(annotation):
        return annotation
    found = (_model_in(inner) for inner in typing.get_args(annotation))
    return next((model for model in found if model is not None), None)


def _is_model(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)


__all__ = ["VERSION", "dumps", "load", "loads", "save", "schema"]

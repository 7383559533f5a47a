"""Plan files: what is saved is read back, and all that is wrong is said at once."""

import stat
from pathlib import Path
from typing import Any

import cli_world as world
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from volferry import planfile
from volferry.errors import Usage

PATH = Path("plan.yaml")


def faults(text: str) -> Usage:
    with pytest.raises(Usage) as caught:
        planfile.loads(text, PATH)
    return caught.value


def saved() -> str:
    return planfile.dumps(world.plan())


def test_a_saved_plan_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    planfile.save(world.plan(), path)
    assert planfile.load(path) == world.plan()


def test_the_file_says_what_it_is_and_how_it_is_used() -> None:
    head = saved().splitlines()
    assert head[0].startswith("# A plan of volferry, made 2026-")
    assert any("volferry run FILE" in line for line in head)
    assert world.SOURCE in "\n".join(head[:4])


def test_wishes_come_before_facts_and_version_first() -> None:
    keys = [line.split(":")[0] for line in saved().splitlines() if line[:1].isalpha()]
    assert keys[:2] == ["version", "wanted"]
    assert keys.index("wanted") < keys.index("cloud") < keys.index("checks")


def test_the_head_names_every_volume_that_it_moves() -> None:
    one = world.plan().pairs[0]
    log = one.model_copy(update={"source": one.source.model_copy(update={"name": "log"})})
    head = planfile.dumps(world.plan(pairs=(one, log))).split("version:")[0]
    assert "volume 'sourcevol'" in head and "volume 'log'" in head


def test_an_fstab_stays_readable() -> None:
    assert "fstab: |" in saved()
    assert f"UUID={world.UUID} /srv/data xfs noatime 0 2" in saved().replace("    ", "")


def test_the_published_schema_accepts_what_is_saved() -> None:
    schema = planfile.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    content = YAML(typ="safe", pure=True).load(saved())
    jsonschema.validate(content, schema, cls=jsonschema.Draft202012Validator)


def test_the_published_schema_refuses_what_is_refused_here() -> None:
    content = YAML(typ="safe", pure=True).load(saved())
    spoils: list[dict[str, Any]] = [{"version": 3}, {"wanted": {}}, {"wishes": 1}]
    for spoil in spoils:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content | spoil, planfile.schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({k: v for k, v in content.items() if k != "version"}, planfile.schema())


def test_five_faults_are_five_lines_in_order() -> None:
    text = saved()
    text = text.replace("version: 2", "version: 7")
    text = text.replace("  type: cbs-premium\n", "  tyype: cbs-premium\n", 1)
    text = text.replace("  seed: auto\n", "  seed: quick\n")
    text = text.replace("  max_downtime_s: 10.0\n", "  max_downtime_s: -3\n")
    text = text.replace("  cutover: auto\n", "  cutover: tonight\n")
    said = faults(text)
    assert said.exit_code == 2
    assert "5 faults" in said.what
    told = said.data.splitlines()
    assert told[-1] == "nothing was changed"
    numbers = [int(line.split()[1].rstrip(":")) for line in told[:-1]]
    assert len(numbers) == 5 and numbers == sorted(numbers)
    lines = text.splitlines()
    for number, word in zip(
        numbers, ("version", "tyype", "seed", "cutover", "max_downtime_s"), strict=True
    ):
        assert word in lines[number - 1]
    assert "did you mean 'type'?" in said.data
    assert "auto" in said.data and "snapshot" in said.data and "blank" in said.data


def test_a_missing_key_and_a_wrong_type_are_named_with_their_place() -> None:
    said = faults("version: 2\nwanted:\n  server: testsrv\n  volumes: [12]\ncloud: {}\nguest: []\n")
    assert "'wanted.volumes[0]' is the number 12, not text: put it in quotes" in said.data
    assert "'cloud.server' is missing" in said.data and "'cloud.sources' is missing" in said.data
    assert "'guest' is a list" in said.data


def test_a_missing_version_is_a_fault() -> None:
    assert "'version' is missing" in faults(saved().replace("version: 2\n", "")).data


def test_a_file_of_an_older_version_gets_one_sentence() -> None:
    said = faults(saved().replace("version: 2", "version: 1"))
    assert said.what == (
        "plan.yaml cannot be read as a plan file: it is of version 1, this volferry reads 2"
    )
    assert (said.data, "volferry plan SERVER VOLUME --save FILE" in said.hint) == (
        "nothing was changed",
        True,
    )


def test_a_name_and_a_size_are_for_one_volume() -> None:
    text = saved().replace("    - sourcevol\n", "    - sourcevol\n    - log\n")
    text = text.replace("  size_gib:\n", "  size_gib: 60\n").replace("  name: ''\n", "  name: n\n")
    said = faults(text)
    assert "'wanted.size_gib' is for one volume, and 2 are named" in said.data
    assert "'wanted.name' is for one volume, and 2 are named" in said.data


def test_a_file_without_a_volume_is_a_fault() -> None:
    said = faults(saved().replace("  volumes:\n    - sourcevol\n", "  volumes: []\n"))
    assert "'wanted.volumes' is a list" in said.data


def test_a_key_that_is_said_twice_is_a_fault_with_both_lines() -> None:
    said = faults(saved().replace("  server: testsrv\n", "  server: testsrv\n  server: other\n"))
    assert "'wanted.server' is said twice (first in line " in said.data


def test_several_double_keys_are_all_reported() -> None:
    text = saved().replace("  hold: false\n", "  hold: false\n  hold: true\n  hold: true\n")
    assert faults(text).data.count("said twice") == 2


def test_an_unquoted_time_is_a_time_and_not_a_wrong_type() -> None:
    text = saved().replace("  cutover: auto\n", "  cutover: 2026-11-23T02:00:00+01:00\n")
    assert planfile.loads(text, PATH).wanted.cutover == "2026-11-23T02:00:00+01:00"


def test_a_time_without_a_zone_is_a_fault() -> None:
    text = saved().replace("  cutover: auto\n", "  cutover: 2026-11-23T02:00:00\n")
    assert "a time with its zone" in faults(text).data


def test_what_is_not_yaml_says_where() -> None:
    said = faults("version: 2\nwanted: {server: [\n")
    assert "not YAML" in said.data and "line " in said.data


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("- a\n- b\n", "not a mapping"),
        ("clouds:\n  mycloud: {}\n", "'clouds'"),
        ("version: '3'\nservices: {}\n", "'services'"),
        ("apiVersion: v1\nkind: Pod\n", "'apiVersion'"),
        ("just words", "not a mapping"),
    ],
)
def test_a_file_of_something_else_gets_one_sentence(text: str, word: str) -> None:
    said = faults(text)
    assert "is not a plan file of volferry" in said.what
    assert word in said.data and len(said.data.splitlines()) == 2


def test_aliases_are_refused_before_they_can_grow() -> None:
    bomb = "wanted: &a {server: x, volumes: [y]}\ncloud: [*a, *a]\nversion: 2\n"
    assert "alias" in faults(bomb).data


def test_a_file_that_is_missing_unreadable_or_huge_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="there is no plan file"):
        planfile.load(tmp_path / "none.yaml")
    with pytest.raises(Usage, match="cannot read"):
        planfile.load(tmp_path)
    huge = tmp_path / "huge.yaml"
    huge.write_text("#" * (planfile.LARGEST_BYTES + 1))
    with pytest.raises(Usage, match="not a plan file"):
        planfile.load(huge)
    huge.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Usage, match="not a plan file"):
        planfile.load(huge)


def test_saving_replaces_a_plan_but_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    planfile.save(world.plan(), path)
    planfile.save(world.plan(method="mirror"), path)
    assert planfile.load(path).method == "mirror"
    precious = tmp_path / "clouds.yaml"
    precious.write_text("clouds: {}\n")
    with pytest.raises(Usage, match="not replaced"):
        planfile.save(world.plan(), precious)
    assert precious.read_text() == "clouds: {}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clouds.yaml", "plan.yaml"]


def test_a_plan_with_a_fault_in_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(saved().replace("version: 2", "version: 9"))
    planfile.save(world.plan(), path)
    assert planfile.load(path) == world.plan()


def test_a_saved_plan_can_be_read_by_reviewers(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    planfile.save(world.plan(), path)
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    assert not stat.S_IMODE(path.stat().st_mode) & 0o111


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=80))
def test_any_name_survives_the_file(name: str) -> None:
    wanted = world.plan().wanted.model_copy(update={"name": name, "stop": (name,)})
    guest = world.plan().guest.model_copy(update={"fstab": name})
    plan = world.plan(wanted=wanted, guest=guest)
    assert planfile.loads(planfile.dumps(plan), PATH) == plan


@settings(deadline=None)
@given(st.text(max_size=200))
def test_no_text_at_all_breaks_the_reader(text: str) -> None:
    with pytest.raises(Usage):
        planfile.loads(text, PATH)

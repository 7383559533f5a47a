"""What is remembered, and that it is on disk when it has been said."""

import multiprocessing
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from volferry import errors
from volferry import store as store_module
from volferry.model import (
    CloudFacts,
    Event,
    GuestFacts,
    Pass,
    Plan,
    Progress,
    Server,
    State,
    Transfer,
    Volume,
    Wanted,
)
from volferry.store import Store, new_id, state_directory

ID = "tr-web-03-abcd"
POSTGRES = os.environ.get("VOLFERRY_TEST_POSTGRES", "")
"""URL of a database whose tables these tests may drop; without it, SQLite alone is tested."""


def transfer(id: str = ID, *sources: str, state: State = State.RUNNING) -> Transfer:
    plan = Plan(
        wanted=Wanted(server="web-03", volumes=("data",)),
        cloud=CloudFacts(
            server=Server(id="srv-1", name="web-03", status="ACTIVE"),
            sources=tuple(
                Volume(id=source, name="data", size_gib=1, type="old", status="in-use")
                for source in sources or ("vol-1",)
            ),
        ),
        guest=GuestFacts(family="linux"),
    )
    return Transfer(id=id, state=state, plan=plan, created_at=time.time())


def drop_tables(url: str) -> None:
    db = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    old = sa.MetaData()
    old.reflect(db)
    old.drop_all(db)
    db.dispose()


def test_a_journal_on_postgresql_without_its_driver_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VOLFERRY_STATE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(errors.Usage) as told:
        Store("postgresql://me:hunter22@db/volferry")
    assert "on postgresql, whose driver cannot be loaded" in told.value.what
    assert "hunter22" not in f"{told.value.what} {told.value.data} {told.value.hint}"
    assert "pip install 'volferry[postgresql]'" in told.value.hint


def test_a_database_that_accepts_and_says_nothing_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VOLFERRY_STATE", str(tmp_path))
    monkeypatch.setitem(store_module._OF_LIBPQ, "connect_timeout", "2")  # psycopg's least
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(errors.Stop) as told:
        Store(f"postgresql://me:hunter22@127.0.0.1:{silent.getsockname()[1]}/volferry")
    assert time.monotonic() - began < 20
    assert (
        "the journal on postgresql at 127.0.0.1 cannot be used: connection timeout expired"
        in told.value.what
    )
    assert "2 s (connect_timeout in its URL)" in told.value.what
    assert told.value.data and told.value.hint
    assert "hunter22" not in f"{told.value.what} {told.value.data} {told.value.hint}"


def test_a_database_that_is_gone_is_noticed_unless_its_url_says_otherwise() -> None:
    given = store_module._open_url("postgresql://db/volferry?connect_timeout=7").url.query
    assert given["connect_timeout"] == "7"
    assert given["tcp_user_timeout"] == "30000"
    idle, interval, count = (int(given[f"keepalives_{n}"]) for n in ("idle", "interval", "count"))
    assert idle + interval * count == 30


@pytest.mark.skipif(not POSTGRES, reason="needs a database: VOLFERRY_TEST_POSTGRES")
def test_a_database_that_is_locked_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VOLFERRY_STATE", str(tmp_path))
    drop_tables(POSTGRES)
    with Store(POSTGRES) as store, Store(POSTGRES) as other:
        monkeypatch.setattr(store_module, "_WAIT_S", 1)
        with other._db.begin() as held:
            held.exec_driver_sql("LOCK TABLE transfers")
            with pytest.raises(errors.Stop, match=r"statement timeout; it has 1 s \(a fixed"):
                store.transfers()
        assert store.transfers() == []


def test_a_file_that_another_program_has_locked_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store_module, "_WAIT_S", 1)
    with Store(tmp_path) as store, Store(tmp_path) as other:
        store.create(transfer())
        with other._db.begin():
            assert store.transfers(), "reading goes on"
            with pytest.raises(errors.Stop, match=r"is locked; it has 1 s \(a fixed") as told:
                store.intent(ID, "target")
        assert f"fuser {tmp_path / 'store.sqlite'}" in told.value.hint
        assert told.value.data
        store.intent(ID, "target")
        assert store.open_intent(ID) == "target"


def test_a_disk_that_is_full_is_told_as_that(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create(transfer())
        with store._db.connect() as one:
            one.exec_driver_sql("PRAGMA max_page_count = 1")
        with pytest.raises(errors.Stop, match="database or disk is full") as told:
            for _ in range(100):
                store.receipt(ID, "target", {"text": "x" * 10_000})
        assert f"df {tmp_path}" in told.value.hint


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRES else ["sqlite"])
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Store]]:
    """Opens the same store again and again, as different processes would."""
    monkeypatch.setenv("VOLFERRY_STATE", str(tmp_path / "state"))
    made: list[Store] = []

    def opened() -> Store:
        made.append(Store(None if request.param == "sqlite" else POSTGRES))
        return made[-1]

    if request.param == "postgresql":
        drop_tables(POSTGRES)
    yield opened
    for store in made:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    opened = open_store()
    opened.create(transfer())
    return opened


# ---- transfers -----------------------------------------------------------------------------------


def test_a_transfer_is_read_back_as_it_was_written(open_store: Callable[[], Store]) -> None:
    written = transfer()
    open_store().create(written)

    assert open_store().transfer(ID) == written
    assert open_store().transfers() == [written]


def test_a_prefix_is_enough_when_only_one_id_begins_like_it(store: Store) -> None:
    store.create(transfer("tr-db-01-efgh", "vol-2"))

    assert store.transfer("tr-web").id == ID


def test_an_ambiguous_prefix_names_what_it_could_mean(store: Store) -> None:
    store.create(transfer("tr-web-04-efgh", "vol-2"))

    with pytest.raises(errors.Usage, match="'tr-web' begins the id of 2 transfers") as caught:
        store.transfer("tr-web")
    assert caught.value.hint == f"say one of: {ID}, tr-web-04-efgh"


def test_a_whole_id_is_never_ambiguous(store: Store) -> None:
    store.create(transfer(ID + "x", "vol-2"))

    assert store.transfer(ID).id == ID


@pytest.mark.parametrize("asked", ["tr-nope", ""])
def test_an_unknown_id_says_what_exists(store: Store, asked: str) -> None:
    with pytest.raises(errors.Usage, match=f"there is no transfer '{asked}'") as caught:
        store.transfer(asked)
    assert caught.value.hint == f"there are: {ID}"


def test_an_empty_store_says_where_it_looked(open_store: Callable[[], Store]) -> None:
    with pytest.raises(errors.Usage) as caught:
        open_store().transfer("tr")
    assert str(state_directory()) in caught.value.hint


def test_a_second_transfer_of_the_same_volume_is_refused_and_names_the_first(store: Store) -> None:
    with pytest.raises(errors.Refused, match=rf"'vol-1' is already .* '{ID}' \(running\)"):
        store.create(transfer("tr-other"))

    assert [t.id for t in store.transfers()] == [ID]


@pytest.mark.parametrize("end", [State.DONE, State.ROLLED_BACK])
def test_a_volume_may_be_moved_again_when_its_transfer_has_ended(store: Store, end: State) -> None:
    store.set_state(ID, end)

    store.create(transfer("tr-other"))

    assert len(store.transfers()) == 2


def test_an_ended_transfer_does_not_come_back_while_another_moves_its_volume(store: Store) -> None:
    store.set_state(ID, State.DONE)
    store.create(transfer("tr-other"))

    with pytest.raises(errors.Refused, match="'tr-other'"):
        store.set_state(ID, State.ROLLING_BACK)
    assert store.transfer(ID).state is State.DONE


def test_a_transfer_has_all_of_its_volumes_or_is_refused_with_those_that_are_taken(
    store: Store,
) -> None:
    with pytest.raises(errors.Refused, match=rf"volume 'vol-1' is already .* '{ID}'"):
        store.create(transfer("tr-both", "vol-2", "vol-1"))
    store.create(transfer("tr-both", "vol-2", "vol-3"))  # so vol-2 was not kept by the refused one

    for taken in ("vol-2", "vol-3"):
        with pytest.raises(errors.Refused, match=f"'{taken}' is already .* 'tr-both'"):
            store.create(transfer("tr-third", taken))
    store.set_state("tr-both", State.DONE)
    store.create(transfer("tr-third", "vol-3", "vol-2"))


def test_an_id_is_used_once(store: Store) -> None:
    with pytest.raises(errors.Usage, match="already a transfer"):
        store.create(transfer(ID, "vol-2"))


@pytest.mark.parametrize("id", ["", "a/b", "..", "-x", "x" * 41, "a b"])
def test_an_id_that_is_no_file_name_is_refused(store: Store, id: str) -> None:
    with pytest.raises(errors.Usage, match="cannot be the id"):
        store.create(transfer(id, "vol-2"))


def test_a_new_state_forgets_the_error_and_keeps_the_step(store: Store) -> None:
    store.set_state(ID, State.STOPPED, step="attach", error={"what": "no"})
    assert store.transfer(ID).error == {"what": "no"}

    store.set_state(ID, State.RUNNING)

    again = store.transfer(ID)
    assert (again.state, again.step, again.error) == (State.RUNNING, "attach", {})


def test_the_state_of_an_unknown_transfer_cannot_be_set(store: Store) -> None:
    with pytest.raises(errors.Usage, match="there is no transfer 'tr-nope'"):
        store.set_state("tr-nope", State.DONE)


def test_a_plan_can_be_replaced(store: Store) -> None:
    plan = store.transfer(ID).plan.model_copy(update={"method": "new"})

    store.set_plan(ID, plan)

    assert store.transfer(ID).plan == plan


@pytest.mark.parametrize(
    "server", ["web-03", "Web_03.example.org", "räksmörgås", "x" * 80, "", "-"]
)
def test_a_new_id_is_readable_and_safe_everywhere(server: str) -> None:
    ids = {new_id(server) for _ in range(50)}

    assert len(ids) > 45
    assert all(re.fullmatch(r"tr-[a-z0-9]+(-[a-z0-9]+)*-[a-z0-9]{4}", id) for id in ids)
    assert all(len(id) <= 40 for id in ids)


# ---- the journal ---------------------------------------------------------------------------------


def test_receipts_stand_in_the_order_in_which_they_were_written(store: Store) -> None:
    for step in ("b", "a", "c"):
        store.intent(ID, step)
        store.receipt(ID, step, {"id": step, "deep": [1, {"x": None}]})

    assert list(store.receipts(ID).items()) == [
        (step, {"id": step, "deep": [1, {"x": None}]}) for step in ("b", "a", "c")
    ]
    assert store.open_intent(ID) is None


def test_an_intent_is_open_until_its_receipt(store: Store) -> None:
    store.intent(ID, "a")
    assert store.open_intent(ID) == "a"

    store.receipt(ID, "a", {})
    assert store.open_intent(ID) is None


def test_what_was_undone_does_not_stand_and_may_be_done_again(store: Store) -> None:
    for step in ("a", "b"):
        store.intent(ID, step)
        store.receipt(ID, step, {"n": 1})
    store.undone(ID, "b")
    assert list(store.receipts(ID)) == ["a"]

    store.intent(ID, "b")
    assert store.open_intent(ID) == "b"
    store.receipt(ID, "b", {"n": 2})
    assert store.receipts(ID)["b"] == {"n": 2}


def test_undoing_another_step_does_not_close_an_open_intent(store: Store) -> None:
    store.intent(ID, "a")
    store.receipt(ID, "a", {})
    store.intent(ID, "b")
    store.undone(ID, "a")
    assert store.open_intent(ID) == "b"

    store.undone(ID, "b")
    assert store.open_intent(ID) is None


def test_journals_of_two_transfers_do_not_mix(store: Store) -> None:
    store.create(transfer("tr-2", "vol-2"))
    store.intent("tr-2", "a")
    store.receipt(ID, "x", {})

    assert store.receipts("tr-2") == {}
    assert store.open_intent(ID) is None


# ---- events, passes, progress, requests ----------------------------------------------------------


def test_events_are_read_in_order_and_from_any_row_on(store: Store) -> None:
    told = [
        Event(at=float(n), transfer=ID, step="s", kind="note", facts={"n": n}) for n in range(3)
    ]
    rows = [store.event(e) for e in told]

    assert [n.event for n in store.events(ID)] == told
    assert [n.event for n in store.events(ID, after=rows[0])] == told[1:]
    assert store.events(ID, after=rows[-1]) == []


def test_passes_and_progress_are_read_back(store: Store) -> None:
    assert store.progress(ID) is None
    for n in (1, 2):
        store.add_pass(ID, Pass(number=n))
        store.put_progress(ID, Progress(what="copying", done_bytes=n))

    assert store.passes(ID) == [Pass(number=1), Pass(number=2)]
    assert store.progress(ID) == Progress(what="copying", done_bytes=2)


def test_a_request_is_pending_until_it_was_taken(store: Store) -> None:
    first = store.request(ID, "set", {"max_downtime_s": 3})
    second = store.request(ID, "cutover")
    assert store.pending(ID) == [first, second]

    store.taken(first)
    store.taken(first)

    assert store.pending(ID) == [second]


# ---- the file ------------------------------------------------------------------------------------


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    with Store(tmp_path / "state") as store:
        store.create(transfer())
        with store.hold(ID):
            modes = {
                p.relative_to(tmp_path).as_posix(): stat.S_IMODE(p.stat().st_mode)
                for p in [tmp_path / "state", *(tmp_path / "state").rglob("*")]
            }

    assert modes == {
        "state": 0o700,
        "state/store.sqlite": 0o600,
        "state/store.sqlite-wal": 0o600,
        "state/store.sqlite-shm": 0o600,
        "state/transfers": 0o700,
        f"state/transfers/{ID}": 0o700,
        f"state/transfers/{ID}/lock": 0o600,
    }


def test_what_was_said_survives_a_power_cut(tmp_path: Path) -> None:
    """That is what synchronous=FULL promises; NORMAL in WAL mode does not."""
    with Store(tmp_path) as store, store._db.connect() as db:
        asked = ["journal_mode", "synchronous", "foreign_keys"]
        found = [db.exec_driver_sql(f"PRAGMA {name}").scalar() for name in asked]

    assert found == ["wal", 2, 1]


def test_a_store_of_a_newer_volferry_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as db, db:
        db.execute("update volferry_schema set version = 99")

    with pytest.raises(errors.Refused, match="has schema 99, this volferry knows 2"):
        Store(tmp_path)


def test_a_store_of_an_older_volferry_is_left_as_it_is(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as db, db:
        db.execute("create table volferry_schema (version integer primary key)")
        db.execute("insert into volferry_schema values (1)")

    with pytest.raises(errors.Refused, match="has schema 1, this volferry knows 2") as caught:
        Store(tmp_path)

    assert "VOLFERRY_STATE names another place" in caught.value.hint
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as db:
        tables = db.execute("select name from sqlite_master where type = 'table'").fetchall()
    assert tables == [("volferry_schema",)]


def test_the_state_directory_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLFERRY_STATE", str(tmp_path / "here"))
    with Store() as store:
        assert store.root == tmp_path / "here"
    monkeypatch.delenv("VOLFERRY_STATE")
    assert state_directory().name == "volferry"


def test_listing_does_not_pay_for_the_engine() -> None:
    code = "import sys, volferry.store, volferry.engine; sys.exit('dbos' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- several processes ---------------------------------------------------------------------------

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["pytest", "volferry.engine", "sqlalchemy.dialects.sqlite", "dbos"]
)


def create_one(root: str, id: str) -> None:
    try:
        with Store(root) as store:
            store.create(transfer(id))
    except errors.Refused:
        sys.exit(1)


def hold_it(root: str) -> None:
    with Store(root) as store, store.hold(ID):
        Path(root, "held").touch()
        time.sleep(60)


def write_until_killed(root: str) -> None:
    with Store(root) as store:
        for n in range(100_000):
            store.intent(ID, f"s{n}")
            with Path(root, "said").open("a") as said:
                said.write(f"intent s{n}\n")
            store.receipt(ID, f"s{n}", {"n": n})
            with Path(root, "said").open("a") as said:
                said.write(f"receipt s{n}\n")


def test_of_many_processes_one_creates_the_store_and_the_transfer(tmp_path: Path) -> None:
    many = [
        processes.Process(target=create_one, args=(str(tmp_path / "s"), f"tr-{n}"))
        for n in range(6)
    ]
    for one in many:
        one.start()
    codes = []
    for one in many:
        one.join(300)
        codes.append(one.exitcode)
        one.close()

    assert sorted(codes, key=str) == [0, 1, 1, 1, 1, 1]


def test_a_lock_says_who_holds_it_and_ends_with_its_process(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create(transfer())
        assert store.running(ID) is None
        other = processes.Process(target=hold_it, args=(str(tmp_path),))
        other.start()
        while not (tmp_path / "held").exists():
            other.join(0.02)

        assert store.running(ID) == other.pid
        with pytest.raises(errors.Refused, match=f"process {other.pid}"), store.hold(ID):
            pass

        other.kill()
        other.join(30)
        other.close()
        assert store.running(ID) is None
        with store.hold(ID):
            assert store.running(ID) == os.getpid()
        assert store.running(ID) is None


def test_looking_at_a_lock_does_not_take_it(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create(transfer())
        with store.hold(ID):
            pass
        assert store.running(ID) is None
        with store.hold(ID):
            pass


@pytest.mark.parametrize("after_lines", [1, 2, 7, 20])
def test_a_process_killed_while_writing_leaves_all_that_it_had_said(
    tmp_path: Path, after_lines: int
) -> None:
    with Store(tmp_path) as store:
        store.create(transfer())
    writer = processes.Process(target=write_until_killed, args=(str(tmp_path),))
    writer.start()
    said = tmp_path / "said"
    while not said.exists() or len(said.read_text().splitlines()) < after_lines:
        writer.join(0.001)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(30)
    writer.close()

    lines = said.read_text().splitlines()
    with Store(tmp_path) as store:
        receipts, begun = store.receipts(ID), store.open_intent(ID)
    sure = [line.split()[1] for line in lines if line.startswith("receipt")]
    assert list(receipts)[: len(sure)] == sure
    assert len(receipts) <= len(sure) + 1
    assert begun in (None, f"s{len(receipts)}")


def test_the_environment_may_name_a_database_and_files_still_have_a_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VOLFERRY_STATE", f"sqlite:///{tmp_path / 'journal.db'}")
    with Store() as store:
        assert store.root == tmp_path / "home" / "volferry"
    assert (tmp_path / "journal.db").exists()

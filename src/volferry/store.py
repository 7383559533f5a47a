"""What has been done, and when, on disk before anybody relies on it.

A method that writes has committed when it returns, so a process may be killed between any two of
them and what was said stays said. The journal is append-only: an *intent* before the first effect
of a step, its *receipt* after the last one, *undone* once it was taken back. Everything else here
(events, passes, progress, requests) explains the journal or talks to whoever carries the transfer.

By default this is one SQLite file in the user's state directory; any SQLAlchemy URL of a PostgreSQL
works as well. The tables are ours alone, so that reports never read the engine's schema and
outlive it. Nothing secret is ever written: what authenticates is looked up again each time.

Who carries a transfer right now is not a row, which would survive its process, but an ``flock`` on
a file of the transfer: the kernel gives it back however the process ends. It holds on one machine
only, as does the SQLite file.
"""

import contextlib
import fcntl
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import sqlalchemy as sa

from volferry import errors
from volferry.model import Event, Json, Noun, Pass, Plan, Progress, Receipt, State, Transfer

SCHEMA = 2
"""Version of the tables and of the plans in them; a file with another one is left alone."""

ENDED = (State.DONE, State.ROLLED_BACK)

_ALPHABET = "abcdefghjkmnpqrstuvwxyz234567890"  # 32 of them, without 1 and what reads like it
_ID_LENGTH = 40
_LOCK_TRIES, _LOCK_PAUSE_S = 10, 0.02
_WAIT_S = 30
"""For another who writes to the journal, and for a database that does not answer."""
_BUSY_MS = 200
"""Of that, how long SQLite waits by itself."""
_OF_LIBPQ = {
    "connect_timeout": f"{_WAIT_S}",
    # A server that is gone acknowledges neither what was sent nor, while we wait, a keepalive.
    "tcp_user_timeout": f"{_WAIT_S * 1000}",
    "keepalives_idle": f"{_WAIT_S // 3}",
    "keepalives_interval": f"{_WAIT_S // 6}",
    "keepalives_count": "4",
}
"""https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"""


class Request(Noun):
    """A message of the operator to whoever carries the transfer: ``cutover``, ``stop``, …"""

    id: int
    transfer: str
    what: str
    facts: Json
    at: float


class Numbered(Noun):
    """An event and its place: give ``row`` to ``Store.events(after=…)`` to read on."""

    row: int
    event: Event


_tables = sa.MetaData()
_row = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers only INTEGER keys

_schema = sa.Table("volferry_schema", _tables, sa.Column("version", sa.Integer, primary_key=True))

_transfers = sa.Table(
    "transfers",
    _tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("error", sa.JSON, nullable=False),
    sa.Column("plan", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("ended", sa.Boolean, nullable=False),
)
# Two transfers of one volume would each take the other's work apart. The database says no, not a
# look beforehand: two `volferry run` may be started in the same second.
_sources = sa.Table(
    "sources",
    _tables,
    sa.Column("transfer", sa.ForeignKey("transfers.id"), primary_key=True),
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("ended", sa.Boolean, nullable=False),
)
sa.Index(
    "one_transfer_per_source",
    _sources.c.source,
    unique=True,
    sqlite_where=sa.not_(_sources.c.ended),
    postgresql_where=sa.not_(_sources.c.ended),
)


def _of_transfer(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(
        name,
        _tables,
        sa.Column("row", _row, primary_key=True, autoincrement=True),
        sa.Column("transfer", sa.ForeignKey("transfers.id"), nullable=False, index=True),
        sa.Column("at", sa.Float, nullable=False),
        *columns,
    )


_journal = _of_transfer(
    "journal",
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("receipt", sa.JSON, nullable=False),
)
_events = _of_transfer(
    "events",
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
)
_passes = _of_transfer("passes", sa.Column("figures", sa.JSON, nullable=False))
_requests = _of_transfer(
    "requests",
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("taken_at", sa.Float),
)
_progress = sa.Table(
    "progress",
    _tables,
    sa.Column("transfer", sa.ForeignKey("transfers.id"), primary_key=True),
    sa.Column("progress", sa.JSON, nullable=False),
)


def state_directory() -> Path:
    """``$VOLFERRY_STATE``, else where the platform keeps a user's state."""
    chosen = os.environ.get("VOLFERRY_STATE")
    if chosen and "://" not in chosen:  # a database is a place for the journal, not for files
        return Path(chosen).expanduser()
    return platformdirs.user_state_path("volferry")


def new_id(server: str) -> str:
    """A transfer id such as ``tr-web-03-k4q7``: readable, and safe as a name of a file or unit."""
    tail = "-" + "".join(secrets.choice(_ALPHABET) for _ in range(4))
    words = re.sub(r"[^a-z0-9]+", "-", server.lower()).strip("-") or "server"
    return f"tr-{words}"[: _ID_LENGTH - len(tail)].rstrip("-") + tail


class Store:
    """The journal and everything else that is remembered; safe to use from several threads.

    ``where`` is a state directory or the URL of a database; the default is what ``VOLFERRY_STATE``
    names, else ``state_directory()``, where locks and the engine's files lie even with a database.
    """

    def __init__(self, where: str | Path | None = None) -> None:
        named = os.environ.get("VOLFERRY_STATE", "") if where is None else where
        url = named if isinstance(named, str) and "://" in named else ""
        self.root = state_directory() if url or where is None else Path(where)
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = _open_url(url) if url else _open_file(self.root / "store.sqlite")
        try:
            self._check_schema()
        except BaseException:  # a Ctrl-C's too: the file would stay open
            self._db.dispose()
            raise

    def close(self) -> None:
        self._db.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- transfers -------------------------------------------------------------------------------

    def create(self, transfer: Transfer) -> None:
        """Remember a new transfer.

        Raises ``Refused``, naming the other one, while a transfer of one of its sources has not
        ended.
        """
        if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_ID_LENGTH - 1}}}", transfer.id):
            raise errors.Usage(f"'{transfer.id}' cannot be the id of a transfer")
        ended = transfer.state in ENDED
        values = {
            "id": transfer.id,
            "state": transfer.state.value,
            "step": transfer.step,
            "error": transfer.error,
            "plan": transfer.plan.model_dump(mode="json"),
            "created_at": transfer.created_at,
            "ended": ended,
        }
        claims = [
            {"transfer": transfer.id, "source": source.id, "ended": ended}
            for source in transfer.plan.cloud.sources
        ]
        try:
            self._write(sa.insert(_transfers).values(values), sa.insert(_sources).values(claims))
        except sa.exc.IntegrityError as fault:
            if any(r.id == transfer.id for r in self._read(sa.select(_transfers.c.id))):
                raise errors.Usage(f"there is already a transfer '{transfer.id}'") from fault
            raise self._refusal(transfer) from fault

    def transfer(self, id_or_prefix: str) -> Transfer:
        """The transfer with this id, or the only one whose id begins like this."""
        rows = self._read(sa.select(_transfers).order_by(_transfers.c.created_at))
        found = [r for r in rows if r.id == id_or_prefix] or [
            r for r in rows if id_or_prefix and r.id.startswith(id_or_prefix)
        ]
        if len(found) == 1:
            return _transfer(found[0])
        if found:
            raise errors.Usage(
                f"'{id_or_prefix}' begins the id of {len(found)} transfers",
                hint="say one of: " + ", ".join(r.id for r in found),
            )
        raise errors.Usage(
            f"there is no transfer '{id_or_prefix}'",
            hint="there are: " + ", ".join(r.id for r in rows)
            if rows
            else f"there is none yet in {self.root}",
        )

    def transfers(self) -> list[Transfer]:
        """All of them, oldest first."""
        rows = self._read(sa.select(_transfers).order_by(_transfers.c.created_at, _transfers.c.id))
        return [_transfer(r) for r in rows]

    def set_state(
        self, id: str, state: State, *, step: str | None = None, error: Json | None = None
    ) -> None:
        """Say how a transfer stands. The former error is forgotten, the step kept if not given."""
        values: dict[str, Any] = {
            "state": state.value,
            "ended": state in ENDED,
            "error": error or {},
        }
        if step is not None:
            values["step"] = step
        self._update(id, values)

    def set_plan(self, id: str, plan: Plan) -> None:
        """Replace the plan by one with other wishes (``volferry set``) of the same sources."""
        self._update(id, {"plan": plan.model_dump(mode="json")})

    # ---- the journal -----------------------------------------------------------------------------

    def intent(self, id: str, step: str) -> None:
        """Before the first effect of a step."""
        self._append(_journal, id, kind="intent", step=step, receipt={})

    def receipt(self, id: str, step: str, receipt: Receipt) -> None:
        """After the last effect of a step."""
        self._append(_journal, id, kind="receipt", step=step, receipt=receipt)

    def undone(self, id: str, step: str) -> None:
        """Nothing of the step is left, or nothing of it was ever there."""
        self._append(_journal, id, kind="undone", step=step, receipt={})

    def receipts(self, id: str) -> dict[str, Receipt]:
        """Receipts of the steps that stand, in the order in which they were done."""
        standing: dict[str, Receipt] = {}
        for entry in self._entries(id):
            if entry.kind == "receipt":
                standing.pop(entry.step, None)
                standing[entry.step] = entry.receipt
            elif entry.kind == "undone":
                standing.pop(entry.step, None)
        return standing

    def journal(self, id: str) -> list[Json]:
        """Every entry as it was written, oldest first."""
        return [
            {"at": e.at, "kind": e.kind, "step": e.step, "receipt": e.receipt}
            for e in self._entries(id)
        ]

    def open_intent(self, id: str) -> str | None:
        """The step that was begun, and neither finished nor undone."""
        last = {entry.step: entry.kind for entry in self._entries(id)}
        begun = [step for step, kind in last.items() if kind == "intent"]
        return begun[-1] if begun else None

    # ---- events, passes, progress ----------------------------------------------------------------

    def event(self, event: Event) -> int:
        """Keep an event; answers with its row."""
        return self._append(
            _events,
            event.transfer,
            at=event.at,
            step=event.step,
            kind=event.kind,
            facts=event.facts,
        )

    def events(self, id: str, after: int = 0) -> list[Numbered]:
        """Events in the order they happened, from behind row ``after``."""
        rows = self._of(_events, id, _events.c.row > after)
        return [
            Numbered(
                row=r.row,
                event=Event(at=r.at, transfer=r.transfer, step=r.step, kind=r.kind, facts=r.facts),
            )
            for r in rows
        ]

    def add_pass(self, id: str, one: Pass) -> None:
        self._append(_passes, id, figures=one.model_dump(mode="json"))

    def passes(self, id: str) -> list[Pass]:
        return [Pass.model_validate(r.figures) for r in self._of(_passes, id)]

    def put_progress(self, id: str, progress: Progress) -> None:
        """Replace what is known of the wait that is going on."""
        said = progress.model_dump(mode="json")
        with self._db.begin() as db:
            db.execute(sa.delete(_progress).where(_progress.c.transfer == id))
            db.execute(sa.insert(_progress).values(transfer=id, progress=said))

    def progress(self, id: str) -> Progress | None:
        rows = self._read(sa.select(_progress).where(_progress.c.transfer == id))
        return Progress.model_validate(rows[0].progress) if rows else None

    # ---- requests --------------------------------------------------------------------------------

    def request(self, id: str, what: str, facts: Json | None = None) -> Request:
        """Leave a message for whoever carries the transfer, now or later."""
        at = time.time()
        row = self._append(_requests, id, at=at, what=what, facts=facts or {}, taken_at=None)
        return Request(id=row, transfer=id, what=what, facts=facts or {}, at=at)

    def pending(self, id: str) -> list[Request]:
        """Messages that nobody has acted on yet, oldest first."""
        return [
            Request(id=r.row, transfer=r.transfer, what=r.what, facts=r.facts, at=r.at)
            for r in self._of(_requests, id, _requests.c.taken_at.is_(None))
        ]

    def requests(self, id: str) -> list[Json]:
        """All messages there ever were, oldest first; ``taken_at`` is None for what waits."""
        return [
            {"at": r.at, "what": r.what, "facts": r.facts, "taken_at": r.taken_at}
            for r in self._of(_requests, id)
        ]

    def taken(self, request: Request) -> None:
        """The message has been acted on."""
        mine = sa.and_(_requests.c.row == request.id, _requests.c.taken_at.is_(None))
        self._write(sa.update(_requests).where(mine).values(taken_at=time.time()))

    # ---- who carries it --------------------------------------------------------------------------

    def directory(self, id: str) -> Path:
        """Where files of one transfer lie: its lock, the engine's database, logs."""
        path = self.root / "transfers" / id
        for folder in (path.parent, path):
            folder.mkdir(mode=0o700, exist_ok=True)
        return path

    def running(self, id: str) -> int | None:
        """The pid of the process that carries the transfer now, None when there is none."""
        try:
            lock = os.open(self.root / "transfers" / id / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            # Shared, so that two who only look do not see each other.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.pread(lock, 32, 0) or b"0")
        else:
            return None
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def hold(self, id: str) -> Iterator[None]:
        """Carry this transfer alone. Raises ``Refused`` while another process does."""
        lock = os.open(self.directory(id) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for _ in range(_LOCK_TRIES):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # perhaps only somebody who looks
                    time.sleep(_LOCK_PAUSE_S)
            else:
                pid = os.pread(lock, 32, 0).decode() or "?"
                raise errors.Refused(
                    f"transfer '{id}' is being carried by process {pid}",
                    data="nothing was changed",
                    hint=f"volferry watch {id}   shows what it does",
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(lock)

    # ---- below -----------------------------------------------------------------------------------

    def _check_schema(self) -> None:
        with self._db.begin() as db:
            _schema.create(db, checkfirst=True)
            found = db.execute(sa.select(sa.func.max(_schema.c.version))).scalar()
            if found in (None, SCHEMA):
                _tables.create_all(db)
            if found is None:
                db.execute(sa.insert(_schema).values(version=SCHEMA))
        if found not in (None, SCHEMA):
            raise errors.Refused(
                f"the store has schema {found}, this volferry knows {SCHEMA}"
                f" ({self._db.url.render_as_string(hide_password=True)})",
                data="nothing was read or changed",
                hint="use the volferry that wrote it, or a newer one"
                if found > SCHEMA
                else "end its transfers with the volferry that wrote it; --state DIR or "
                "VOLFERRY_STATE names another place for new ones",
            )

    def _refusal(self, transfer: Transfer) -> errors.Refused:
        """Why a transfer cannot have all of its sources."""
        wanted = [source.id for source in transfer.plan.cloud.sources]
        other = self._read(
            sa.select(_transfers.c.id, _transfers.c.state, _sources.c.source)
            .join(_sources)
            .where(
                _sources.c.source.in_(wanted),
                sa.not_(_sources.c.ended),
                _transfers.c.id != transfer.id,
            )
        )
        taken = ", ".join(f"'{r.source}'" for r in other) or " or ".join(map(repr, wanted))
        names = ", ".join(dict.fromkeys(f"'{r.id}' ({r.state})" for r in other))
        names = names or "another transfer"
        first = other[0].id if other else "ID"
        return errors.Refused(
            f"volume {taken} is already being moved by {names}",
            data="nothing was changed",
            hint=f"volferry resume {first}     goes on with it\n"
            f"volferry rollback {first}   takes it back",
        )

    def _entries(self, id: str) -> Sequence[sa.Row[Any]]:
        return self._of(_journal, id)

    def _of(
        self, table: sa.Table, id: str, *conditions: sa.ColumnElement[bool]
    ) -> Sequence[sa.Row[Any]]:
        mine = sa.select(table).where(table.c.transfer == id, *conditions)
        return self._read(mine.order_by(table.c.row))

    def _append(self, table: sa.Table, id: str, *, at: float | None = None, **values: Any) -> int:
        values |= {"transfer": id, "at": time.time() if at is None else at}
        with self._db.begin() as db:
            key = db.execute(sa.insert(table).values(values)).inserted_primary_key
        assert key is not None
        return int(key[0])

    def _update(self, id: str, values: dict[str, Any]) -> None:
        changes = [sa.update(_transfers).where(_transfers.c.id == id).values(values)]
        if "ended" in values:
            claims = sa.update(_sources).where(_sources.c.transfer == id)
            changes.append(claims.values(ended=values["ended"]))
        try:
            changed = self._write(*changes)
        except sa.exc.IntegrityError as fault:  # it had ended, and another has begun since
            raise self._refusal(self.transfer(id)) from fault
        if not changed:
            self.transfer(id)  # says what exists

    def _write(self, *statements: sa.Insert | sa.Update) -> int:
        """All of them or none. -> rows that the last one concerned"""
        with self._db.begin() as db:
            return [db.execute(statement).rowcount for statement in statements][-1]

    def _read(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._db.connect().execution_options(writes=False) as db:
            return db.execute(statement).all()


def _transfer(row: sa.Row[Any]) -> Transfer:
    return Transfer(
        id=row.id,
        state=State(row.state),
        plan=Plan.model_validate(row.plan),
        created_at=row.created_at,
        step=row.step,
        error=row.error,
    )


def _open_url(url: str) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername.startswith("postgresql+psycopg"):
        parsed = parsed.set(query={**_OF_LIBPQ, **parsed.query})
    where = parsed.get_backend_name()
    try:
        db = sa.create_engine(parsed)
    except ImportError as missing:
        raise errors.Usage(
            f"the journal is on {where}, whose driver cannot be loaded: {missing}",
            data="nothing was changed",
            hint="pip install 'volferry[postgresql]'   installs psycopg",
        ) from None
    where += f" at {parsed.host or 'a local socket'}"
    own_s = parsed.query.get("connect_timeout")
    connect = f"{own_s} s (connect_timeout in its URL)" if own_s else "its driver's own limit"

    @sa.event.listens_for(db, "begin")
    def _limit(connection: sa.Connection) -> None:
        if db.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{_WAIT_S}s'")

    @sa.event.listens_for(db, "handle_error")
    def _say(context: sa.ExceptionContext) -> Exception | None:
        if not isinstance(context.sqlalchemy_exception, sa.exc.OperationalError):
            return None
        limit = f"{_WAIT_S} s (a fixed limit)" if context.connection else connect
        hint = "psql with the journal's URL shows whether the database is there"
        return _unusable(f"on {where}", context.original_exception, f"; it has {limit}", hint)

    return db


def _unusable(where: str, fault: BaseException, limit: str, hint: str) -> errors.Stop:
    complaint = str(fault).strip().partition("\n")[0]
    return errors.Stop(
        f"the journal {where} cannot be used: {complaint}{limit}",
        data="what was written to it is kept; what the guest or the cloud is doing goes on",
        hint=hint,
    )


def _open_file(path: Path) -> sa.Engine:
    # Before SQLite does: it gives its journal files the mode that this one has.
    os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sa.create_engine(sa.URL.create("sqlite", database=str(path)))

    def unusable(fault: BaseException, limit: str = "") -> errors.Stop:
        hint = f"fuser {path}   shows who has it, 'df {path.parent}' whether there is space"
        return _unusable(f"{path}", fault, limit, hint)

    def patiently(connection: sqlite3.Connection, statement: str) -> None:
        ends = time.monotonic() + _WAIT_S
        while True:
            try:
                connection.execute(statement)
            except sqlite3.OperationalError as fault:
                # The low byte is the kind: https://www.sqlite.org/rescode.html
                if fault.sqlite_errorcode & 0xFF not in (
                    sqlite3.SQLITE_BUSY,
                    sqlite3.SQLITE_LOCKED,
                ):
                    raise unusable(fault) from fault
                if time.monotonic() >= ends:
                    raise unusable(fault, f"; it has {_WAIT_S} s (a fixed limit)") from fault
            else:
                return

    @sa.event.listens_for(db, "connect")
    def _set_up(connection: sqlite3.Connection, _record: Any) -> None:
        # sqlite3 would begin transactions by itself, and only before some statements.
        connection.isolation_level = None
        # SQLite sleeps where no handler of a signal runs: a Ctrl-C would not be heard meanwhile.
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        patiently(connection, "PRAGMA journal_mode = WAL")
        # WAL's usual NORMAL may lose the last commits in a power cut: exactly the intent.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(db, "begin")
    def _begin(connection: sa.Connection) -> None:
        # IMMEDIATE for whoever will write, or two of them deadlock on the upgrade of their locks.
        writes = connection.get_execution_options().get("writes", True)
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        patiently(driver, "BEGIN IMMEDIATE" if writes else "BEGIN")

    @sa.event.listens_for(db, "handle_error")
    def _say(context: sa.ExceptionContext) -> Exception | None:
        fault = context.original_exception
        # SQLITE_ERROR is what we asked for wrongly; all others are about the file.
        if isinstance(fault, sqlite3.OperationalError):
            ours = getattr(fault, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
            return None if ours else unusable(fault)
        return None

    return db

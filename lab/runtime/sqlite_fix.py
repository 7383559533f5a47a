"""SQLite under several threads and processes; importing it is enough.

Every transaction takes the write lock at BEGIN: a deferred one that upgrades later fails at once
with "database is locked", whatever the busy timeout. WAL lets readers go on meanwhile.
"""

from sqlalchemy import event
from sqlalchemy.engine import Engine


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _begin_immediate(conn, cursor, statement, parameters, context, executemany):
    if statement == "BEGIN" and conn.dialect.name == "sqlite":
        statement = "BEGIN IMMEDIATE"
    return statement, parameters


@event.listens_for(Engine, "connect")
def _set_pragmas(dbapi_connection, record):
    if type(dbapi_connection).__module__.startswith("sqlite3"):
        dbapi_connection.execute("PRAGMA journal_mode=WAL")
        dbapi_connection.execute("PRAGMA synchronous=OFF")
        dbapi_connection.execute("PRAGMA busy_timeout=60000")

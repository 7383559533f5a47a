#!/usr/bin/env python3
"""A load of committed transactions, run inside the guest; standard library and psql only.

    bank.py load FILE    commits one row after the other; writes each number to FILE, and forces it
                         to the disk, once the database has acknowledged the commit
    bank.py check FILE   compares FILE with the table: how many were acknowledged, how many are lost

The file lies on the server's root disk, so that nothing about the volume can change what was
acknowledged. psql prints the result of an autocommitted statement after its commit: PostgreSQL
sends it only then (``exec_simple_query``: "so that any end-of-transaction errors are reported
before the command-complete message is issued").
"""

import json
import os
import subprocess
import sys
import time

PSQL = ["psql", "-p", os.environ.get("BANK_PORT", "5499"), "-qAtX", "-v", "ON_ERROR_STOP=1", "bank"]

INSERT = "INSERT INTO payments VALUES ({}, repeat('x', 400)) RETURNING number;\n"


def load(path):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with open(path) as before:
        number = max((int(line) for line in before if line.strip()), default=0)
    session = None
    while True:
        if session is None or session.poll() is not None:
            session = subprocess.Popen(
                PSQL,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                universal_newlines=True,
                bufsize=1,
            )
        # A number that was not acknowledged may have been committed all the same: it is not used
        # again, so that a row can only stand for one attempt.
        number += 1
        try:
            session.stdin.write(INSERT.format(number))
            answer = session.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if answer == str(number):
            os.write(file, "{}\n".format(number).encode())
            os.fsync(file)
        else:
            session.kill()
            session.wait()
            session = None
            time.sleep(0.1)


def check(path):
    with open(path) as file:
        acknowledged = {int(line) for line in file if line.strip()}
    rows = subprocess.check_output(PSQL + ["-c", "SELECT number FROM payments"], timeout=120)
    stored = {int(line) for line in rows.split()}
    lost = acknowledged - stored
    print(json.dumps({"acknowledged": len(acknowledged), "lost": len(lost), "rows": len(stored)}))


if __name__ == "__main__":
    {"load": load, "check": check}[sys.argv[1]](sys.argv[2])

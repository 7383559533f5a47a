"""The OpenSSH client as a subprocess.

The user's configuration, jump hosts, agents, certificates and known hosts are then right by
definition, and host keys are always checked. One supervised master connection (``ssh -M``, not
``-f``, so that it is our child) is shared by short-lived clients. It watches its stdin, which the
kernel closes when we die in whatever way; with ``-N`` it would outlive us for ever.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from volferry.channels import Channel, Completed, environment, quote, run_here
from volferry.errors import Retry, Stop, Usage

# A guest that is busy or swaps lets its sshd wait; nobody is there is told at once, by a reset.
CONNECT_S = 60.0

_OPTIONS = (
    "-o", "BatchMode=yes",
    # ssh takes the first value that it obtains (ssh_config(5)), so these win over any file: what is
    # said over this connection is carried out as root, and must not be said to whoever answers.
    "-o", "StrictHostKeyChecking=yes",
    "-o", "NoHostAuthenticationForLocalhost=no",
    # A dead network is noticed after 3 x 5 s instead of never.
    "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3",
    "-o", "ForwardAgent=no",
    "-o", "ForwardX11=no",
    "-o", "ClearAllForwardings=yes",
    "-o", "RequestTTY=no",
    # Else our connection goes to the background when we end, and stays there as root.
    "-o", "ControlPersist=no",
)  # fmt: skip

MASTER_ENDS_S = 2.0
PATIENT_S = 3.0
"""For the address that would be taken first, when another one answers as well."""
_SSH_FAILED = 255
"""ssh's own exit status "if an error occurred" (ssh(1)); a remote command may use it as well."""

_UNTOUCHED = "nothing was changed in the guest or the cloud by this"

# What the client says on standard error, and what an operator can do about it.
_PERSON_MUST_ACT = {
    "remote host identification has changed": (
        "the host key of {where} is not the one that is known",
        "if the server was rebuilt, remove the old key with ssh-keygen -R and check the new one",
    ),
    "host key verification failed": (
        "the host key of {where} is not known or not the right one",
        "connect once by hand with ssh and compare the key with the server's console log",
    ),
    "permission denied": (
        "{where} refused the login",
        "volferry uses ssh as you do: 'ssh {where} true' has to work without a question",
    ),
    "too many authentication failures": (
        "{where} refused the login after too many keys",
        "name the key with IdentityFile and IdentitiesOnly=yes in your ssh configuration",
    ),
    "could not resolve hostname": (
        "the name of {where} cannot be resolved",
        "give the address with --ssh user@host or a Host entry in your ssh configuration",
    ),
    "bad configuration option": (
        "the ssh configuration has an error",
        "see what 'ssh -G {where}' says",
    ),
    "bad owner or permissions": (
        "ssh refuses its configuration file",
        "see what 'ssh -G {where}' says",
    ),
}


def explain(where: str, stderr: str) -> Stop | Retry:
    """What the ssh client's complaint means: ``Stop`` where only a person can help."""
    said = stderr.lower()
    for sign, (what, hint) in _PERSON_MUST_ACT.items():
        if sign in said:
            return Stop(what.format(where=where), data=_UNTOUCHED, hint=hint.format(where=where))
    lines = [line.strip() for line in stderr.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else "no answer"
    return Retry(
        f"{where} is not reached by ssh: {last}",
        data=_UNTOUCHED,
        hint=f"'ssh {where} true' has to work; --ssh user@host gives another address",
    )


def _user_id(where: str, said: Completed) -> str:
    """What ``id -u`` answered. Raises ``Stop`` when no shell ran it.

    An account may log in and run nothing: nologin(8) says so on standard output and ends with 1,
    cloud images answer root with ``Please login as the user "debian"``.
    """
    lines = said.text.strip().splitlines()  # a talkative .bashrc comes before the answer
    if said.code == 0 and lines and lines[-1].strip().isdigit():
        return lines[-1].strip()
    words = lines[-1].strip() if lines else said.complaint
    raise Stop(
        f"{where} may log in but runs no commands: {words}",
        data=_UNTOUCHED,
        hint="--ssh user@host with an account that has a shell and may use 'sudo -n'",
    )


class Ssh(Channel):
    """``destination`` is anything that ``ssh`` takes; ``config`` a file for ``ssh -F``."""

    def __init__(self, destination: str, config: str = "", *, connect_s: float = CONNECT_S) -> None:
        if destination.startswith("-"):
            raise Usage(f"'{destination}' is not an ssh destination", hint="--ssh user@host")
        if config and not Path(config).is_file():
            raise Usage(f"the ssh configuration '{config}' is not a file", hint="--ssh-config FILE")
        self.where = destination
        self._config = ["-F", config] if config else []
        self._connect_s = connect_s
        self._folder = ""
        self._master: asyncio.subprocess.Process | None = None

    async def open(self) -> None:
        if shutil.which("ssh") is None:
            raise Stop(
                "the OpenSSH client is missing on this machine",
                data=_UNTOUCHED,
                hint="install openssh-client, or run volferry on the server with --local",
            )
        await self._connect()
        who = await run_here(
            self._command(["id", "-u"]), timeout_s=self._connect_s, flag="--connect-timeout"
        )
        if who.code == _SSH_FAILED:
            raise explain(self.where, who.err.decode(errors="replace"))
        self.is_root = _user_id(self.where, who) == "0"

    async def _connect(self) -> None:
        # A unix socket's path may have 104 characters: a folder of its own, close to the root.
        self._folder = self._folder or tempfile.mkdtemp(prefix="volferry-")
        Path(self._socket).unlink(missing_ok=True)
        self._master = await asyncio.create_subprocess_exec(
            "ssh", *self._config, *_OPTIONS,
            # Longer than ours, which knows the name of its flag.
            "-o", f"ConnectTimeout={int(self._connect_s) + 5}",
            "-M", "-S", self._socket, "--", self.where, quote(["cat"]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._connect_s):
                while not Path(self._socket).exists():
                    if self._master.returncode is not None:
                        break
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self._end_master()
            late = f"no connection within {self._connect_s:g} s (--connect-timeout)"
            raise explain(self.where, late) from None
        if self._master.returncode is not None:
            assert self._master.stderr is not None
            said = (await self._master.stderr.read()).decode(errors="replace")
            raise explain(self.where, said)

    @property
    def _socket(self) -> str:
        return f"{self._folder}/mux"

    def _command(self, argv: Sequence[str]) -> list[str]:
        return [
            "ssh", *self._config, *_OPTIONS, "-S", self._socket, "-o", "ControlMaster=no",
            "--", self.where, quote(argv),
        ]  # fmt: skip

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float, root: bool = False
    ) -> Completed:
        if self._master is not None and self._master.returncode is not None:
            await self._connect()
        done = await super().run(argv, stdin=stdin, timeout_s=timeout_s, root=root)
        if done.code == _SSH_FAILED and not done.out:
            # Both the client and the command may say 255; only the client leaves no master behind
            # or names itself on standard error.
            said = done.err.decode(errors="replace")
            named = any(sign in said for sign in ("ssh:", "mux_client", "Connection "))
            if named or await self._master_ends():
                raise explain(self.where, said)
        return done

    async def _master_ends(self) -> bool:
        """When the connection breaks, its clients say 255 and nothing else, and may do so before
        the end of the master is known here (seen when a guest's power was cut)."""
        if self._master is None:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MASTER_ENDS_S):
                await self._master.wait()
        return self._master.returncode is not None

    async def _end_master(self) -> None:
        if self._master is not None and self._master.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # It leads a session of its own: a ProxyCommand does not always end with it.
                os.killpg(self._master.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(5):
                    await self._master.wait()
            except TimeoutError:
                self._master.kill()
                await self._master.wait()
        self._master = None

    async def close(self) -> None:
        await self._end_master()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


async def names(server_name: str, config: str = "", *, connect_s: float = CONNECT_S) -> bool:
    """Whether the user's ssh configuration has a ``Host`` entry that names this server.

    ``ssh -G`` resolves a name without connecting. An entry names the server when the answer
    differs from that for a name that nobody has by more than the name itself; ``Host *`` makes no
    difference.
    """
    if not server_name or server_name.startswith("-") or any(c.isspace() for c in server_name):
        return False
    nobody = f"nobody-{secrets.token_hex(8)}"
    options = ["-F", config] if config else []
    answers = []
    for name in (server_name, nobody):
        done = await run_here(
            ["ssh", *options, "-G", "--", name], timeout_s=connect_s, flag="--connect-timeout"
        )
        if done.code != 0:
            raise explain(server_name, done.err.decode(errors="replace"))
        # ssh -G prints the name in lower case where it stands for the host name.
        answers.append(done.text.replace(name, "NAME").replace(name.lower(), "NAME"))
    return answers[0] != answers[1]


async def answers(address: str, port: int = 22, *, timeout_s: float) -> bool:
    """Whether something accepts a TCP connection there. Sends nothing."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def first_that_answers(addresses: Sequence[str], *, within_s: float) -> str:
    """The first of them that accepts a connection; one that is silent for ``PATIENT_S`` gives way
    to a later one that does not. Empty when none does ``within_s`` seconds."""
    asked = {a: asyncio.create_task(answers(a, timeout_s=within_s)) for a in addresses}
    patient_until = time.monotonic() + PATIENT_S
    try:
        for address, answer in asked.items():
            await asyncio.wait({answer}, timeout=max(0.0, patient_until - time.monotonic()))
            if answer.done() and answer.result():
                return address
        while asked:
            done, _ = await asyncio.wait(asked.values(), return_when=asyncio.FIRST_COMPLETED)
            for address in [one for one, answer in asked.items() if answer in done]:
                if asked.pop(address).result():
                    return address
        return ""
    finally:
        for answer in asked.values():
            answer.cancel()


async def find(
    server_name: str,
    addresses: Sequence[str],
    *,
    wanted: str = "",
    config: str = "",
    connect_s: float = CONNECT_S,
) -> Ssh:
    """The way into a server: what the user said, else a ``Host`` entry, else an address.

    Raises ``Stop`` when there is none, ``Retry`` when no address answers, naming what was tried.
    """
    if wanted:
        return Ssh(wanted, config, connect_s=connect_s)
    if await names(server_name, config, connect_s=connect_s):
        return Ssh(server_name, config, connect_s=connect_s)
    address = await first_that_answers(addresses, within_s=connect_s)
    if address:
        return Ssh(address, config, connect_s=connect_s)
    hint = (
        f"--ssh user@host, or a 'Host {server_name}' entry in "
        f"{config or os.fspath(Path('~/.ssh/config'))}, or --local on the server itself"
    )
    if not addresses:
        raise Stop(
            f"no way by ssh into server '{server_name}': it has no address",
            data=_UNTOUCHED,
            hint=hint,
        )
    raise Retry(
        f"no way by ssh into server '{server_name}': nothing took a connection at "
        f"{', '.join(addresses)}; it had {connect_s:g} s (--connect-timeout)",
        data=_UNTOUCHED,
        hint=hint,
    )

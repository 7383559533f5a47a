"""The way into a guest. ``ssh`` is the real client; only a server is missing here."""

import asyncio

import pytest

from volferry.channels import Channel, Completed, quote, run_here, ssh
from volferry.channels.ssh import Ssh, _user_id, explain, find, names
from volferry.errors import Retry, Stop, Usage

HOSTILE = ["", " ", "a b", "$(id)", "`id`", "'", '"', "\\", "-n", "\n", "a\tb", "*", "ü", "#", "~"]


async def test_what_is_quoted_arrives_as_it_was():
    done = await run_here(["sh", "-c", quote(["printf", "%s\\0", *HOSTILE])], timeout_s=10)

    assert done.text.split("\0")[:-1] == HOSTILE


async def test_a_command_that_does_not_end_is_ended_at_its_deadline():
    with pytest.raises(Retry, match="'sleep' gave no answer within 0 s"):
        await run_here(["sleep", "30"], timeout_s=0.2)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("@@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@@", "is not the one that is"),
        ("Host key verification failed.", "is not known or not the right one"),
        ("debian@h: Permission denied (publickey).", "refused the login"),
        ("ssh: Could not resolve hostname h: Name or service not known", "cannot be resolved"),
    ],
)
def test_what_only_a_person_can_mend_stops(said, what):
    error = explain("debian@h", said)

    assert isinstance(error, Stop)
    assert what in error.what and error.hint and error.data


def test_a_changed_host_key_is_told_apart_from_an_unknown_one():
    both = "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed."

    assert "not the one that is known" in explain("h", both).what


def test_a_server_that_does_not_answer_is_tried_again():
    error = explain("h", "ssh: connect to host h port 22: Connection refused")

    assert isinstance(error, Retry)
    assert "Connection refused" in error.what


@pytest.mark.parametrize(("master_lives_s", "is_lost"), [(0.3, True), (60, False)])
async def test_a_silent_255_is_a_broken_connection_when_the_master_ends_with_it(
    monkeypatch, master_lives_s, is_lost
):
    async def silent(self, argv, **more):
        return Completed(255, b"", b"", 0.1)

    monkeypatch.setattr(Channel, "run", silent)
    monkeypatch.setattr("volferry.channels.ssh.MASTER_ENDS_S", 1.0)
    channel = Ssh("debian@h")
    channel._master = await asyncio.create_subprocess_exec("sleep", str(master_lives_s))
    try:
        if is_lost:
            with pytest.raises(Retry):
                await channel.run(["true"], timeout_s=10)
        else:
            assert (await channel.run(["true"], timeout_s=10)).code == 255
    finally:
        if channel._master.returncode is None:
            channel._master.kill()
        await channel._master.wait()


@pytest.mark.parametrize(
    ("code", "out", "err"),
    [
        (1, b"This account is currently not available.\n", b""),
        (142, b'Please login as the user "debian" rather than the user "root".\n\n', b""),
        (127, b"", b"bash: id: command not found\n"),
        (0, b"", b""),
    ],
)
def test_an_account_that_runs_no_commands_stops_with_its_own_words(code, out, err):
    with pytest.raises(Stop, match="runs no commands: ") as stop:
        _user_id("debian@h", Completed(code, out, err, 0.1))

    assert (out or err).decode().strip() in stop.value.what
    assert stop.value.hint and stop.value.data


def test_a_talkative_shell_is_not_misheard():
    assert _user_id("h", Completed(0, b"Welcome, you have 3 mails\n0\n", b"", 0.1)) == "0"


async def test_a_host_entry_names_the_server_and_a_wildcard_does_not(tmp_path):
    config = tmp_path / "config"
    config.write_text("Host testsrv\n  User debian\nHost *\n  Port 2200\n")

    assert await names("testsrv", str(config))
    assert not await names("othersrv", str(config))


async def test_the_users_word_goes_before_any_entry(tmp_path):
    config = tmp_path / "config"
    config.write_text("Host testsrv\n  User debian\n")

    assert (await find("testsrv", [], wanted="root@here", config=str(config))).where == "root@here"
    assert (await find("testsrv", [], config=str(config))).where == "testsrv"


@pytest.fixture
def no_names(tmp_path):
    """An ssh configuration that knows no server."""
    config = tmp_path / "config"
    config.write_text("")
    return str(config)


async def test_no_way_in_names_what_was_tried(no_names):
    with pytest.raises(Retry, match=r"at 127\.0\.0\.1; it had 7 s \(--connect-timeout\)"):
        # Port 22 of the loopback address of a machine without a server.
        await find("testsrv", ["127.0.0.1"], config=no_names, connect_s=7)
    with pytest.raises(Stop, match="it has no address"):
        await find("testsrv", [], config=no_names)


async def test_an_address_that_is_slow_to_answer_has_the_whole_connect_timeout(monkeypatch):
    """Three seconds are nothing for a guest that swaps; but where another address answers, the
    silent one is not waited for."""
    takes_s = {"first": 0.3, "second": 0.5, "refused": None}

    async def answers(address, port=22, *, timeout_s):
        assert timeout_s == 60
        await asyncio.sleep(takes_s[address] or 0)
        return takes_s[address] is not None

    monkeypatch.setattr(ssh, "answers", answers)
    monkeypatch.setattr(ssh, "PATIENT_S", 0.1)

    async def chosen(*addresses):
        return await ssh.first_that_answers(addresses, within_s=60)

    assert await chosen("first") == "first"
    assert await chosen("refused", "second") == "second"
    assert await chosen("second", "first") == "first"
    assert await chosen("refused") == ""
    monkeypatch.setattr(ssh, "PATIENT_S", 0.6)
    assert await chosen("second", "first") == "second", "as the cloud lists them"


@pytest.mark.parametrize("destination", ["-oProxyCommand=touch /tmp/x", "-F/etc/passwd"])
def test_a_destination_cannot_be_an_option(destination):
    with pytest.raises(Usage):
        Ssh(destination)


async def test_nobody_at_the_other_end_is_said_within_the_deadline(tmp_path):
    config = tmp_path / "config"
    config.write_text("Host gone\n  HostName 127.0.0.1\n  Port 1\n")

    with pytest.raises(Retry, match="Connection refused"):
        await Ssh("gone", str(config)).open()

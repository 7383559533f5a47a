"""Whole transfers on real services and real guests, with faults where they are real there.

``make test`` carries a few; all of them, each with both methods, with VOLFERRY_EVERY_FAULT=1, as
``make test-faults`` does.
"""

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.lab.scene import DIES_ON_THE_TARGET, MOUNT, PATIENT_S, Scene
from tests.lab.volferry_command import UNIT

pytestmark = pytest.mark.lab

METHODS = ("rsync", "mirror")

EVERY = pytest.mark.skipif(
    not os.environ.get("VOLFERRY_EVERY_FAULT"), reason="make test-faults carries it"
)


def methods(*always: str) -> Any:
    """Both methods, of which ``make test`` carries these."""
    return pytest.mark.parametrize(
        "scene",
        [name if name in always else pytest.param(name, marks=EVERY) for name in METHODS],
        indirect=True,
    )


@methods("mirror")
def test_a_cloud_that_fails_at_every_change_and_ssh_that_is_cut_in_the_cutover(
    scene: Scene,
) -> None:
    """Each changing request of the transfer meets a fault; nothing is made twice. And the cutover
    is the guest's: its outcome is read afterwards."""
    faults = [
        ("502 after", "POST", r"/snapshots$"),
        ("cut after", "POST", r"/volumes$"),
        ("503", "POST", r"/action$"),
        ("500 after", "POST", r"/os-volume_attachments$"),
        ("cut after", "DELETE", r"/os-volume_attachments/"),
        ("504 after", "DELETE", r"/snapshots/"),
        ("expired token", "GET", r"/volumes/detail$"),
        ("429", "GET", r"/snapshots/"),
        ("cut before", "GET", r"/os-volume_attachments$"),
    ]
    for fault in faults:
        scene.proxy.order(*fault)
    running = scene.begin("--type", "cbs-premium", "--stop", "sleep 10", "--start", "true")
    scene.when_phase("stopping")
    scene.relay.cut(1)
    assert running.wait(900) == 0, scene.volferry.log.read_text()
    for name, *_ in faults:
        assert scene.proxy.met[name] >= 1, name
    target = scene.check_done()
    assert scene.lab.volume(target)["volume_type"] == "cbs-premium"
    assert scene.volferry.report()["cutover"]["downtime_s"] > 10


@methods()
def test_a_transfer_beside_a_cloud_that_fails_one_request_in_five(scene: Scene) -> None:
    kinds = ["503", "500 after", "cut before", "cut after", "429", "expired token"]
    count = iter(range(10**9))

    def chance(method: str, path: str) -> str:
        number = next(count)
        return kinds[number // 5 % len(kinds)] if number % 5 == 4 and "auth" not in path else ""

    scene.proxy.chance = chance
    scene.volferry(*scene.words("--type", "cbs-premium"), code=None)
    scene.resume_to_the_end()
    scene.check_done()


# ---- the way into the guest ----------------------------------------------------------------------


@methods()
@pytest.mark.parametrize("seconds", [1, 60])
def test_ssh_is_cut_in_the_middle_of_the_sync(scene: Scene, seconds: float) -> None:
    running = scene.begin("--type", "cbs-standard")
    scene.when(running, "sync")
    scene.relay.cut(seconds)
    assert running.wait(600) == 0, scene.volferry.log.read_text()
    scene.check_done()


@methods()
@pytest.mark.parametrize("seconds", [1, 60])
def test_ssh_is_cut_in_the_middle_of_the_cutover(scene: Scene, seconds: float) -> None:
    """The cutover is the guest's: it ends in time, and its outcome is read afterwards."""
    running = scene.begin("--type", "cbs-standard", "--stop", "sleep 10", "--start", "true")
    scene.when_phase("stopping")
    scene.relay.cut(seconds)
    assert running.wait(600) == 0, scene.volferry.log.read_text()
    scene.check_done()
    report = scene.volferry.report()
    assert report["cutover"]["downtime_s"] > 10


@methods()
def test_ssh_is_cut_for_good_in_the_middle_of_the_cutover(scene: Scene) -> None:
    """The service comes up on the target without us; going on is possible from the journal."""
    running = scene.begin("--type", "cbs-standard", "--stop", "sleep 5", "--start", "true")
    scene.when_phase("stopping")
    scene.relay.cut()
    scene.when_phase("done")
    scene.until(scene.is_active, "the service is back without anybody's help")
    running.send_signal(signal.SIGINT)
    assert running.wait(60) != 0
    scene.relay.heal()
    scene.resume_to_the_end()
    scene.check_done()


@methods()
@pytest.mark.parametrize("step", ["attach", "sync", "detach"])
def test_ssh_is_cut_for_good_outside_the_cutover(scene: Scene, step: str) -> None:
    """It is waited for as long as --retry-timeout says; then the transfer stands, and goes on."""
    limits = ("--connect-timeout", "20s", "--answer-timeout", "60s", "--retry-timeout", "10s")
    running = scene.begin("--type", "cbs-standard", *limits)
    scene.when(running, step)
    scene.relay.cut()
    assert running.wait(600) == 1, scene.volferry.log.read_text()
    told = scene.volferry.log.read_text()
    assert "error: " in told, told
    assert re.search(r"\(--(retry|answer|connect)-timeout\)", told.rpartition("error: ")[2]), told
    assert f"volferry resume {scene.volferry.transfer()}" in told
    scene.until(scene.is_active, "the service runs")
    scene.relay.heal()
    scene.resume_to_the_end()
    scene.check_done()


# ---- the guest is reset --------------------------------------------------------------------------

SLOW_UDEV = "/etc/udev/rules.d/01-slow.rules"


@pytest.fixture
def slow_udev(scene: Scene) -> Iterator[None]:
    """udev takes its time for a disk whose rule changed: between the commit and the mount."""
    scene.guest.sh(
        f"""echo 'ACTION=="change", SUBSYSTEM=="block", KERNEL=="vd*", PROGRAM="/bin/sleep 8"' """
        f"> {SLOW_UDEV}; udevadm control --reload"
    )
    yield
    scene.guest.sh(f"rm -f {SLOW_UDEV}; udevadm control --reload")


def begin_and_reset(scene: Scene, phase: str, *more: str) -> None:
    running = scene.begin("--type", "cbs-standard", *more)
    scene.when_phase(phase)
    scene.reset()
    running.wait(600)


@methods()
def test_a_hard_reset_inside_the_cutover(scene: Scene) -> None:
    """Before the commit: the boot brings up the source, and the guest takes the rest back."""
    begin_and_reset(scene, "stopping", "--stop", "sleep 20", "--start", "true")
    assert "the guest restarted in phase 'stopping'" in scene.volferry.log.read_text()
    scene.check(scene.guest.volume_id)
    scene.resume_to_the_end()
    scene.check_done()


@methods()
def test_a_reboot_inside_the_cutover(scene: Scene) -> None:
    """The agent is told to end like all others, and leaves its record for the boot that follows."""
    running = scene.begin("--type", "cbs-standard", "--stop", "sleep 20", "--start", "true")
    scene.when_phase("stopping")
    scene.reboot()
    running.wait(600)
    assert "the guest restarted in phase 'stopping'" in scene.volferry.log.read_text()
    scene.check(scene.guest.volume_id)
    scene.resume_to_the_end()
    scene.check_done()


@methods()
def test_a_reboot_in_the_middle_of_the_sync(scene: Scene) -> None:
    running = scene.begin("--type", "cbs-standard")
    scene.when(running, "sync")
    scene.reboot()
    running.wait(900)
    scene.resume_to_the_end()
    scene.check_done()


@methods()
def test_a_hard_reset_between_the_commit_and_the_mount(scene: Scene, slow_udev: None) -> None:
    """After the commit: the boot brings up the target, and the transfer goes forward."""
    begin_and_reset(scene, "committed")
    scene.resume_to_the_end()
    target = scene.check_done()
    assert target != scene.guest.volume_id


@methods()
def test_a_reboot_between_the_commit_and_the_mount(scene: Scene, slow_udev: None) -> None:
    """The agent is told to end by a boot that goes down in order, with nothing mounted."""
    running = scene.begin("--type", "cbs-standard")
    scene.when_phase("committed")
    scene.reboot()
    running.wait(600)
    scene.resume_to_the_end()
    assert scene.check_done() != scene.guest.volume_id


@methods()
@pytest.mark.parametrize("step", ["attach", "sync", "detach"])
def test_a_hard_reset_outside_the_cutover(scene: Scene, step: str) -> None:
    running = scene.begin("--type", "cbs-standard")
    scene.when(running, step)
    scene.reset()
    running.wait(900)
    scene.resume_to_the_end()
    scene.check_done()


@methods()
@pytest.mark.parametrize("step", ["attach", "sync"])
def test_a_hard_reset_and_then_a_rollback(scene: Scene, step: str) -> None:
    running = scene.begin("--type", "cbs-standard", "--cutover", "manual")
    scene.when(running, step)
    transfer = scene.volferry.transfer()
    running.kill()
    running.wait(30)
    scene.reset()
    scene.volferry("rollback", transfer)
    scene.check_rolled_back(transfer)


@EVERY
@pytest.mark.parametrize("scene", ["mirror lvm"], indirect=True)
@pytest.mark.parametrize("when", ["the source is there", "the source is gone"])
def test_a_hard_reset_while_neither_side_can_be_recognised(scene: Scene, when: str) -> None:
    """An initramfs finds the volume group on one disk or on none, and the boot ends all the same.
    With the source gone it may come as late as the target's head is being written."""
    disk = scene.guest.sh(f"lsblk -nrso KNAME,TYPE $(findmnt -nvro SOURCE {MOUNT})").split()[-2]
    running = scene.begin("--type", "cbs-standard")
    if when == "the source is there":
        scene.when_phase("awaiting")
    else:
        scene.guest.sh(f"while test -e /sys/block/{disk}; do sleep 0.05; done", timeout_s=PATIENT_S)
    scene.reset()
    running.wait(900)
    scene.resume_to_the_end()
    assert scene.check_done() != scene.guest.volume_id


# ---- somebody else -------------------------------------------------------------------------------


@methods()
def test_the_target_is_detached_by_somebody_else_in_the_middle_of_the_sync(scene: Scene) -> None:
    """The source stays live, and going back leaves nothing."""
    running = scene.begin("--type", "cbs-standard", "--cutover", "manual")
    scene.when(running, "sync")
    transfer = scene.volferry.transfer()
    [target] = scene.of_transfer(transfer, "volumes")
    scene.lab.detach(scene.guest.name, target)
    scene.volferry("cutover", transfer, "--now", code=None)
    assert running.wait(900) == 1, scene.volferry.log.read_text()
    what, data, _ = scene.volferry.log.read_text().rpartition("error: ")[2].split("\n", 2)
    assert target in what or re.match("cannot (read|write) .* of /dev/", what), what
    assert "untouched" in data or "it stays the live side" in data, data
    scene.check(scene.guest.volume_id)
    scene.volferry("rollback", transfer)
    scene.check_rolled_back(transfer)


@methods()
def test_the_source_is_deleted_by_somebody_else_after_the_commit(scene: Scene) -> None:
    """There is no way back then, and the way to the end does not ask for what is not there."""
    source = scene.guest.volume_id
    # A blank target: Cinder deletes no volume that has a snapshot.
    scene.volferry(*scene.words("--type", "cbs-standard", "--seed", "blank", "--hold"))
    transfer = scene.volferry.transfer()
    scene.lab.detach(scene.guest.name, source)
    scene.lab.delete_volume(source)
    refused = scene.volferry("rollback", transfer, "--accept-loss", code=1)
    assert "there is no way back: somebody deleted source" in refused.stderr
    assert f"volferry finish {transfer}" in refused.stderr
    told = scene.volferry("finish", transfer)
    assert "somebody deleted it" in told.stderr
    scene.check_done()
    assert source not in "".join(scene.volferry.data("report", transfer)["remaining"])


@methods()
@pytest.mark.parametrize("when", ["before the cutover", "after the commit"])
def test_the_server_is_deleted_by_somebody_else(scene: Scene, when: str) -> None:
    """With what was in its guest. Of the volumes each transfer says which one is the live one."""
    source, early = scene.guest.volume_id, when == "before the cutover"
    if early:
        running = scene.begin("--type", "cbs-standard", "--cutover", "manual")
        scene.when(running, "cutover")
        running.kill()
        running.wait(30)
    else:
        scene.volferry(*scene.words("--type", "cbs-standard", "--hold"))
    transfer = scene.volferry.transfer()
    [target] = scene.of_transfer(transfer, "volumes")
    scene.lab.delete_server(scene.guest.name)
    if early:
        told = scene.volferry("resume", transfer, code=1)
        assert "was deleted" in told.stderr and f"volferry rollback {transfer}" in told.stderr
        scene.volferry("rollback", transfer)
        assert scene.of_transfer(transfer) == []
        assert scene.lab.volume(source)["status"] == "available"
        return
    refused = scene.volferry("rollback", transfer, "--accept-loss", code=1)
    assert "there is no way back: somebody deleted server" in refused.stderr
    scene.volferry("finish", transfer)
    assert scene.of_transfer(transfer) == [target]
    assert scene.lab.volume(target)["status"] == "available"
    assert scene.lab.volume(source)["metadata"]["readonly"] == "True"


@methods("mirror")
def test_what_a_transfer_left_is_found_and_removed_by_gc(scene: Scene) -> None:
    """In the cloud and in the guest, and nothing else: what only looks like it stays."""
    kept, state = "/var/tmp/kept-state", "/var/lib/volferry"
    scene.volferry(*scene.words("--type", "cbs-standard", "--hold"))
    transfer = scene.volferry.transfer()
    scene.guest.sh(f"cp -a {state} {kept}")
    scene.lab.knobs.set("delete_snapshot", fail=1)
    told = scene.volferry("finish", transfer)
    [snapshot] = scene.of_transfer(transfer, "snapshots")
    assert f"volferry gc: snapshot '{snapshot}'" in told.stdout, told.stdout
    assert scene.guest.leftovers() == "", "the agent goes first"
    # As an operator would; a member may delete what is in `error` only.
    reset = {"os-reset_status": {"status": "error"}}
    scene.lab.admin.post("block-storage", f"/snapshots/{snapshot}/action", reset)
    scene.guest.sh(f"mv {kept} {state}; cp -a {state}/{transfer} {state}/tr-of-somebody-else")
    decoy = scene.lab.member.post(
        "block-storage",
        "/volumes",
        {"volume": {"size": 1, "name": "decoy", "metadata": {"volferry:transfer": transfer}}},
    )["volume"]["id"]
    try:
        listed = {one["id"]: one["verdict"] for one in scene.volferry.data("gc")}
        assert (listed[snapshot], listed[decoy]) == ("garbage", "mark only")
        assert listed[f"{state}/{transfer}"] == "garbage"
        assert listed[f"{state}/tr-of-somebody-else"] == "mark only"
        scene.volferry("gc", "--yes")
        assert scene.of_transfer(transfer, "snapshots") == []
        assert scene.guest.sh(f"ls {state}").split() == ["tr-of-somebody-else"]
        assert scene.lab.volume(decoy)["name"] == "decoy"
    finally:
        scene.guest.sh(f"rm -rf {state}")
        scene.lab.delete_volume(decoy)
    scene.check(scene.volferry.report()["moves"][0]["target"]["id"])


# ---- units and clocks ----------------------------------------------------------------------------


@methods()
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ExecStop=/bin/sleep 400\nTimeoutStopSec=500", "--cutover-timeout"),
        ("ExecStop=/bin/sh -c 'kill -9 $MAINPID; sleep 6'", ""),
        (DIES_ON_THE_TARGET, "while settling"),
    ],
    ids=["does not stop", "stops slowly", "starts and dies at once"],
)
def test_a_unit_that_behaves_badly(scene: Scene, line: str, said: str) -> None:
    with scene.unit_with(line):
        more = ("--cutover-timeout", "30s", "--settle", "10s")
        done = scene.volferry(*scene.words("--type", "cbs-standard", *more), code=1 if said else 0)
        assert said in done.stderr
        if said:
            scene.until(scene.is_active, f"{UNIT} is active")
            scene.give_up(done.stderr)
            scene.check(scene.guest.volume_id)
    scene.resume_to_the_end()
    scene.check_done()


@methods()
@pytest.mark.parametrize("shift", ["-2 hours", "+1 day"])
def test_the_clock_of_the_guest_is_set_in_the_middle_of_the_sync(scene: Scene, shift: str) -> None:
    """What was compared before counts for nothing then: everything is compared anew."""
    running = scene.begin("--type", "cbs-standard", "--cutover", "manual")
    scene.when(running, "cutover")
    transfer = scene.volferry.transfer()
    scene.set_clock(shift)
    scene.volferry("cutover", transfer, "--now")
    if running.wait(600) != 0:  # what was asked for is done, and was taken back
        assert "the wall clock was moved" in scene.volferry.log.read_text()
        scene.volferry("cutover", transfer, "--now")
    scene.check_done()

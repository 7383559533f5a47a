"""Units behind processes, and how long they took."""

import pytest

from volferry.guests import systemd

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/postgresql@15-demo.service\n", "postgresql@15-demo.service"),
        ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service"),
        ("0::/system.slice/podman.service/libpod-payload\n", "podman.service"),
        ("12:cpu:/\n1:name=systemd:/system.slice/cron.service\n0::/\n", "cron.service"),
        ("0::/init.scope\n", ""),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_the_unit_is_the_outermost_service(cgroup, unit):
    assert systemd.membership(cgroup).unit == unit


@pytest.mark.parametrize(
    "cgroup",
    [
        f"0::/system.slice/docker-{HEX}.scope\n",
        f"1:name=systemd:/docker/{HEX}\n",
        f"0::/machine.slice/libpod-{HEX}.scope\n",
        f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{HEX}.scope\n",
        f"0::/kubepods/burstable/pod1/{HEX}\n",
    ],
)
def test_containers_are_named_as_such(cgroup):
    assert systemd.membership(cgroup).container == HEX[:12]


def test_a_login_is_no_unit_that_could_be_stopped():
    place = systemd.membership("0::/user.slice/user-1000.slice/session-3.scope\n")

    assert (place.unit, place.session) == ("", "session-3.scope")


def test_durations_come_from_systemds_own_times():
    [properties] = systemd.show(
        "Id=a.service\nActiveState=active\nUnitFileState=enabled\n"
        "InactiveExitTimestampMonotonic=1000000\nActiveEnterTimestampMonotonic=3500000\n"
        "ActiveExitTimestampMonotonic=0\nInactiveEnterTimestampMonotonic=0\n"
    )
    unit = systemd.unit(properties)

    assert (unit.name, unit.active, unit.enabled) == ("a.service", True, True)
    assert (unit.start_s, unit.stop_s) == (2.5, None)


def test_units_are_divided_by_blank_lines():
    assert [p["Id"] for p in systemd.show("Id=a\nX=1=2\n\nId=b\n")] == ["a", "b"]

"""The kernel's mount table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volferry.guests import mounts

LINE = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"  # proc(5)
PATH = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1)


def test_the_example_of_the_manual_page_is_read_whole():
    [entry] = mounts.parse(LINE)

    assert entry == mounts.Entry(
        id=36,
        parent=35,
        dev="98:0",
        root="/mnt1",
        target="/mnt2",
        options="rw,noatime",
        propagation="slave",
        fstype="ext3",
        source="/dev/root",
        super_options="rw,errors=continue",
    )


@pytest.mark.parametrize(
    ("tags", "propagation"),
    [
        ("", "private"),
        ("shared:7 ", "shared"),
        ("master:1 shared:7 ", "slave,shared"),
        ("unbindable ", "unbindable"),
    ],
)
def test_propagation_is_named_as_mount_takes_it(tags, propagation):
    [entry] = mounts.parse(f"36 35 98:0 / /mnt rw {tags}- ext4 /dev/vdb rw")

    assert entry.propagation == propagation


def test_a_line_that_is_not_understood_is_an_error_and_not_left_out():
    with pytest.raises(ValueError, match="not a line of mountinfo"):
        mounts.parse("36 35 98:0 / /mnt rw ext4 /dev/vdb rw")


@given(PATH)
def test_a_path_survives_escaping(path):
    assert mounts.unescape(mounts.escape(path)) == path
    assert not set(mounts.escape(path)) & set(" \t\n#")


def test_only_what_is_strictly_inside_is_below():
    table = mounts.parse(
        "1 0 8:1 / /srv/data rw - xfs /dev/vdb rw\n"
        "2 1 8:2 / /srv/data/a rw - xfs /dev/vdc rw\n"
        "3 0 8:3 / /srv/database rw - xfs /dev/vdd rw\n"
    )

    assert [e.target for e in mounts.below(table, "/srv/data")] == ["/srv/data/a"]

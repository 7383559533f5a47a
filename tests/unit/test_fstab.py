"""fstab is the user's: one field changes, everything else stays as it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volferry.guests import fstab

FILE = """\
# /etc/fstab: static file system information.
UUID=6d1f\t/          ext4\terrors=remount-ro 0 1

/dev/vdb   /srv/data  xfs  defaults,nofail,x-systemd.device-timeout=5  0 0   # the database
LABEL="files" /srv/my\\040files ext4 ro
tmpfs /tmp tmpfs
"""
WORD = st.text("abcXYZ019/=-_.,:\"'\\", min_size=1, max_size=12).filter(
    lambda w: not w.startswith("#")
)
SPACE = st.text(" \t", min_size=1, max_size=3)
ENTRY = st.tuples(WORD, SPACE, WORD, SPACE, WORD, SPACE, WORD).map("".join)
LINES = st.lists(st.one_of(ENTRY, st.just(""), st.just("# a comment with /dev/vdb"), WORD))


def test_entries_are_found_between_comments_and_blank_lines():
    assert [(e.line, e.spec, e.target, e.fstype) for e in fstab.parse(FILE)] == [
        (2, "UUID=6d1f", "/", "ext4"),
        (4, "/dev/vdb", "/srv/data", "xfs"),
        (5, "LABEL=files", "/srv/my files", "ext4"),
        (6, "tmpfs", "/tmp", "tmpfs"),
    ]


def test_option_names_leave_their_values_out():
    assert "x-systemd.device-timeout" in fstab.parse(FILE)[1].option_names


def test_one_field_of_one_line_is_replaced_and_nothing_else():
    changed = fstab.with_spec(FILE, 4, "UUID=abc")

    assert changed == FILE.replace("/dev/vdb   /srv", "UUID=abc   /srv")


@pytest.mark.parametrize("line", [0, 1, 3, 7, 99])
def test_a_line_that_is_no_entry_is_refused(line):
    with pytest.raises(ValueError, match=f"line {line} of fstab is not an entry"):
        fstab.with_spec(FILE, line, "UUID=abc")


@given(LINES, st.integers(0, 20), st.booleans())
def test_editing_changes_only_the_spec_of_the_chosen_entry(lines, choice, newline):
    text = "\n".join(lines) + ("\n" if newline else "")
    before = fstab.parse(text)
    if not before:
        return
    chosen = before[choice % len(before)]

    after = fstab.with_spec(text, chosen.line, "UUID=new")

    assert [e for e in fstab.parse(after) if e.line != chosen.line] == [
        e for e in before if e.line != chosen.line
    ]
    [edited] = [e for e in fstab.parse(after) if e.line == chosen.line]
    assert edited.spec == "UUID=new"
    assert (edited.target, edited.fstype, edited.options) == (
        chosen.target,
        chosen.fstype,
        chosen.options,
    )
    old, new = text.split("\n"), after.split("\n")
    assert [n for n, (a, b) in enumerate(zip(old, new, strict=True), 1) if a != b] in (
        [],
        [chosen.line],
    )


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("UUID=ABC-1", True),
        ("uuid=abc-1", True),
        ("LABEL=data", True),
        ("LABEL=Data", False),
        ("/dev/vdb", True),
        ("/dev/vdb1", False),
    ],
)
def test_a_spec_names_a_device_as_mount_would_resolve_it(spec, same):
    assert fstab.names_device(spec, {"/dev/vdb", "UUID=abc-1", "LABEL=data"}) is same


@pytest.mark.parametrize(
    ("spec", "stable", "given_at_boot"),
    [
        ("UUID=1", True, False),
        ("PARTUUID=1", True, False),
        ("/dev/disk/by-uuid/1", True, False),
        ("/dev/disk/by-id/virtio-1", False, False),
        ("/dev/disk/by-path/pci-0", False, True),
        ("/dev/vdb", False, True),
    ],
)
def test_only_names_of_the_filesystem_find_its_copy(spec, stable, given_at_boot):
    assert fstab.is_stable(spec) is stable
    assert fstab.is_given_at_boot(spec) is given_at_boot

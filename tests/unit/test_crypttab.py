"""crypttab(5) is read as systemd reads it, and one field changes without touching the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volferry.guests import crypttab

TEXT = """\
# <name> <device> <key> <options>
secret\t/dev/vdb  /etc/keys/secret luks,nofail

swap /dev/vda2 /dev/urandom swap,cipher=aes-xts-plain64
asked UUID=4D2C none
\tlast  /dev/disk/by-path/virtio-pci-0000:00:06.0"""


def test_entries_have_their_lines_and_an_absent_key_is_none():
    assert [(e.line, e.name, e.device, e.key, e.options) for e in crypttab.parse(TEXT)] == [
        (2, "secret", "/dev/vdb", "/etc/keys/secret", "luks,nofail"),
        (4, "swap", "/dev/vda2", "/dev/urandom", "swap,cipher=aes-xts-plain64"),
        (5, "asked", "UUID=4D2C", "", ""),
        (6, "last", "/dev/disk/by-path/virtio-pci-0000:00:06.0", "", ""),
    ]


def test_a_device_is_known_by_any_of_its_names_and_a_uuid_in_any_case():
    secret, _, asked, _ = crypttab.parse(TEXT)

    assert secret.names(["/dev/vdb"]) and not secret.names(["/dev/vdc"])
    assert asked.names(["/dev/vdc", "UUID=4d2c"])


def test_one_device_changes_and_blanks_comments_and_order_stay():
    changed = crypttab.with_device(TEXT, 2, "UUID=1234")

    assert changed == TEXT.replace("/dev/vdb", "UUID=1234")


@pytest.mark.parametrize("line", [0, 1, 3, 7])
def test_a_line_that_is_no_entry_is_refused(line):
    with pytest.raises(ValueError, match="is not an entry"):
        crypttab.with_device(TEXT, line, "UUID=1")


words = st.text(st.characters(categories=("L", "N"), include_characters="/-_.:"), min_size=1)
blanks = st.text("\t ", min_size=1, max_size=3)
entries = st.builds(
    lambda name, gap, device, rest: f"{name}{gap}{device}{rest}",
    words,
    blanks,
    words,
    st.sampled_from(["", " none", "\t/k luks", "  - "]),
)
others = st.sampled_from(["", "   ", "# a comment", "#x /dev/a", "lonely"])


@given(st.lists(entries | others, max_size=6), st.data())
def test_whatever_the_file_only_the_device_of_that_line_changes(lines, data):
    text = "\n".join(lines)
    found = crypttab.parse(text)
    assert [e.line for e in found] == sorted({e.line for e in found})
    if not found:
        return
    entry = data.draw(st.sampled_from(found))

    changed = crypttab.with_device(text, entry.line, "UUID=new")

    again = crypttab.parse(changed)
    assert [e.device for e in again] == [
        "UUID=new" if e.line == entry.line else e.device for e in found
    ]
    assert crypttab.with_device(changed, entry.line, entry.device) == text

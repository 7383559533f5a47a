"""Capture what a kernel's trace ring buffer says of block writes, for the tests of its parser.

``sudo python3 tests/facts/capture_trace.py here`` writes ``trace/KERNEL.json`` of this machine, by
a loop device. ``python -m tests.facts.capture_trace IMAGE …`` does the same in a guest of the lab
for each image, by a volume of its own; the guest gets this file as it is, so what runs there is
standard library of Python 3.6.

Each file has the kernel's own texts of the layout, pages as they were read, and beside them the
same events as the kernel writes them in text: what the parser is held against. ``overrun`` are
pages of a buffer that was too small, with the events that the kernel says it lost before each.
"""

import base64
import contextlib
import json
import mmap
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import zlib

HERE = os.path.dirname(os.path.abspath(sys.argv[0] if sys.argv[0] != "-" else "."))
IMAGES = ("debian-12", "debian-13")
EVENT = "/events/block/block_rq_complete"
LINE = re.compile(r"block_rq_complete: (\d+),(\d+) (\S*) \(.*?\) (\d+) \+ (\d+)")


def read(path, mode="r"):
    with open(path, mode) as file:
        return file.read()


def write(path, value):
    with open(path, "w") as file:
        file.write(value)


@contextlib.contextmanager
def tracefs():
    path = tempfile.mkdtemp()
    subprocess.check_call(["mount", "-t", "tracefs", "nodev", path])
    try:
        yield path
    finally:
        subprocess.check_call(["umount", path])
        os.rmdir(path)


@contextlib.contextmanager
def instance(root, name, disk, buffer_kib, overwrite):
    path = f"{root}/instances/{name}-{os.getpid()}"
    os.mkdir(path)
    try:
        number = os.stat(disk).st_rdev
        kernels = os.major(number) << 20 | os.minor(number)
        write(path + "/buffer_size_kb", str(buffer_kib))
        write(path + "/options/overwrite", overwrite)
        write(path + EVENT + "/filter", f"dev == {kernels} && nr_sector > 0")
        write(path + EVENT + "/enable", "1")
        yield path
    finally:
        write(path + EVENT + "/enable", "0")
        os.rmdir(path)


def pages(path, page_bytes):
    """{cpu: [page]}, as they are read."""
    found = {}
    for cpu in sorted(os.listdir(path + "/per_cpu")):
        fd = os.open(path + "/per_cpu/" + cpu + "/trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while True:
                try:
                    page = os.read(fd, page_bytes)
                except (BlockingIOError, OSError):
                    break
                if not page:
                    break
                text = base64.b64encode(zlib.compress(page, 9)).decode("ascii")
                found.setdefault(cpu, []).append(text)
        finally:
            os.close(fd)
    return found


def load(disk, count):
    """Writes of several sizes, some with a flush, reads, discards and zeroes; pauses for time."""
    fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, 1 << 20)
        for n in range(count):
            length = (4096, 8192, 65536, 512 * 9)[n % 4]
            os.lseek(fd, n * 100 * 4096 % (64 << 20), os.SEEK_SET)
            view = memoryview(buffer)[:length]
            os.writev(fd, [view]) if n % 5 else os.readv(fd, [view])
            view.release()
            if n % 16 == 0:
                os.fsync(fd)
            if n % 100 == 50:
                time.sleep(0.4)  # longer than a delta has bits for: the kernel adds a time record
    finally:
        os.close(fd)
    for how in ([], ["--zeroout"]):
        subprocess.call(["blkdiscard", *how, "-o", "16M", "-l", "1M", disk])


def quiet():
    """Nobody probes the disk: an event that only one of the two instances has is no fault."""
    with contextlib.suppress(FileNotFoundError):
        subprocess.call(["udevadm", "settle"])


def capture(disk):
    quiet()
    with tracefs() as root:
        with (
            instance(root, "raw", disk, 512, "0") as raw,
            instance(root, "words", disk, 512, "0") as words,
        ):
            header = read(raw + "/events/header_page")
            page_bytes = sum(
                map(int, re.search(r"data;\s*offset:(\d+);\s*size:(\d+);", header).groups())
            )
            load(disk, 150)
            quiet()
            time.sleep(0.1)
            for one in (raw, words):
                write(one + EVENT + "/enable", "0")
            lines = read(words + "/trace").splitlines()
            found = {
                "kernel": re.split("[-+]", platform.release())[0],
                "machine": platform.machine(),
                "byteorder": sys.byteorder,
                "header_page": header,
                "header_event": read(raw + "/events/header_event"),
                "format": read(raw + EVENT + "/format"),
                "pages": pages(raw, page_bytes),
                "events": [
                    [int(a) << 20 | int(b), int(sector), int(count), rwbs]
                    for a, b, rwbs, sector, count in (
                        match.groups() for match in map(LINE.search, lines) if match
                    )
                ],
            }
        with instance(root, "tiny", disk, 8, "1") as tiny:
            load(disk, 1000)
            lost = 0
            for cpu in os.listdir(tiny + "/per_cpu"):
                stats = read(tiny + "/per_cpu/" + cpu + "/stats")
                lost += int(re.search(r"^overrun: (\d+)", stats, re.MULTILINE).group(1))
            found["overrun"] = {"lost": lost, "pages": pages(tiny, page_bytes)}
        return found


def here():
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.truncate(128 << 20)
        disk = subprocess.check_output(["losetup", "--find", "--show", file.name])
        disk = disk.decode().strip()
        try:
            keep(capture(disk))
        finally:
            subprocess.check_call(["losetup", "--detach", disk])


def keep(found):
    path = os.path.join(HERE, "trace", found["kernel"] + ".json")
    with open(path, "w") as file:
        json.dump(found, file, indent=1, sort_keys=True)
        file.write("\n")
    print(path, file=sys.stderr)


def in_guests(images):
    from lab.api import Lab  # noqa: PLC0415  a guest has no lab

    lab = Lab()
    lab.up()
    with open(os.path.join(HERE, os.path.basename(__file__)), "rb") as file:
        program = base64.b64encode(file.read()).decode()
    for image in images:
        name = "trace-" + image
        lab.ensure_server(name, image=image)
        volume_id = lab.ensure_volume(name, 1)
        lab.attach(name, volume_id)
        try:
            disk = "$(readlink -f /dev/disk/by-id/virtio-" + volume_id[:20] + ")"
            script = "echo " + program + " | base64 -d | python3 - " + disk
            keep(json.loads(lab.ssh(name, script, root=True)))
        finally:
            lab.delete_server(name)
            lab.delete_volume(volume_id)


if __name__ == "__main__":
    if sys.argv[1:] == ["here"]:
        here()
    elif sys.argv[1:2] and sys.argv[1].startswith("/dev/"):
        print(json.dumps(capture(sys.argv[1])))
    else:
        in_guests(sys.argv[1:] or IMAGES)

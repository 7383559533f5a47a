"""Runs in a guest, as root: the agent's mirror over the volumes of a stack from the first byte to
the last order of a cutover, under a load that goes on until the services would be stopped. Then
both sides are compared, by code that is none of the agent's.

One JSON object on stdin, one on stdout; what it is at is said on stderr.
"""

import base64
import contextlib
import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
import zlib

ASKED = json.load(sys.stdin)
LOAD = {"__name__": "load"}
AGENT = {"__name__": "agent"}
exec(compile(ASKED["load"], "load", "exec"), LOAD)
exec(compile(ASKED["program"], "agent", "exec"), AGENT)
TRANSFER = ASKED["transfer"]
BEGAN = time.monotonic()
PATIENCE_S = 400.0
MIB, PAGE = 1 << 20, 4096
MEMCMP = ctypes.CDLL(None).memcmp
MEMCMP.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def say(*words):
    print(f"{time.monotonic() - BEGAN:6.1f} s ", *words, file=sys.stderr, flush=True)


def call(verb, **request):
    """One verb of the agent, by the code that also answers over the wire."""
    answer = AGENT["answer"](verb, json.dumps({"transfer": TRANSFER, **request}).encode())
    if not answer["ok"]:
        raise RuntimeError(f"{verb}: {answer['error']}")
    return answer["result"]


def tell(do, **more):
    return call("tell", message={"do": do, **more}, timeout_s=PATIENCE_S)


def quarantined(which):
    """These may be recognised, but no rule of udev's puts anything together from them."""
    file = {"path": ASKED["rule"], "content": ASKED["rules"][which], "mode": 0o644}
    call("apply", files=[file], udev=True)


def until_verified():
    ends = time.monotonic() + PATIENCE_S
    while True:
        status = call("status", lane="mirror")
        figures = (status["progress"] or {}).get("figures") or {}
        if status["state"] != "running" or time.monotonic() > ends:
            raise RuntimeError(f"not verified: {status}")
        if figures.get("verified") and figures["passes"]:
            return figures
        time.sleep(0.1)


def paths(place, ref):
    disk = AGENT["resolve"](place, ref)
    return [partition.path for partition in disk.partitions] + [disk.path]


def release(place):
    """As ``Cutover.unmount_all`` does it."""
    if ASKED["mount"]:
        AGENT["unmount"](ASKED["mount"], 60.0)
    AGENT["release_stack"](place, ASKED["layers"], time.monotonic() + 60.0)
    for ref in ASKED["sources"]:
        for path in paths(place, ref):
            if not AGENT["wait_until_free"](path, 10.0):
                raise RuntimeError(f"{path} is held by somebody")
            AGENT["flush_device"](path)
        AGENT["set_disk_read_only"](AGENT["resolve"](place, ref), True)


def differing(place):
    """For each source and its target: where pages differ, over the source's size. Read past the
    page cache: copying out of that is what an emulated processor takes longest for."""
    return [
        differing_pages(paths(place, source)[-1], paths(place, target)[-1], source["size_bytes"])
        for source, target in zip(ASKED["sources"], ASKED["targets"], strict=True)
    ]


def differing_pages(one, other, size):
    files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in (one, other)]
    mine, theirs = memory = [mmap.mmap(-1, MIB) for _ in files]
    place_of = [ctypes.addressof(ctypes.c_char.from_buffer(piece)) for piece in memory]
    found = []
    for offset in range(0, size, MIB):
        length = min(MIB, size - offset)
        for file, piece in zip(files, memory, strict=True):
            if os.preadv(file, [memoryview(piece)[:length]], offset) != length:
                raise RuntimeError(f"{one} or {other} ends before {size}")
        if MEMCMP(*place_of, length):
            found += [
                offset + at
                for at in range(0, length, PAGE)
                if mine[at : at + PAGE] != theirs[at : at + PAGE]
            ]
    for file in files:
        os.close(file)
    return found


def overwrite(path, offset):
    """One bit, behind everybody's back."""
    with open(path, "r+b", buffering=0) as disk:
        disk.seek(offset)
        old = disk.read(1)
        disk.seek(offset)
        disk.write(bytes([old[0] ^ 1]))
        os.fsync(disk.fileno())


def main():
    place = AGENT["Place"]()
    program = base64.b64encode(zlib.compress(ASKED["program"].encode())).decode()
    call("install", sources=ASKED["sources"], program_b64=program)
    kind = LOAD["Load" if ASKED["mount"] else "DeviceLoad"]
    root = LOAD["Path"](ASKED["mount"] or ASKED["device"])
    load = kind(root, 10 * PATIENCE_S, ASKED["seed"], trimming=True)
    load.pause_s = 0.1  # one processor, emulated: the mirror gives way to whatever runs beside it
    told = {}
    try:
        quarantined("targets")
        say("installed")
        load.start()
        request = {"sources": ASKED["sources"], "transfer": TRANSFER, **ASKED["mirror"]}
        call("start", job="mirror", job_id="mirror-1", request=request)
        pairs = [
            {"source": source, "target": target}
            for source, target in zip(ASKED["sources"], ASKED["targets"], strict=True)
        ]
        luks = any(layer["kind"] == "luks" for layer in ASKED["layers"])
        tell("pairs", pairs=pairs, blank=True, luks=luks, verify=ASKED["verify"], pace=1.0)
        say("begun")
        time.sleep(ASKED["seconds"])
        figures = until_verified()
        say("verified", json.dumps(figures["passes"]))
        before = tell("ready")["events"]
        load.stop()
        told["load"] = load.ended()
        say("ended", dict(told["load"]))
        release(place)
        say("released")
        told["late_events"] = tell("figures")["events"] - before
        told["final"] = tell("final", deadline_s=PATIENCE_S, save=False)
        say("final", json.dumps(told["final"]))
        # As both can be recognised from here on, and what would be put together from one of them
        # (an array, by whoever closes a member of it) writes to it.
        quarantined("all")
        tell("unmask")
        told.update(notes=figures["notes"], events=figures["events"])
        told["differing"] = differing(place)
        say("compared", [pages[:5] for pages in told["differing"]])
        if ASKED["overwrite"]:
            overwrite(paths(place, ASKED["targets"][-1])[-1], ASKED["overwrite"])
            told["overwritten"] = differing(place)
            say("compared again")
    finally:
        load.stop()
        with contextlib.suppress(RuntimeError):
            tell("stop")
        say("stopped", call("stop", lane="mirror"))
        subprocess.run(["udevadm", "settle"], check=True, timeout=200)
        say("left", call("uninstall", files=[ASKED["rule"]])["left"])
    print(json.dumps(told))


main()

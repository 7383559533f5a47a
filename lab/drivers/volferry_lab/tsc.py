"""How fast this processor's time stamp counter runs.

A guest in software emulation reads the host's counter, and finds out its rate at boot by counting
against an emulated timer. On a busy host that goes wrong (seen: 541 MHz for 2594), and the guest's
clock is then five times too fast for good: every time-out in it comes too early and every duration
that it measures is too long. So the guest is told.
"""

import ctypes
import functools
import mmap
import platform
import time

RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
SECONDS = 0.2


@functools.lru_cache(maxsize=1)
def kernel_argument():
    """`` tsc_early_khz=…``, or nothing where the counter cannot be read."""
    if platform.machine() != "x86_64":
        return ""
    try:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except (OSError, PermissionError):
        return ""  # a host that executes no page it has written
    page.write(RDTSC)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    began, first = time.monotonic_ns(), read()
    time.sleep(SECONDS)
    last, ended = read(), time.monotonic_ns()
    return f" tsc_early_khz={(last - first) * 1e6 / (ended - began):.0f}"

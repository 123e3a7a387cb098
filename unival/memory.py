"""Reuse freed memory: on a CPU, a fresh page costs more than computing what goes into it.

The C library of Linux gives the free end of its heap back to the system, which fills each page with zeros when it is
touched again. Here that takes longer than to write the page itself.
"""

import ctypes
import sys

# Of glibc's <malloc.h>: keep the free end of the heap; map single blocks above 32 MB only, the most that it accepts.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Let this process reuse the memory of freed tensors of up to 32 MB instead of returning it to the system.

    `unival train`, `evaluate` and `predict` and the data workers call it; a program of one's own may. The memory stays
    with the process until it ends. Larger tensors are mapped and given back as ever: kept on the heap too, they leave
    holes between each other, as older versions of glibc do not merge what is left over beside aligned blocks (its bug
    30723), and nothing bounds the growth.

    Returns:
        Whether the C library took it; elsewhere than on Linux with glibc nothing happens.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has no such function
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_THRESHOLD, 32 * 2**20))

"""Memory of CPU tensors that is kept between steps instead of being returned to the operating system and faulted in again.

Edge features of a batch are a few MB each: by default glibc maps every such allocation freshly, and writing it the first
time costs more than the arithmetic of an activation.
"""

from __future__ import annotations

import ctypes
import sys

#: Options of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for the programs whose tensors live on the CPU.

    Returns:
        Whether the C library took the setting; elsewhere than on glibc nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 * 2**20))
    return all(mallopt(option, value) == 1 for option, value in wanted)

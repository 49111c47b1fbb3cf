"""How a party's process treats memory. For the doors of a process to call; importing this changes nothing."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_LARGEST = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next step; whether the C library takes such wishes.

    glibc returns every large buffer to the kernel as soon as it is freed, and the next step's buffer of the same size
    is faulted in again, page by page: with activations of 16 MiB that costs as much time as computing. Only glibc can
    be told; elsewhere this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {_M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _LARGEST, _M_TOP_PAD: _TOP_PAD_BYTES}
    taken = [library.mallopt(name, value) for name, value in settings.items()]
    return all(taken)

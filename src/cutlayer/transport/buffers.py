"""Byte buffers that are used again once nobody refers to them.

A fresh large buffer costs as many page faults as the network costs time, so a received body goes into a used one. A
tensor or a slice may keep a body alive for as long as it likes: every take hands out a view of its own over the
memory, and only that view's end, when the last reference through it is gone, gives the memory back.
"""

import threading
import weakref
from collections import deque
from ctypes import addressof, c_char

import numpy as np
from numpy.typing import NDArray

from cutlayer.protocol.wire import ALIGNMENT

SMALL_BYTES = 64 * 1024  # below this, malloc itself uses memory again
IDLE_BYTES = 256 * 2**20


class BufferPool:
    """Hands out writable byte buffers, aligned to 64 bytes and not zeroed. Thread-safe.

    `idle_bytes` bounds what is kept for later; what is in use is bounded by whoever takes.

    >>> pool = BufferPool()
    >>> buffer = pool.take(100)
    >>> buffer.nbytes, buffer.readonly
    (100, False)
    """

    def __init__(self, *, idle_bytes: int = IDLE_BYTES) -> None:
        self._limit = idle_bytes
        self._idle: dict[int, list[memoryview]] = {}  # by capacity, the longest unused capacity first
        self._idle_bytes = 0
        self._lock = threading.Lock()
        self._returned: deque[memoryview] = deque()

    @property
    def idle_bytes(self) -> int:
        """Bytes kept for later."""
        with self._lock:
            self._sort_returned()
            return self._idle_bytes

    def take(self, nbytes: int) -> memoryview:
        """A buffer of `nbytes` bytes with whatever was in it before. It returns by itself when nobody refers to it."""
        if nbytes <= SMALL_BYTES:
            return _allocate(nbytes)
        capacity = _capacity(nbytes)
        with self._lock:
            self._sort_returned()
            memory = self._reuse(capacity)
        if memory is None:
            memory = _allocate(capacity)
        lease: NDArray[np.uint8] = np.frombuffer(memory, np.uint8, nbytes)
        # A finalizer may run at any moment in any thread, also while this pool's lock is held: it only appends.
        weakref.finalize(lease, self._returned.append, memory).atexit = False
        return lease.data

    def _reuse(self, capacity: int) -> memoryview | None:
        buffers = self._idle.pop(capacity, None)
        if buffers is None:
            return None
        memory = buffers.pop()
        self._idle_bytes -= capacity
        if buffers:
            self._idle[capacity] = buffers
        return memory

    def _sort_returned(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            buffers = self._idle.pop(memory.nbytes, [])
            buffers.append(memory)
            self._idle[memory.nbytes] = buffers
            self._idle_bytes += memory.nbytes
        while self._idle_bytes > self._limit:
            self._reuse(next(iter(self._idle)))


def _capacity(nbytes: int) -> int:
    """`nbytes` rounded up by at most an eighth, so that bodies of similar size share buffers."""
    step = 1 << (nbytes.bit_length() - 4)
    return -(-nbytes // step) * step


def _allocate(capacity: int) -> memoryview:
    memory: NDArray[np.uint8] = np.empty(capacity + ALIGNMENT, np.uint8)
    start = -addressof(c_char.from_buffer(memory.data)) % ALIGNMENT  # several times as fast as asking numpy
    return memory.data[start : start + capacity]

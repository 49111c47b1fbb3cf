"""A buffer comes back when the last reference to it is gone, not earlier and not later."""

import gc
import threading

import numpy as np
import pytest

from cutlayer.transport.buffers import SMALL_BYTES, BufferPool

SIZE = 200_000


def address_of(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


@pytest.mark.parametrize("nbytes", [0, 1, 64, 4097, SMALL_BYTES, SMALL_BYTES + 1, SIZE, 3 * 2**20 + 1])
def test_buffers_are_aligned_writable_and_as_long_as_asked(nbytes: int) -> None:
    buffer = BufferPool().take(nbytes)
    assert (buffer.nbytes, buffer.format, buffer.readonly, buffer.contiguous) == (nbytes, "B", False, True)
    if nbytes:
        assert address_of(buffer) % 64 == 0


def test_a_dropped_buffer_is_taken_again_with_what_was_in_it() -> None:
    pool = BufferPool()
    buffer = pool.take(SIZE)
    buffer[:] = b"\x07" * SIZE
    address = address_of(buffer)
    del buffer
    again = pool.take(SIZE)
    assert address_of(again) == address
    assert bytes(again[:3]) == b"\x07\x07\x07"


def test_similar_sizes_share_a_buffer() -> None:
    pool = BufferPool()
    address = address_of(pool.take(1_000_000))
    assert address_of(pool.take(1_005_000)) == address


def test_a_slice_keeps_the_whole_buffer() -> None:
    pool = BufferPool()
    buffer = pool.take(SIZE)
    address, part = address_of(buffer), buffer[100:200]
    del buffer
    assert address_of(pool.take(SIZE)) != address
    del part
    pool.take(SIZE)  # the two idle buffers are both this size: one of them is the first
    assert pool.idle_bytes >= 2 * SIZE


def test_numpy_views_of_views_keep_the_buffer() -> None:
    pool = BufferPool()
    buffer = pool.take(SIZE)
    address = address_of(buffer)
    array = np.asarray(buffer)[8:].view(np.float32)[1:].reshape(-1)
    owner = np.asarray(buffer.obj)[8:]
    del buffer
    assert address_of(pool.take(SIZE)) != address
    del array
    assert address_of(pool.take(SIZE)) != address
    del owner
    assert {address_of(view) for view in [pool.take(SIZE), pool.take(SIZE)]} >= {address}


def test_a_tensor_keeps_the_buffer_and_so_does_what_autograd_saved() -> None:
    torch = pytest.importorskip("torch")
    pool = BufferPool()
    buffer = pool.take(SIZE)
    address = address_of(buffer)
    buffer[:] = np.ones(SIZE // 4, np.float32).view(np.uint8).data
    tensor = torch.frombuffer(buffer[: SIZE // 2], dtype=torch.float32).reshape(100, -1)
    weight = torch.ones((), requires_grad=True)
    loss = (tensor * weight).sum()
    del buffer, tensor
    for _ in range(3):
        other = pool.take(SIZE)
        assert address_of(other) != address
        other[:] = bytes(SIZE)
        del other
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.item() == SIZE / 8
    del loss
    gc.collect()
    assert {address_of(view) for view in [pool.take(SIZE), pool.take(SIZE)]} >= {address}


def test_idle_bytes_are_bounded_and_the_longest_unused_size_goes_first() -> None:
    pool = BufferPool(idle_bytes=1_000_000)
    buffers = [pool.take(size) for size in (300_000, 400_000, 500_000)]
    kept = {address_of(buffer) for buffer in buffers[1:]}
    while buffers:
        del buffers[0]
    assert 900_000 <= pool.idle_bytes <= 1_000_000
    assert {address_of(pool.take(400_000)), address_of(pool.take(500_000))} == kept


def test_a_buffer_larger_than_what_may_idle_is_not_kept() -> None:
    pool = BufferPool(idle_bytes=100_000)
    pool.take(SIZE)
    assert pool.idle_bytes == 0


def test_threads_never_share_a_buffer() -> None:
    pool, clashes = BufferPool(), []

    def work(mark: int) -> None:
        for _ in range(300):
            buffer = pool.take(70_000)
            buffer[:8] = bytes([mark]) * 8
            if bytes(buffer[:8]) != bytes([mark]) * 8:
                clashes.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []


def test_a_buffer_outlives_its_pool() -> None:
    pool = BufferPool()
    buffer = pool.take(SIZE)
    del pool
    gc.collect()
    buffer[:] = bytes(SIZE)
    del buffer

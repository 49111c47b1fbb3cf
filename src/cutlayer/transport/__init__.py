"""Frames from one party to another: in memory, or over two one-way TLS connections. Nothing here reads a message."""

from cutlayer.transport.buffers import BufferPool
from cutlayer.transport.channel import Channel
from cutlayer.transport.dialler import dial
from cutlayer.transport.link import Link
from cutlayer.transport.listener import Listener, Refusal
from cutlayer.transport.memory import MemoryChannel, pair
from cutlayer.transport.tls import KeyFiles

__all__ = ["BufferPool", "Channel", "KeyFiles", "Link", "Listener", "MemoryChannel", "Refusal", "dial", "pair"]

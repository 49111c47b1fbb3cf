"""Zstd: what the stages before it leave, packed without loss (RFC 8878).

Size: at most one byte more than without it. Error: none of its own.
"""

from dataclasses import dataclass
from typing import ClassVar

import zstandard

from cutlayer.codec.lossless import Packer
from cutlayer.errors import CodecError


@dataclass(frozen=True, kw_only=True)
class Zstd(Packer):
    """`level`: 1 (quick) to 19 (small)."""

    level: int = 3
    levels: ClassVar[range] = range(1, 20)
    word: ClassVar[str] = "zstd"

    def _compress(self, data: memoryview) -> bytes:
        return zstandard.ZstdCompressor(level=self.level).compress(data)

    def _expand(self, data: memoryview, due: int) -> bytes:
        try:
            size = zstandard.get_frame_parameters(data).content_size
            if size != due:
                raise CodecError(f"zstd: a payload says that it becomes {size} bytes, and it must be {due}")
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=due, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CodecError(f"zstd: a payload cannot be unpacked: {error}") from error

"""Zstd: what the stages before it leave, packed without loss (RFC 8878).

Size: at most one byte more than without it. Error: none of its own.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import zstandard
from torch import Tensor

from cutlayer.codec import lossless
from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.raw import RAW
from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.tensors import TensorShape


@dataclass(frozen=True, kw_only=True)
class Zstd(Codec):
    """`level`: 1 (quick) to 19 (small)."""

    level: int = 3
    inner: Codec = RAW
    word: ClassVar[str] = "zstd"
    packs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.level <= 19:
            raise PlanError(f"zstd: level = {self.level!r} must be a whole number from 1 to 19")

    @property
    def lossless(self) -> bool:
        return self.inner.lossless

    def fault(self, shape: TensorShape) -> str | None:
        return self.inner.fault(shape)

    def most_bytes(self, shape: TensorShape) -> int:
        return lossless.most_bytes(self.inner, shape)

    def error_bound(self, tensor: Tensor) -> float:
        return self.inner.error_bound(tensor)

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        encoded = self.inner.encode(tensor, seed)
        return Encoded(lossless.squeezed(encoded.payload, self._compress), encoded.kept)

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        return self.inner.decode(lossless.restored(self, self.inner, payload, shape, self._expand), shape)

    def correct(self, gradient: Tensor, kept: Any) -> Tensor:
        return self.inner.correct(gradient, kept)

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

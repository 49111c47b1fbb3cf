"""What the lossless last stages share: a payload packed smaller, or as it is, after one byte that says which."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.raw import RAW
from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.tensors import TensorShape

AS_IT_IS, PACKED = 0, 1


@dataclass(frozen=True, kw_only=True)
class Packer(Codec):
    """A last stage, `word`, after `inner`; `level`: one of `levels`, from quick to small."""

    level: int
    inner: Codec = RAW
    levels: ClassVar[range]
    word: ClassVar[str]
    packs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.level not in self.levels:
            least, most = self.levels[0], self.levels[-1]
            raise PlanError(f"{self.word}: level = {self.level!r} must be a whole number from {least} to {most}")

    @property
    def lossless(self) -> bool:
        return self.inner.lossless

    def fault(self, shape: TensorShape) -> str | None:
        return self.inner.fault(shape)

    def most_bytes(self, shape: TensorShape) -> int:
        """As it is, and the byte that says so."""
        due = self.inner.most_bytes(shape)
        return due + 1 if due else 0

    def error_bound(self, tensor: Tensor) -> float:
        return self.inner.error_bound(tensor)

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        encoded = self.inner.encode(tensor, seed)
        return Encoded(self._squeezed(encoded.payload), encoded.kept)

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        return self.inner.decode(self._restored(payload, shape), shape)

    def crossed(self, payload: Tensor, shape: TensorShape) -> Tensor | None:
        return self.inner.crossed(self._restored(payload, shape), shape)

    def correct(self, gradient: Tensor, kept: Any) -> Tensor:
        return self.inner.correct(gradient, kept)

    @abstractmethod
    def _compress(self, data: memoryview) -> bytes: ...

    @abstractmethod
    def _expand(self, data: memoryview, due: int) -> bytes:
        """What became `data`, which must be so many bytes, beyond which it must not go. Raises `CodecError`."""

    def _squeezed(self, payload: Tensor) -> Tensor:
        """The smaller one of the two. An empty payload stays empty."""
        if not payload.numel():
            return payload
        packed = self._compress(payload.numpy().data)
        if len(packed) < payload.numel():
            return torch.frombuffer(bytearray((PACKED,)) + packed, dtype=torch.uint8)
        return torch.cat((torch.tensor([AS_IT_IS], dtype=torch.uint8), payload))

    def _restored(self, payload: Tensor, shape: TensorShape) -> Tensor:
        """The inner codec's payload. Raises `CodecError`."""
        due = self.inner.most_bytes(shape)
        if not due and not payload.numel():
            return payload
        if not due or not payload.numel() or payload.numel() > due + 1:
            raise CodecError(f"{self.name}: a payload of {payload.numel()} bytes cannot be {shape}")
        how, body = int(payload[0]), payload[1:]
        if how not in (AS_IT_IS, PACKED):
            raise CodecError(f"{self.name}: a payload begins with {how}, not with 0 or 1")
        if how == PACKED:
            data = self._expand(body.contiguous().numpy().data, due)
            body = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else body[:0]
        if body.numel() != due:
            raise CodecError(f"{self.name}: a payload becomes {body.numel()} bytes, and {shape} has {due}")
        return body

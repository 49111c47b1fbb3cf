"""Product quantisation: a row in parts of a few elements; of each part, the number of the nearest word of a codebook.

The codebook is learned from the very tensor by k-means and crosses with it. `correct` adds FedLite's λ·(z - z̃) to the
gradient, z being what was sent and z̃ what arrived: then the sender also learns to send what the words express.
Source: Wang et al. 2022, FedLite (arXiv 2201.11865), section 4 and equation 5.
Size: log2(words) bits per part, and the codebook as the inner codec has it. Error: the largest difference of two
elements of the tensor, and the inner codec's.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cutlayer.codec import scales
from cutlayer.codec.bits import pack, packed_bytes, unpack, width_of
from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.raw import RAW
from cutlayer.codec.sections import (
    carried,
    exactly,
    finite,
    float_fault,
    joined,
    refuse_if_not_finite,
    shape_of,
    working,
)
from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.tensors import TensorShape


@dataclass(frozen=True, kw_only=True)
class ProductQuantiser(Codec):
    """`part`: elements of a part; FedLite's d/q. `words`: of a codebook; L. `books`: how many codebooks, each for an
    equal number of a row's parts, side by side; R. `strength`: λ. `rounds` of k-means, on `sample` parts of each book.
    """

    part: int
    words: int
    books: int = 1
    strength: float = 0.0
    rounds: int = 6
    sample: int = 8192
    inner: Codec = RAW
    word: ClassVar[str] = "pq"
    packs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        least = {"part": 1, "words": 1, "books": 1, "strength": 0, "rounds": 0, "sample": 1}
        faults = [
            f"pq: {option} = {getattr(self, option)!r} must be at least {bound}"
            for option, bound in least.items()
            if not getattr(self, option) >= bound
        ]
        if faults:
            raise PlanError(faults)

    def fault(self, shape: TensorShape) -> str | None:
        if (fault := float_fault(self, shape)) is not None:
            return fault
        n = _row(shape)
        if n % (self.part * self.books):
            return (
                f"{self.name} cuts a row of {shape} into parts of {self.part} for {self.books} codebooks, and its {n} "
                f"elements do not divide by {self.part * self.books}: say another part, or other books"
            )
        return None

    def most_bytes(self, shape: TensorShape) -> int:
        points, words = self._size(shape)
        return packed_bytes(points * self.books, width_of(words)) + self.inner.most_bytes(self._book(shape))

    def error_bound(self, tensor: Tensor) -> float:
        if not tensor.numel() or (self.inner.lossless and self._exact(shape_of(tensor))):
            return 0.0
        numbers = tensor.detach().cpu().double().reshape(-1)
        inner = self.inner.error_bound(tensor.detach().cpu().reshape(-1))
        spread = 0.0 if self._exact(shape_of(tensor)) else float(numbers.max() - numbers.min())
        return spread + inner + scales.slack(numbers.abs(), shape_of(tensor))

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        tensor = carried(self, tensor)
        shape = shape_of(tensor)
        if not tensor.numel():
            return Encoded(torch.empty(0, dtype=torch.uint8))
        refuse_if_not_finite(self, tensor)
        points, words = self._size(shape)
        x_RNP = self._parts(tensor)  # noqa: N806
        if self._exact(shape):
            book, codes = x_RNP, torch.arange(points).expand(self.books, points)
        else:
            book, codes = self._learned(working(x_RNP), words, torch.Generator().manual_seed(seed))
        sent = self.inner.encode(book.to(tensor.dtype).reshape(self._book(shape).shape), seed).payload
        payload = joined(pack(codes, width_of(words)), sent)
        kept = tensor - self.decode(payload, shape) if self.strength else None
        return Encoded(payload, kept)

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        exactly(self, payload, shape)
        if not shape.nbytes:
            return torch.empty(shape.shape, dtype=getattr(torch, shape.dtype))
        points, words = self._size(shape)
        cut = packed_bytes(points * self.books, width_of(words))
        codes = unpack(payload[:cut], points * self.books, width_of(words)).long().view(self.books, points)
        if int(codes.max()) >= words:
            raise CodecError(f"{self.name}: a payload names word {int(codes.max())} of {words}")
        book = self.inner.decode(payload[cut:], self._book(shape))
        if not finite(book):
            raise CodecError(f"{self.name}: a codebook in a payload has NaN or infinite values")
        codes += torch.arange(self.books)[:, None] * words
        x_RNP = book.view(-1, self.part)[codes]  # noqa: N806
        rows = points * self.books * self.part // _row(shape)
        return x_RNP.view(self.books, rows, -1).transpose(0, 1).reshape(shape.shape)

    def correct(self, gradient: Tensor, kept: Any) -> Tensor:
        return gradient if kept is None else gradient + self.strength * kept.to(gradient)

    def _size(self, shape: TensorShape) -> tuple[int, int]:
        """Points and words of each codebook; never more words than points."""
        points = torch.Size(shape.shape).numel() // (self.part * self.books)
        return points, min(self.words, points)

    def _exact(self, shape: TensorShape) -> bool:
        return self._size(shape)[0] <= self.words

    def _book(self, shape: TensorShape) -> TensorShape:
        return TensorShape(shape.dtype, (self.books * self._size(shape)[1], self.part))

    def _parts(self, tensor: Tensor) -> Tensor:
        """[books, points, part]."""
        rows = tensor.numel() // _row(shape_of(tensor))
        return tensor.view(rows, self.books, -1).transpose(0, 1).reshape(self.books, -1, self.part)

    def _learned(self, x_RNP: Tensor, words: int, generator: Generator) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Codebooks [books, words, part] and each point's word [books, points]."""
        books, codes = [], []
        for x_NP in x_RNP:  # noqa: N806
            book = _means(x_NP, words, self.rounds, self.sample, generator)
            books.append(book)
            codes.append(torch.cat([_nearest(some, book) for some in torch.split(x_NP, _ROWS_AT_ONCE)]))
        return torch.stack(books), torch.stack(codes)


_ROWS_AT_ONCE = 2**14


def _row(shape: TensorShape) -> int:
    """Elements of a row; of all, where there are no rows."""
    return torch.Size(shape.shape[1:] if len(shape.shape) > 1 else shape.shape).numel()


def _nearest(x_NP: Tensor, book_WP: Tensor) -> Tensor:  # noqa: N803
    """[N]: the number of the nearest word."""
    return torch.addmm(book_WP.square().sum(1), x_NP, book_WP.t(), alpha=-2).argmin(1)


def _means(x_NP: Tensor, words: int, rounds: int, sample: int, generator: Generator) -> Tensor:  # noqa: N803
    """[words, P]: k-means on some of the points. It begins with points drawn by their distance from the mean, and words
    that no point is nearest to stay where they are.
    """
    if len(x_NP) > max(sample, words):
        x_NP = x_NP[torch.randperm(len(x_NP), generator=generator)[: max(sample, words)]]  # noqa: N806
    largest = x_NP.abs().max().clamp_(min=torch.finfo(x_NP.dtype).tiny)
    x_NP = x_NP / largest  # noqa: N806
    weights = (x_NP - x_NP.mean(0)).square().sum(1) + 1e-6
    book = x_NP[torch.multinomial(weights.double(), words, generator=generator)]
    for _ in range(rounds):
        codes = _nearest(x_NP, book)
        counts = torch.bincount(codes, minlength=words)[:, None]
        sums = torch.zeros_like(book).index_add_(0, codes, x_NP)
        book = torch.where(counts > 0, sums / counts.clamp(min=1), book)
    return book * largest

"""Randomised response on labels: each is kept with a probability, and else is another one.

Warner 1965 (JASA) for two answers, Kairouz et al. 2016 (arXiv 1602.07387) for k, Ghazi et al. 2021 (arXiv 2102.06062)
for training on them. A row's answer is drawn once, from a secret number of its own, and given again whenever the row is
released: so epochs add nothing. A loss over answers is not the loss over true labels: `correction` has whoever ends in
the loss correct it by the odds of the answers (Patrini et al. 2017, arXiv 1609.03683), which all know from the plan. A
prior over the labels, which keeps more of them (LP-2ST of Ghazi et al.), is not built.
"""

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutlayer.defence.defence import Context, Defence, Kind, Mechanism, State, strength_fault
from cutlayer.errors import DataError, PlanError
from cutlayer.plan.document import nearest
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import Way

CORRECTIONS = ("forward", "backward")
OFF = 64.0
"""From this ε on (e^−64 is 2·10⁻²⁸) no label is ever changed: zero strength, as a finite number."""


@dataclass(frozen=True, kw_only=True)
class LabelDp(Defence):
    """`epsilon`: of k classes, a label is kept with probability e^ε/(e^ε + k − 1), else another one is drawn evenly.

    0 is a label drawn without a look at the row's own; 64 and more is no defence. Labels are class numbers, or the
    0/1 floats of a binary loss (then k = 2). `correction`: of the loss over answers, `forward` or `backward`, or none.
    It costs no ε: what is done with answers tells no more than they do.
    """

    epsilon: float
    correction: str = ""
    word: ClassVar[str] = "label_dp"
    kind: ClassVar[Kind] = "release"
    ways: ClassVar[frozenset[Way]] = frozenset({"forward"})
    for_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        found = strength_fault(self.word, epsilon=self.epsilon)
        if self.correction not in ("", *CORRECTIONS):
            near = nearest(self.correction, CORRECTIONS)
            found.append(f"{self.word}: correction = {self.correction!r} is unknown{near}")
        elif self.correction and self.epsilon == 0:
            found.append(f"{self.word}: answers with epsilon = 0 tell nothing, so no loss can be corrected for them")
        if found:
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return self.epsilon >= OFF

    def fault(self, shape: TensorShape) -> str | None:
        if shape.dtype != "int64" and not shape.dtype.startswith(("float", "bfloat")):
            return f"label_dp defends class numbers (int64) or 0/1 floats, and {shape} is neither: convert the labels"
        if not shape.shape or math.prod(shape.shape[1:]) != 1:
            return f"label_dp answers for one label a row, and {shape} is something else: leave it out for these labels"
        return None

    def mechanism(self, shape: TensorShape) -> Mechanism | None:
        if self.neutral:
            return None
        return Mechanism(
            kind="pure", scale=self.epsilon, sensitivity=1.0, relation="replace one row's label", once=True
        )

    def release(self, tensor: Tensor, context: Context, state: State) -> Tensor:
        """Raises `PlanError` where it is not known whose rows these are or how many classes there are, and `DataError`
        for labels of none of them."""
        if self.neutral:
            return tensor
        if context.row_keys is None:
            raise PlanError("label_dp answers for each row once, and this party does not know its rows: leave it out")
        classes = _classes(tensor, context)
        drawn = _drawn(context.row_keys)
        labels = tensor.detach().reshape(-1).to("cpu", torch.int64).numpy()
        others = (labels + 1 + (drawn[:, 1] % np.uint64(classes - 1)).astype(np.int64)) % classes
        answers = np.where(drawn[:, 0] < self._threshold(classes), others, labels)
        return torch.from_numpy(answers).to(tensor).view(tensor.shape)

    def chances(self, classes: int) -> Tensor:
        """float64 `[K, K]`: of a row of each class (down), with which chance it is answered with each (across)."""
        other = math.exp(-self.epsilon) / (1 + (classes - 1) * math.exp(-self.epsilon))
        chances = torch.full((classes, classes), other, dtype=torch.float64)
        return chances.fill_diagonal_(1 - (classes - 1) * other)

    def _threshold(self, classes: int) -> np.uint64:
        """Below which a word of 64 random bits changes a label: rounded up, so that ε is not exceeded."""
        odds = (classes - 1) * math.exp(-self.epsilon)
        return np.uint64(math.ceil(odds / (1 + odds) * 2**64))


def _classes(tensor: Tensor, context: Context) -> int:
    """How many classes these are labels of. Raises `PlanError` or `DataError`."""
    if tensor.is_floating_point():
        if context.classes or not bool(((tensor == 0) | (tensor == 1)).all()):
            raise DataError("label_dp defends class numbers (int64) or 0/1 floats, and these labels are neither")
        return 2
    if context.classes < 2:
        raise PlanError("label_dp answers with one of the classes, and how many there are is not known: leave it out")
    if not bool(((tensor >= 0) & (tensor < context.classes)).all()):
        raise DataError(f"label_dp defends class numbers from 0 to {context.classes - 1}, and a label is none of them")
    return context.classes


def _drawn(row_keys: Tensor) -> NDArray[np.uint64]:
    """Two words of 64 random bits for each row, always the same: `[B, 2]`."""
    assert row_keys.dim() == 1
    digests = [blake2b(key.tobytes(), digest_size=16, person=b"label_dp").digest() for key in row_keys.cpu().numpy()]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64).reshape(-1, 2)

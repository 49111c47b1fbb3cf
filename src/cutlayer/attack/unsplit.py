"""UnSplit: inputs, and labels, by whoever knows of a segment its architecture alone.

Erdoğan, Küpçü and Çiçek 2022 (WPES, arXiv 2108.09033). Both attacks put a clone with weights of the attacker's own in
the segment's place, and look for what makes the clone do what crossed: inputs by turns with the clone's weights, labels
by trying every class.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cutlayer.attack.attack import Attack, Knowledge, Need
from cutlayer.attack.matching import Matcher, fresh, groups_by_direction
from cutlayer.attack.optimise import Canvas, descent_faults, distance
from cutlayer.attack.rebuilt import Measure, measure_fault, rebuilt_score, seen_inputs, some
from cutlayer.attack.scoring import accuracy, class_numbers, latest, needed
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError, PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsplitInputs(Attack):
    """Inputs, by coordinate descent (the paper's algorithm 1): steps on x̂ with the clone as it is, then on the clone.

    The paper takes 1000 rounds of 100 steps each; the rates are of Adam (with AMSGrad), `lr` relative to the inputs'
    range. `tv` weighs total variation, of images alone. `rows`: how many are attacked, at most, all with one clone.

    Inputs and clone can both be wrong and fit, with negatives for positives, say. So a low score is no sign of safety,
    least of all after few rounds: take other seeds, and auxiliary rows, at whose mean it begins where there are any.
    """

    rounds: int = 50
    input_steps: int = 20
    clone_steps: int = 20
    lr: float = 0.03
    clone_lr: float = 1e-3
    tv: float = 0.1
    rows: int = 64
    measure: Measure = ""
    word: ClassVar[str] = "unsplit_inputs"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "bottom"})

    def __post_init__(self) -> None:
        found = measure_fault(self.word, self.measure)
        whole = {name: getattr(self, name) for name in ("rounds", "input_steps", "clone_steps", "rows")}
        found += descent_faults(self.word, whole=whole, rates={"lr": self.lr, "clone_lr": self.clone_lr}, tv=self.tv)
        if found:
            raise PlanError(found)

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        """SSIM of images or R² of tables, over rows of the traffic; each row once."""
        if knowledge.bottom is None:
            raise DataError("unsplit_inputs needs the client's architecture: give what makes its segment afresh")
        scored = some(latest(traffic), self.rows, seed)
        z, truth = seen_inputs(self.word, scored)
        clone = fresh(knowledge.bottom, seed)
        rebuilt = self._found(clone, z, Canvas.made(knowledge, truth))
        return rebuilt_score(self.name, truth, rebuilt, knowledge=knowledge, seed=seed, measure=self.measure)

    def _found(self, clone: nn.Module, z: Tensor, canvas: Canvas) -> Tensor:
        paint = torch.zeros_like(canvas.start).requires_grad_()
        on_inputs = torch.optim.Adam([paint], self.lr, amsgrad=True)
        on_clone = torch.optim.Adam(clone.parameters(), self.clone_lr, amsgrad=True)
        for _ in range(self.rounds):
            for _ in range(self.input_steps):
                x = canvas.inputs(paint)
                loss = distance(clone(x), z).sum() + self.tv * canvas.roughness(x)
                _step(on_inputs, loss)
                canvas.within(paint)
            x = canvas.inputs(paint.detach())
            for _ in range(self.clone_steps):
                _step(on_clone, distance(clone(x), z).mean())
        return canvas.inputs(paint.detach())


CLONES = ("still", "taught", "fitted")
SEEN = ("cut", "weights")
BATCH = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsplitLabels(Attack):
    """Labels, by the class whose gradient through a clone of the top is nearest to the one that came (algorithm 2).

    `clone`: it stays as it was made (`still`); after each step it learns from the labels just inferred (`taught`), by
    SGD with `lr` on the mean loss, as the paper's does and as the owner's own top may; or it is `fitted` to the
    gradients that came, by turns with the labels, in `passes` over the rows with Adam, which the paper does not do.

    `seen`: the gradient is that of the activations, at the `cut`; or, as in the authors' experiments, that of the top's
    first `weights`, row by row (`gradients` `[N, *shape]`), which crosses no cut. Of it the rows are the classes, if
    there is one layer. At the cut classes have no names: a top with its classes renumbered gives the same gradients. So
    a clone with weights of its own can tell classes apart, but not which is which, until the attacker knows the labels
    of the first `named` rows that crossed; these are not scored. `rows`: the first so many are attacked.
    """

    clone: str = "fitted"
    seen: str = "cut"
    named: int = 50
    lr: float = 0.01
    passes: int = 20
    rows: int = 2000
    word: ClassVar[str] = "unsplit_labels"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "gradients", "labels", "top"})

    def __post_init__(self) -> None:
        found = [
            f"{self.word}: {name} = {getattr(self, name)!r}: one of {', '.join(known)}"
            for name, known in (("clone", CLONES), ("seen", SEEN))
            if getattr(self, name) not in known
        ]
        whole = {"passes": self.passes, "rows": self.rows}
        found += descent_faults(self.word, whole=whole, rates={"lr": self.lr}, named=self.named)
        if self.clone == "fitted" and self.named == 0:
            found.append(f"{self.word}: a fitted clone's classes have no names: named = 50, or clone = 'taught'")
        if found:
            raise PlanError(found)

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        """The share of rows whose class it names, each row once; chance: to always say the commonest class."""
        if knowledge.top is None:
            raise DataError("unsplit_labels needs the top's architecture: give what makes that segment afresh")
        chosen = traffic.chosen(torch.arange(len(traffic)) < self.rows)
        activations, gradients, labels = needed(self.word, chosen, "activations", "gradients", "labels")
        truth = class_numbers(self.word, labels)
        matcher = Matcher.made(
            fresh(knowledge.top, seed),
            activations,
            gradients,
            of_weights=self.seen == "weights",
            classes=knowledge.classes,
        )
        guesses = self._groups(matcher, chosen.steps, torch.Generator().manual_seed(seed))
        named, scored = self._apart(chosen)
        if self.named:
            guesses = _names(guesses[named], truth[named], matcher.classes)[guesses]
        return accuracy(self.name, guesses[scored], truth[scored])

    def _groups(self, matcher: Matcher, steps: Tensor, generator: torch.Generator) -> Tensor:
        """A class of the clone's for each row `[N]`."""
        every = torch.arange(len(steps))
        if self.clone == "still":
            return matcher.nearest(every)
        if self.clone == "taught":
            return self._taught(matcher, steps)
        groups = groups_by_direction(matcher.gradients, matcher.classes, generator)
        optimizer = torch.optim.Adam(matcher.top.parameters(), self.lr)
        for turn in range(self.passes):
            for at in torch.split(torch.randperm(len(every), generator=generator), BATCH):
                labels = groups[at] if turn < self.passes / 2 else matcher.nearest(at)
                _step(optimizer, matcher.distances(at, labels, learn=True).mean())
        return matcher.nearest(every)

    def _taught(self, matcher: Matcher, steps: Tensor) -> Tensor:
        optimizer = torch.optim.SGD(matcher.top.parameters(), self.lr)
        found = torch.empty(len(steps), dtype=torch.int64)
        for step in torch.unique(steps):
            at = (steps == step).nonzero().flatten()
            found[at] = matcher.nearest(at)
            _step(optimizer, matcher.loss(at, found[at]) / len(at))
        return found

    def _apart(self, traffic: Traffic) -> tuple[Tensor, Tensor]:
        """Places of rows whose labels the attacker knows, and of all others, each as it crossed last."""
        rows = torch.arange(len(traffic)) if traffic.rows is None else traffic.rows.cpu()
        known = torch.isin(rows, rows[: self.named])
        _, which = torch.unique(rows, return_inverse=True)
        last = torch.zeros(int(which.max()) + 1, dtype=torch.int64)
        last.scatter_reduce_(0, which, torch.arange(len(rows)), "amax")
        return known.nonzero().flatten(), last[~known[last]]


def _names(groups: Tensor, labels: Tensor, classes: int) -> Tensor:
    """For each group the class that most of its labelled rows have; without any, the commonest of all `[classes]`."""
    names = labels.mode().values.repeat(classes)
    for group in torch.unique(groups).tolist():
        names[group] = labels[groups == group].mode().values
    return names


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    if not loss.requires_grad:  # a clone without weights, or that tells nothing at all
        return
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()

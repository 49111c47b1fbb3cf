"""DP-SGD: a segment learns from the clipped gradients of single rows, with noise on their sum.

Source: Abadi et al. 2016, "Deep learning with differential privacy" (arXiv 1607.00133), algorithm 1: each row's
gradient over all trained parameters of the segment is scaled to an L2 norm of `clip` at most, and N(0, s²) with s =
noise_multiplier · clip is added to their sum. Replacing one row shifts that sum by 2·clip at most, so that under this
relation a step is a Gaussian mechanism whose noise is noise_multiplier / 2 times its sensitivity (adding or removing a
row: clip, and noise_multiplier times). A row counts once for each step that it is in; shuffled mini-batches amplify
nothing.

That is of one segment, and of a gradient at the cut that tells of one row: where other segments learn from the same
rows without noise, or have BatchNorm, what comes back for row j tells of row i, and a step is counted as what it is
then (`accountant.Release.trained`). The step's normaliser must not depend on rows' values: their number, not a sum of
class weights.

Per-row gradients are Opacus' (its samplers; Yousefpour et al. 2021, arXiv 2109.12298) on the module's own layers: the
module, its parameters and their names stay what they are. They take the memory of the parameters times the rows of a
micro-batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from blake3 import blake3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from cutlayer.defence import noise
from cutlayer.defence.defence import Defence, Kind, Mechanism, strength_fault
from cutlayer.errors import Diverged, PlanError
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import Way

_SLACK = 1e-6
"""As in Opacus: a row is scaled by clip / (norm + this), so that a zero gradient can be scaled, too."""
_MISSING = "dp_sgd needs Opacus: install it with `pip install 'cutlayer[dp-sgd]'`"


@dataclass(frozen=True, kw_only=True)
class DpSgd(Defence):
    """`clip`: the largest L2 norm of a row's gradient; `noise_multiplier`: the noise's standard deviation over it."""

    clip: float
    noise_multiplier: float
    word: ClassVar[str] = "dp_sgd"
    kind: ClassVar[Kind] = "update"
    ways: ClassVar[frozenset[Way]] = frozenset()

    def __post_init__(self) -> None:
        found = strength_fault(self.word, clip=self.clip, noise_multiplier=self.noise_multiplier)
        if not found and self.noise_multiplier and not self.clip:
            found = [f"{self.word}: noise_multiplier = {self.noise_multiplier!r} of a clip of 0: name a clip above 0"]
        if found:
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return not self.clip and not self.noise_multiplier

    def mechanism(self, shape: TensorShape) -> Mechanism | None:
        """What one step tells of a row that is in it, whatever the shape."""
        if not self.noise_multiplier:
            return None
        return Mechanism(kind="gaussian", scale=self.noise_multiplier / 2, sensitivity=2 * self.clip)


class PerSample:
    """The per-row gradients of a module in training: `gather` after each backward, `finish` before the optimizer steps.

    Backward must start from a sum over rows, and rows must come first wherever a layer with parameters is called.
    Tickets may go forward and come back in any order. `close` takes it off the module.
    """

    def __init__(self, module: nn.Module, settings: DpSgd, name: str = "the segment") -> None:
        """Raises `PlanError`: by name, for each layer that it cannot train, and where Opacus is not installed."""
        samplers, whole = _opacus()
        if found := faults(module, name):
            raise PlanError(found)
        self._settings, self._name = settings, name
        self._names = {p: label for label, p in module.named_parameters() if p.requires_grad}
        self._units = {unit: label for label, unit in _units(module, samplers)}
        self._samplers = {unit: samplers.get(type(unit), whole) for unit in self._units}
        self._found: dict[nn.Parameter, Tensor] = {}
        """`[B, ...]` by parameter, of the backward that has not been gathered."""
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._rows = 0
        self._handles = [unit.register_forward_hook(self._capturing(), with_kwargs=True) for unit in self._units]

    def gather(self, rows: int) -> None:
        """Clip the gradients of these rows that a backward has left, and add them to the step's.

        Raises:
            Diverged: one of them is not finite.
            PlanError: a layer was not called with rows first.
        """
        found, self._found = self._found, {}
        self._rows += rows
        for parameter in self._names:
            parameter.grad = None  # the plain sum, which nobody may use
        for parameter, gradient in found.items():
            if len(gradient) != rows:
                raise PlanError(
                    f"dp_sgd: {self._name}: the layer of {self._names[parameter]} was called with {len(gradient)} rows "
                    f"for a mini-batch of {rows}: let the mini-batch come first in every layer that has parameters"
                )
        if not found:
            return
        norms = [torch.linalg.vector_norm(each.reshape(rows, -1), dim=1) for each in found.values()]
        norm_B = torch.linalg.vector_norm(torch.stack(norms, 1), dim=1)  # noqa: N806
        if not bool(torch.isfinite(norm_B).all()):
            raise Diverged(
                f"a row's gradient in {self._name} is not finite, so no step is made: lower the learning rate"
            )
        factor_B = (self._settings.clip / (norm_B + _SLACK)).clamp(max=1)  # noqa: N806
        for parameter, gradient in found.items():
            clipped = torch.einsum("b,b...->...", factor_B, gradient)
            before = self._sums.get(parameter)
            self._sums[parameter] = clipped if before is None else before.add_(clipped)

    @property
    def digest(self) -> str:
        """Of the bits of the step's clipped sums. A step made again has the same noise only if it has the same sums:
        else the noise would cancel between the two. So this belongs into what `finish`'s generator is made of."""
        hashed = blake3(f"{self._rows} ".encode())
        for parameter, name in self._names.items():
            if (total := self._sums.get(parameter)) is not None:
                hashed.update(f"{name} ".encode())
                hashed.update(total.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return hashed.hexdigest()

    def finish(self, generator: torch.Generator) -> int:
        """The step's gradients, with noise, become the parameters' own; of how many rows. Without rows it does nothing.

        `generator`: on the CPU, of the party's own secret, the step's place and `digest` (`noise.generator_of`). Every
        trained parameter gets noise, whether or not a gradient came for it.
        """
        rows, self._rows = self._rows, 0
        sums, self._sums = self._sums, {}
        if not rows:
            return 0
        deviation = self._settings.noise_multiplier * self._settings.clip
        for parameter in self._names:
            total = sums.get(parameter, torch.zeros_like(parameter))
            if deviation:
                drawn = noise.normal(parameter.shape, generator).mul_(deviation)
                total = (total.cpu().double() + drawn).to(total)
            parameter.grad = total.detach()
        return rows

    def drop(self) -> None:
        """Gradients not yet finished are gone."""
        self._found, self._sums, self._rows = {}, {}, 0

    def close(self) -> None:
        """The module is as it was; gradients not yet finished are gone."""
        for handle in self._handles:
            handle.remove()
        for unit in self._units:
            vars(unit).pop("ft_compute_sample_grad", None)
        self.drop()

    def _capturing(self) -> Any:
        """A hook as a plain function, which a copy of the module shares: for that one it does nothing."""

        def capture(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            if module not in self._units or not module.training or not torch.is_grad_enabled():
                return
            if named or len(given) != 1 or not isinstance(output, Tensor):
                raise PlanError(
                    f"dp_sgd cannot train {self._name}.{self._units[module]}, which is not called with one tensor to "
                    "give one: wrap it so that it is, or freeze it"
                )
            if output.requires_grad:
                kept = given[0].detach()
                output.register_hook(lambda gradient: self._sample(module, kept, gradient))  # type: ignore[no-untyped-call]

        return capture

    @torch.no_grad()
    def _sample(self, unit: nn.Module, given: Tensor, gradient: Tensor) -> None:
        """What came back for a layer's output, as gradients of its parameters by row; several calls of it add up."""
        dtype = next(unit.parameters()).dtype
        wide = given.to(dtype) if given.is_floating_point() else given
        for parameter, found in self._samplers[unit](unit, [wide], gradient.to(dtype)).items():
            if not parameter.requires_grad:
                continue
            if isinstance(unit, nn.Embedding) and unit.padding_idx is not None:
                found[:, unit.padding_idx] = 0
            before = self._found.get(parameter)
            self._found[parameter] = found if before is None else before + found


def faults(module: nn.Module, name: str = "the segment") -> list[str]:
    """Why DP-SGD cannot train a module: a sentence for each layer, with the mend. Raises `PlanError` without Opacus."""
    samplers, _ = _opacus()
    from opacus.validators import ModuleValidator

    found = [
        f"dp_sgd cannot train {name}.{label} ({type(layer).__name__}), which mixes the rows of a mini-batch or keeps "
        "statistics of them: use GroupNorm or LayerNorm"
        for label, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) or getattr(layer, "track_running_stats", False)
    ]
    for label, unit in _units(module, samplers):
        told = f"dp_sgd cannot train {name}.{label} ({type(unit).__name__})"
        refused = [] if isinstance(unit, _BatchNorm) else ModuleValidator.VALIDATORS.get(type(unit), lambda _: [])(unit)
        found += [f"{told}: {error}" for error in refused]
        if type(unit) in samplers or refused:
            continue
        if any(isinstance(layer, _DropoutNd) and layer.p for layer in unit.modules()):
            found.append(f"{told}, whose own parameters and dropout lie together: put them into layers of their own")
        if next(unit.buffers(), None) is not None and not isinstance(unit, _BatchNorm):
            found.append(f"{told}, whose own parameters and buffers lie together: put them into layers of their own")
    return found


def _units(module: nn.Module, samplers: dict[type, Any], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers by which a module's trained parameters are reached, by name: one that Opacus knows, or one with
    parameters of its own and all that is in it."""
    own = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    if own:
        yield name or type(module).__name__, module
    if not own or type(module) in samplers:
        for label, child in module.named_children():
            yield from _units(child, samplers, f"{name}.{label}" if name else label)


def _opacus() -> tuple[dict[type, Any], Any]:
    """Its samplers by type of layer, and the one for any other; loaded where they are needed, which takes seconds."""
    try:
        from opacus.grad_sample import GradSampleModule
        from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
    except ImportError as error:
        raise PlanError(_MISSING) from error
    return GradSampleModule.GRAD_SAMPLERS, ft_compute_per_sample_gradient

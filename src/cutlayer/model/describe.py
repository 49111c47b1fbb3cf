"""What crosses each cut, found by running the parts on two, three and five made-up rows."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import torch
from torch import Tensor, nn

from cutlayer.errors import CutError
from cutlayer.model.joining import combine
from cutlayer.model.parts import as_tuple
from cutlayer.model.trace import shortened
from cutlayer.plan.tensors import Dim, DType, TensorShape, TensorSpec
from cutlayer.plan.topology import Join

ROWS = (2, 3, 5)
Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wiring:
    """What each part is called with: the outputs of these sources and parts, as they are joined."""

    feeds: Mapping[str, tuple[str, ...]]
    joins: Mapping[str, Join]


def describe(
    parts: Mapping[str, nn.Module], inputs: Specs | Mapping[str, Specs], wiring: Wiring | None = None
) -> dict[str, Specs]:
    """Each part's outputs for any number of rows, when the first is called with tensors like `inputs`.

    Without `wiring` each part is called with what the one before returns; with it `inputs` are by source.
    A tensor is differentiable if it is a float and depends on a trainable parameter or on a differentiable input.
    Works on copies, in evaluation mode: the parts, their modes and the random numbers stay as they were.

    Raises:
        CutError: a part fails on such inputs, or a size is neither fixed nor a multiple of the rows.
    """
    copies = {name: copy.deepcopy(part).eval() for name, part in parts.items()}
    devices = {parameter.device for part in copies.values() for parameter in part.parameters()}
    cuda = [device for device in devices if device.type == "cuda"]
    given = inputs if isinstance(inputs, Mapping) else {"": inputs}
    if wiring is None:
        before = ("", *copies)
        wiring = Wiring(feeds={name: (below,) for below, name in zip(before, copies, strict=False)}, joins={})
    with torch.random.fork_rng(devices=cuda), torch.enable_grad():
        runs = [_run(copies, given, wiring, rows) for rows in ROWS]
    return {name: _specs(name, [run[name] for run in runs]) for name in parts}


def state_specs(part: nn.Module) -> dict[str, TensorShape]:
    """The dtype and shape of each parameter and buffer that a part saves, by its name in the uncut model.

    >>> {name: str(spec) for name, spec in state_specs(nn.Linear(3, 2)).items()}
    {'weight': 'float32[2, 3]', 'bias': 'float32[2]'}
    """
    return {name: TensorShape(_dtype(value, name), tuple(value.shape)) for name, value in part.state_dict().items()}


def _run(
    parts: Mapping[str, nn.Module], inputs: Mapping[str, Specs], wiring: Wiring, rows: int
) -> dict[str, tuple[Tensor, ...]]:
    random = torch.Generator().manual_seed(rows)
    values = {name: tuple(_example(spec, rows, random) for spec in specs) for name, specs in inputs.items()}
    for name, part in parts.items():
        device = next((parameter.device for parameter in part.parameters()), torch.device("cpu"))
        fed = [values[source] for source in wiring.feeds[name]]
        tensors = tuple(tensor for value in fed for tensor in value)
        try:
            received = [tuple(_received(tensor, device) for tensor in value) for value in fed]
            values[name] = as_tuple(part(*combine(received, wiring.joins.get(name, ""))))
        except CutError as error:
            raise CutError(f"part {name!r}: {error}") from error
        except Exception as error:  # the part runs the user's code
            given = ", ".join(str(TensorShape(_dtype(t, name), tuple(t.shape))) for t in tensors)
            raise CutError(f"part {name!r} fails on {given} ({shortened(error)}): check [input] shape") from error
    return {name: values[name] for name in parts}


def _example(spec: TensorSpec, rows: int, random: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    shape = spec.for_rows(rows).shape
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    return torch.randn(shape, generator=random).to(dtype).requires_grad_(spec.differentiable)


def _received(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor as the next party gets it; a clone, since a part may work in place."""
    return tensor.detach().to(device).requires_grad_(tensor.requires_grad).clone()


def _specs(part: str, runs: Sequence[tuple[Tensor, ...]]) -> Specs:
    if len({len(run) for run in runs}) > 1:
        raise CutError(f"part {part!r} returns another number of tensors for other rows: return always as many")
    return tuple(_spec(f"output {i} of part {part!r}", tensors) for i, tensors in enumerate(zip(*runs, strict=True)))


def _spec(what: str, tensors: Sequence[Tensor]) -> TensorSpec:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    dims = zip(*shapes, strict=True) if len({len(shape) for shape in shapes}) == 1 else iter([()])
    return TensorSpec(
        dtype=_dtype(tensors[0], what),
        shape=tuple(_dim(sizes, f"{what} has shape {' / '.join(map(str, shapes))} for {ROWS} rows") for sizes in dims),
        differentiable=tensors[0].requires_grad,
    )


def _dim(sizes: Sequence[int], what: str) -> Dim:
    if len(set(sizes)) == 1 and sizes:
        return sizes[0]
    factor = sizes[0] // ROWS[0] if sizes else 0
    if not factor or any(size != factor * rows for size, rows in zip(sizes, ROWS, strict=True)):
        raise CutError(f"{what}: only fixed sizes and multiples of the rows can cross, cut at another layer")
    return "B" if factor == 1 else f"{factor}*B"


def _dtype(tensor: Tensor, what: str) -> DType:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in cast("Iterable[str]", get_args(DType)):
        raise CutError(
            f"{what} is a {name} tensor, which cannot cross: convert it to one of {', '.join(get_args(DType))}"
        )
    return cast("DType", name)

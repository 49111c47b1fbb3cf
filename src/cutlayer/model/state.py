"""A replica's state as data: tensors by name and a few counts; its bytes, its parts, and whether a peer's fits.

Keys are `model.<name>` for parameters and buffers (all of them, also what a model does not save),
`optimizer.<parameter>.<entry>`, and `anchor.<parameter>` for what FedProx pulls towards. A tensor that a module holds
under several names (tied weights) goes by the first.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cutlayer.errors import RunError
from cutlayer.model.parts import state_tensors

MODEL, OPTIMIZER, ANCHOR = "model.", "optimizer.", "anchor."
POSITION = ("round", "moves")
SCALARS = (torch.float32, torch.float64, torch.int64, torch.bool)
"""What torch's optimizers count and sum in, whatever the parameter's dtype."""
NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}

Kept = Mapping[str, Mapping[str, Any]]
"""What an optimizer keeps, by parameter and entry, for parameters of one element."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaState:
    """All that a replica is. `counts` are its `round` and its LR schedule's `moves`; empty in a mere share of one."""

    tensors: dict[str, Tensor]
    counts: dict[str, int]

    def copied(self) -> "ReplicaState":
        """The same in memory of its own: what a replica gives is its live tensors, which its next step changes."""
        tensors = {key: tensor.detach().clone() for key, tensor in self.tensors.items()}
        return ReplicaState(tensors=tensors, counts=dict(self.counts))


def to_bytes(state: ReplicaState) -> bytes:
    """The state as safetensors, its counts in the metadata; equal states give equal bytes."""
    counts = msgspec.json.encode(state.counts, order="deterministic").decode()
    return safetensors.torch.save(dict(_apart(state.tensors)), {"counts": counts})


def _apart(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Contiguous tensors on the CPU, no two in the same memory, as safetensors wants them."""
    seen: set[int] = set()
    for key, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        yield key, plain.clone() if memory in seen else plain
        seen.add(memory)


def from_bytes(data: bytes | memoryview) -> ReplicaState:
    """The state that `to_bytes` wrote, on the CPU. What it says is not to be trusted before `check_fits`.

    Raises:
        RunError: the bytes are no state.
    """
    try:
        data = bytes(data)
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = msgspec.json.decode(data[8 : 8 + length])["__metadata__"]
        counts = msgspec.json.decode(metadata["counts"], type=dict[str, int])
    except (safetensors.SafetensorError, msgspec.MsgspecError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError("what came as a replica's state cannot be read as one: it is damaged or no state") from error
    return ReplicaState(tensors=tensors, counts=counts)


def payload_bytes(state: ReplicaState) -> int:
    """How many bytes the tensors alone have.

    >>> payload_bytes(ReplicaState(tensors={"model.weight": torch.zeros(2, 3)}, counts={}))
    24
    """
    return sum(tensor.nbytes for tensor in state.tensors.values())


def buffer_slots(module: nn.Module) -> Iterator[tuple[str, dict[str, Tensor | None], str]]:
    """Where each buffer is held: its name, the holder's buffers, its name there. A shared one goes by the first."""
    seen: set[int] = set()
    for path, layer in module.named_modules():
        for key, buffer in layer._buffers.items():
            if buffer is None or id(buffer) not in seen:
                yield f"{path}.{key}" if path else key, layer._buffers, key
            seen.add(id(buffer))


def as_tensor(value: Any) -> Tensor:
    """What an optimizer keeps, as a tensor that `item()` makes the same number again."""
    return value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=NUMBERS[type(value)])


def with_ties(module: nn.Module, names: Collection[str]) -> frozenset[str]:
    """The names, and all others under which the module holds the same tensors."""
    held = state_tensors(module)
    tensors = {id(tensor) for name, tensor in held if name in names}
    return frozenset(name for name, tensor in held if id(tensor) in tensors)


def averaged_names(module: nn.Module, personal: Collection[str] = ()) -> list[str]:
    """What averaging moves: trainable parameters and float buffers that are not personal, in the module's order.

    Counters (`num_batches_tracked`) and other whole numbers stay, and so does what is frozen: it is equal everywhere.
    """
    own = with_ties(module, personal)
    trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    floats = [name for name, buffer in module.named_buffers() if buffer.is_floating_point()]
    return [name for name in (*trainable, *floats) if name not in own]


def share(state: ReplicaState, names: Iterable[str], *, with_optimizer: bool) -> ReplicaState:
    """The named parameters and buffers alone, with the floats that the optimizer keeps for them if wanted; no counts.

    Raises:
        KeyError: a name that the state does not have.
    """
    wanted = dict.fromkeys(names)
    tensors = {MODEL + name: state.tensors[MODEL + name] for name in wanted}
    if with_optimizer:
        for key, tensor in state.tensors.items():
            if key.startswith(OPTIMIZER) and tensor.is_floating_point() and named(key) in wanted:
                tensors[key] = tensor
    return ReplicaState(tensors=tensors, counts={})


def without_personal(state: ReplicaState, personal: Collection[str]) -> ReplicaState:
    """The state to hand over: all but personal parameters and buffers and what the optimizer keeps for them.

    `personal` has every name of a tensor, as `Replica.personal` does.
    """
    tensors = {key: tensor for key, tensor in state.tensors.items() if named(key) not in personal}
    return ReplicaState(tensors=tensors, counts=dict(state.counts))


def named(key: str) -> str:
    """The parameter or buffer that a tensor of a state is about.

    >>> named("model.fc.weight"), named("optimizer.fc.weight.exp_avg")
    ('fc.weight', 'fc.weight')
    """
    name = key.partition(".")[2]
    return name.rpartition(".")[0] if key.startswith(OPTIMIZER) else name


def check_fits(
    state: ReplicaState,
    module: nn.Module,
    *,
    names: Iterable[str] | None = None,
    kept: Kept | None = None,
    with_position: bool = True,
    moves_at_most: int | None = None,
) -> None:
    """Whether what came from a peer can be loaded into `module`; nothing about it is trusted.

    `names` are the parameters and buffers that must be there, no more and no fewer: all, if not given. `kept` is what
    the optimizer keeps (`Replica.kept`). `with_position`: a replica's counts must be there, else none may be.
    A buffer may be infinite where it is equal to the module's own (a mask).

    Raises:
        RunError: names the first thing that does not fit.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    held = dict(module.named_parameters()) | dict(module.named_buffers())
    wanted = set(held if names is None else names)
    given = {key.removeprefix(MODEL) for key in state.tensors if key.startswith(MODEL)}
    for key, tensor in state.tensors.items():
        own = _own(key, held, parameters, wanted, with_position)
        fault = _tensor_fault(key, tensor, own, kept)
        if fault:
            raise RunError(f"a state that came does not fit: {key!r} {fault}")
    if wanted - given:
        raise RunError(f"a state that came does not fit: it lacks {sorted(wanted - given)[0]!r}")
    _check_entries(state, kept)
    _check_counts(state.counts, with_position, moves_at_most)


def _own(
    key: str, held: Mapping[str, Tensor], parameters: Mapping[str, Tensor], wanted: set[str], whole: bool
) -> Tensor | None:
    """The tensor here that one from a peer is about, if it may be there at all."""
    name = named(key)
    if key.startswith(MODEL):
        return held.get(name) if name in wanted else None
    if key.startswith(OPTIMIZER) or (key.startswith(ANCHOR) and whole):
        return parameters.get(name) if name in wanted else None
    return None


def _tensor_fault(key: str, tensor: Tensor, own: Tensor | None, kept: Kept | None) -> str | None:
    if own is None:
        return "is not asked for here"
    if key.startswith(OPTIMIZER):
        entries = None if kept is None else kept.get(named(key), {})
        entry = key.rpartition(".")[2]
        if entries is not None and entry not in entries:
            return "is nothing that the optimizer here keeps"
        if not _may_be_kept(tensor, own, None if entries is None else entries[entry]):
            return f"is {_looks(tensor)}, which the optimizer here does not keep for {_looks(own)}"
    elif (tensor.dtype, tensor.shape) != (own.dtype, own.shape):
        return f"is {_looks(tensor)}, and here it is {_looks(own)}"
    if not bool(torch.isfinite(tensor).all()):
        mask = key.startswith(MODEL) and not isinstance(own, nn.Parameter) and torch.equal(tensor, own.cpu())
        return None if mask else "has values that are not finite"
    return None


def _may_be_kept(tensor: Tensor, parameter: Tensor, like: Any) -> bool:
    """Whether an optimizer's entry has one element or a size per dimension of its parameter (Adafactor's rows: 1)."""
    if like is not None and not isinstance(like, Tensor):
        return tensor.ndim == 0
    if like is None and tensor.dtype not in (parameter.dtype, *SCALARS):
        return False
    if like is not None and (tensor.dtype, tensor.ndim) != (like.dtype, like.ndim):
        return False
    if tensor.numel() == 1 and tensor.ndim <= max(1, parameter.ndim):
        return True
    sizes = zip(tensor.shape, parameter.shape, strict=False)
    return tensor.ndim == parameter.ndim and all(size in (1, own) for size, own in sizes)


def _check_entries(state: ReplicaState, kept: Kept | None) -> None:
    """An optimizer that keeps something for a parameter keeps all of it."""
    for key in state.tensors:
        if key.startswith(OPTIMIZER) and kept is not None:
            for entry, like in kept[named(key)].items():
                needed = f"{OPTIMIZER}{named(key)}.{entry}"
                if isinstance(like, Tensor) and like.is_floating_point() and needed not in state.tensors:
                    raise RunError(f"a state that came does not fit: it lacks {needed!r}")


def _check_counts(counts: Mapping[str, int], with_position: bool, moves_at_most: int | None) -> None:
    wanted = set(POSITION) if with_position else set()
    if counts.keys() != wanted:
        raise RunError(f"a state that came does not fit: it counts {sorted(counts)}, and not {sorted(wanted)}")
    for name, count in counts.items():
        if count < 0 or (moves_at_most is not None and name == "moves" and count > moves_at_most):
            raise RunError(f"a state that came does not fit: it counts {count} for {name!r}")


def _looks(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"

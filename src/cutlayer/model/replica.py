"""A replica: one copy of a segment with all its state: parameters, buffers, optimizer, place in the LR schedule.

One optimizer object serves a replica for the whole run. Optimizer and LR schedule bear their torch names.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn, optim

from cutlayer.errors import RunError
from cutlayer.model.rates import Rates, make_optimizer
from cutlayer.model.state import (
    ANCHOR,
    MODEL,
    OPTIMIZER,
    POSITION,
    Kept,
    ReplicaState,
    as_tensor,
    buffer_slots,
    check_fits,
    with_ties,
)
from cutlayer.plan.terms import Method, Training

NOT_SPLIT = {
    "LBFGS": "it needs the loss again and again within one step, across the cut",
    "SparseAdam": "it needs sparse gradients, which do not cross",
}
NOT_SCHEDULES = {
    "ReduceLROnPlateau": "it needs a metric that only one party sees",
    "LambdaLR": "it needs a function, which a plan cannot carry",
    "MultiplicativeLR": "it needs a function, which a plan cannot carry",
    "SequentialLR": "it needs other schedule objects",
    "ChainedScheduler": "it needs other schedule objects",
    "LRScheduler": "it is only the base class",
}


class Replica:
    """A segment's module with its optimizer and its place in the LR schedule. A frozen module has no optimizer.

    `rates` are those of the optimizer and `training.lr_schedule`, to be shared by all replicas of a run.
    `personal` are parameters and buffers that averaging leaves alone. `optimizer` is `training.optimizer` if not given.
    With `training.proximal` μ > 0 each step adds μ(w - w₀) to the gradients, where w₀ is what the trained parameters
    that are not personal were when the round began (FedProx: Li et al. 2020, arXiv 1812.06127, equation 2).

    `round` is the last round stepped in, `moves` how often the LR schedule has moved: the round, or the steps taken.
    """

    def __init__(
        self,
        module: nn.Module,
        training: Training,
        *,
        rates: Rates | None = None,
        personal: frozenset[str] = frozenset(),
        optimizer: Method | None = None,
    ) -> None:
        self.module = module.train()  # all its layers: some may have been given in another mode than the whole
        self._parameters = dict(module.named_parameters())
        self._buffers = list(buffer_slots(module))
        self._trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        self.parameters = list(self._trained.values())
        self.personal = with_ties(module, personal) if personal else personal
        self.device = next((p.device for p in self._parameters.values()), torch.device("cpu"))
        self.writes_in_place: dict[bool, bool] = {}
        """Whether the module's first layers write to its inputs, when training and when not, once that is known."""
        self.round = self.moves = 0
        self._method = optimizer or training.optimizer
        self.rates = rates or Rates(self._method, training.lr_schedule)
        self.optimizer = make_optimizer(self._method, self.parameters) if self.parameters else None
        self._fresh = {} if self.optimizer is None else _copied(self.optimizer.state)  # Adagrad starts with some
        self._options: tuple[Mapping[str, Any], float] | None = None
        self._proximal = training.proximal
        self._anchors: dict[str, Tensor] = {}

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        """The module as `torch.compile` makes it at its first calls; its state, names and mode are the module's."""
        return torch.compile(self.module)

    def step(self, normaliser: float, number: int, *, lr_scale: float = 1.0, cached: bool = False) -> None:
        """Divide the accumulated gradients by `normaliser` and step once; `number` is the run's round.

        `lr_scale` multiplies the learning rate of this step only. A parameter without a gradient stays as it is.
        `cached`: it is one more with what an earlier step left, at the last step's learning rate, and the LR schedule
        does not count it.
        """
        if self.optimizer is None:
            return
        if number > self.round:
            self._enter_round(number)
        if normaliser != 1.0:
            self._divide(normaliser)
        if self._proximal:
            self._pull()
        moves = self.moves - 1 if cached and self.rates.every_step else self.moves
        options = self.rates.at(moves), lr_scale
        if options != self._options:
            self._set_options(*options)
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        if self.rates.every_step and not cached:
            self.moves += 1

    def _divide(self, normaliser: float) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.div_(normaliser)

    def _enter_round(self, number: int) -> None:
        self.round = number
        self._anchors.clear()
        if not self.rates.every_step:
            self.moves = number

    def _set_options(self, options: Mapping[str, Any], lr_scale: float) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group.update(options)
            if lr_scale != 1.0:
                group["lr"] = options["lr"] * lr_scale
        self._options = options, lr_scale

    @torch.no_grad()
    def _pull(self) -> None:
        """Towards what the parameters were before the round's first step."""
        if not self._anchors:
            shared = {name: p for name, p in self._trained.items() if name not in self.personal}
            self._anchors = {name: parameter.detach().clone() for name, parameter in shared.items()}
        for name, anchor in self._anchors.items():
            parameter = self._trained[name]
            if parameter.grad is not None:
                parameter.grad.add_(parameter - anchor, alpha=self._proximal)

    def state(self) -> ReplicaState:
        """All that the replica is: its live tensors, not copies of them."""
        tensors = {MODEL + name: tensor.detach() for name, tensor in self._held().items()}
        kept = {} if self.optimizer is None else self.optimizer.state
        for name, parameter in self._trained.items():
            for entry, value in kept.get(parameter, {}).items():
                if value is not None:  # which is the same to torch as not being there
                    tensors[f"{OPTIMIZER}{name}.{entry}"] = as_tensor(value)
        tensors |= {ANCHOR + name: anchor for name, anchor in self._anchors.items()}
        return ReplicaState(tensors=tensors, counts={"round": self.round, "moves": self.moves})

    def load(self, state: ReplicaState) -> None:
        """Become what the state is, in the module's own tensors; nothing of the state's memory is kept.

        Raises:
            RunError: it is not the whole state of such a replica; nothing was loaded.
        """
        missing = [key for key in map(MODEL.__add__, self._held()) if key not in state.tensors]
        missing += [count for count in POSITION if count not in state.counts]
        if missing:
            raise RunError(f"a state without {missing[0]!r} is not that of a whole replica")
        entries = self._entries(state)
        self._copy_model(state)
        if self.optimizer is not None:
            for name, parameter in self._trained.items():
                self._forget(parameter, entries.get(name, {}))
        self._anchors.clear()
        self._take(state, entries)

    def merge(self, state: ReplicaState) -> None:
        """Take what the state has, and keep the rest as it is: personal parameters, counters, an own optimizer.

        Raises:
            RunError: it has what such a replica has not; nothing was loaded.
        """
        entries = self._entries(state)
        self._copy_model(state)
        self._take(state, entries)

    def check(
        self,
        state: ReplicaState,
        *,
        names: Iterable[str] | None = None,
        with_position: bool = True,
        moves_at_most: int | None = None,
    ) -> None:
        """`check_fits` for what came from a peer, to be loaded, or merged if it has only `names`."""
        check_fits(
            state, self.module, names=names, kept=self.kept, with_position=with_position, moves_at_most=moves_at_most
        )

    def reset_optimizer(self) -> None:
        """Forget what the optimizer keeps; the place in the LR schedule stays."""
        if self.optimizer is not None:
            self.optimizer.state.clear()
            self.optimizer.state.update(_copied(self._fresh))

    @cached_property
    def kept(self) -> Kept:
        """What the optimizer keeps for each parameter, found by a step over made-up ones of one element each."""
        if self.optimizer is None:
            return {}
        made = [nn.Parameter(torch.ones((1,) * p.ndim, dtype=p.dtype, device=p.device)) for p in self.parameters]
        optimizer = make_optimizer(self._method, made)
        for group in optimizer.param_groups:
            group.update(self.rates.at(0))  # a schedule may be what gives SGD its momentum
        for parameter in made:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        states = [{entry: value for entry, value in optimizer.state[p].items() if value is not None} for p in made]
        return dict(zip(self._trained, states, strict=True))

    def _held(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, as they are now: a layer may put another tensor in a buffer's place."""
        buffers = {name: held[key] for name, held, key in self._buffers}
        return self._parameters | {name: buffer for name, buffer in buffers.items() if buffer is not None}

    def _entries(self, state: ReplicaState) -> dict[str, dict[str, Tensor]]:
        """The state's optimizer entries by parameter, once it is clear that all can be loaded."""
        held, entries = self._held(), dict[str, dict[str, Tensor]]()
        for key, tensor in state.tensors.items():
            kind, _, name = key.partition(".")
            if kind == "optimizer":
                name, _, entry = name.rpartition(".")
                entries.setdefault(name, {})[entry] = tensor
            own = held.get(name) if kind == "model" else self._trained.get(name)
            if own is None or (kind != "optimizer" and (own.shape, own.dtype) != (tensor.shape, tensor.dtype)):
                raise RunError(f"the tensor {key!r} of a state does not fit the replica that it is loaded into")
        return entries

    @torch.no_grad()
    def _copy_model(self, state: ReplicaState) -> None:
        for name, tensor in self._held().items():
            given = state.tensors.get(MODEL + name)
            if given is not None:
                tensor.copy_(given)

    def _forget(self, parameter: nn.Parameter, entries: Mapping[str, Tensor]) -> None:
        """Drop what the optimizer keeps for a parameter and a state does not have."""
        assert self.optimizer is not None
        kept = self.optimizer.state.pop(parameter, {})
        if entries:
            self.optimizer.state[parameter] = {entry: value for entry, value in kept.items() if entry in entries}
        elif parameter in self._fresh:
            self.optimizer.state.update(_copied({parameter: self._fresh[parameter]}))

    @torch.no_grad()
    def _take(self, state: ReplicaState, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, given in entries.items():
            assert self.optimizer is not None
            kept = self.optimizer.state[self._trained[name]]
            for entry, value in given.items():
                old = kept.get(entry)
                if isinstance(old, Tensor) and (old.shape, old.dtype) == (value.shape, value.dtype):
                    old.copy_(value)
                else:
                    kept[entry] = self._made(name, entry, value)
        for key, tensor in state.tensors.items():
            if key.startswith(ANCHOR):
                self._anchors[key.removeprefix(ANCHOR)] = tensor.to(self.device, copy=True)
        self.round = state.counts.get("round", self.round)
        self.moves = state.counts.get("moves", self.moves)

    def _made(self, name: str, entry: str, value: Tensor) -> Any:
        """An optimizer's entry where there was none: a number where torch has one, and on the device torch has it."""
        like = self.kept.get(name, {}).get(entry, self._trained[name])
        return value.to(like.device, copy=True) if isinstance(like, Tensor) else value.item()


def _copied(kept: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    return {
        parameter: {entry: value.clone() if isinstance(value, Tensor) else value for entry, value in entries.items()}
        for parameter, entries in kept.items()
    }


def optimizer_names() -> list[str]:
    """The optimizers that a plan may name."""
    return sorted(_classes(optim, optim.Optimizer) - set(NOT_SPLIT) - {"Optimizer"})


def schedule_names() -> list[str]:
    """The LR schedules that a plan may name."""
    return sorted(_classes(optim.lr_scheduler, optim.lr_scheduler.LRScheduler) - set(NOT_SCHEDULES))


def _classes(module: object, base: type) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and not name.startswith("_")
    }


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in name order: equal if and only if all bits are."""
    digest = sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""A model's forward as a graph in which every layer that is not cut through stays one opaque call.

Only the forwards of the cut layers' ancestors are traced; whatever else the model holds may be untraceable.
"""

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from cutlayer.errors import CutError

FACTORIES = (torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.rand, torch.randn, torch.randint)
"""What fx does not record by itself when given the size of a traced tensor, `torch.zeros(x.size(0), 8)`."""
PARTS_HINT = "give explicit parts instead, `Parts(bottom=Bottom(), top=Top())`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """The graph of one mode. `marks` are the nodes that a cut layer returns, one set a cut, in the cuts' order.

    `constants` are the tensors that the traced code makes itself (`torch.tensor(0.5)`), by their name in the graph.
    """

    graph: fx.Graph
    marks: tuple[tuple[fx.Node, ...], ...]
    constants: Mapping[str, Tensor]

    def signature(self) -> tuple[str, ...]:
        """Equal for two graphs that compute the same."""
        return tuple(f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in self.graph.nodes)


def trace(model: nn.Module, layers: Sequence[str]) -> dict[bool, Trace]:
    """The model's graph in training mode (True) and in evaluation mode (False); the model is left as it was.

    Raises:
        CutError: a forward that torch.fx cannot trace, or that does what its graph would not: draw random numbers,
            switch gradients or autocast, make a tensor of parameters.
    """
    traced = {training: _trace(model, layers, training=training) for training in (True, False)}
    for name, constant in traced[True].constants.items():
        if constant.requires_grad or not torch.equal(constant, traced[False].constants.get(name, constant)):
            raise CutError(_frozen(layers, "makes a tensor of parameters or of its mode"))
    return traced


def _frozen(layers: Sequence[str], what: str) -> str:
    return f"a forward around {_listed(layers)} {what}, which a cut would freeze: do it in a layer of its own"


def ancestors(model: nn.Module, layers: Iterable[str]) -> dict[str, nn.Module]:
    """The modules whose forward a cut goes through, by path; the model itself is ""."""
    paths = {""} | {layer[:i] for layer in layers for i, letter in enumerate(layer) if letter == "."}
    return {path: model.get_submodule(path) for path in sorted(paths)}


def _trace(model: nn.Module, layers: Sequence[str], *, training: bool) -> Trace:
    through = ancestors(model, layers)
    tracer = _Tracer(model, layers, through.values())
    with _untouched(through.values()), _no_randomness(layers), torch.enable_grad():
        for module in through.values():
            module.training = training
        try:
            graph = tracer.trace(model)
        except CutError:
            raise
        except Exception as error:  # traced code is the user's, and fx raises whatever it meets there
            raise CutError(_untraceable(layers, through, error)) from error
        constants = {
            str(node.target): value
            for node in graph.nodes
            if node.op == "get_attr" and str(node.target).startswith("_tensor_constant")
            if isinstance(value := getattr(model, str(node.target)), Tensor)
        }
    for node in graph.nodes:
        node.meta.pop("is_wrapped", None)  # else the part's generated code registers names with fx for good
    return Trace(graph=graph, marks=tuple(map(tracer.mark, layers)), constants=constants)


class _Tracer(fx.Tracer):
    """Traces the ancestors of the cut layers and nothing else."""

    proxy_buffer_attributes = True

    def __init__(self, model: nn.Module, layers: Sequence[str], through: Iterable[nn.Module]) -> None:
        super().__init__(autowrap_functions=FACTORIES)
        self._autowrap_search.append(torch)  # where a forward looks `torch.zeros` up
        self._model = model
        self._through = {id(module) for module in through}
        self._layers, self._switches = layers, _switches()
        self._calls: dict[int, list[tuple[fx.Node, ...]]] = {id(model.get_submodule(layer)): [] for layer in layers}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._through

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        if id(m) in self._calls:
            self._calls[id(m)].append(tuple(_nodes(out)))
        return out

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if torch.is_grad_enabled() is False or _switches() != self._switches:
            raise CutError(_frozen(self._layers, "switches gradients or autocast off or on"))
        return super().create_node(*args, **kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Inputs without a default become tensors; options keep their defaults."""
        args: list[Any] = [self._model]
        for parameter in inspect.signature(self._model.forward).parameters.values():
            if parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY):
                raise CutError(f"the model's forward takes {str(parameter)!r}: give its inputs plain positional names")
            args.append(self.create_proxy("placeholder", parameter.name, (), {}))
        return root_fn, args

    def mark(self, layer: str) -> tuple[fx.Node, ...]:
        """The nodes that `layer` returns."""
        calls = self._calls[id(self._model.get_submodule(layer))]
        if len(calls) > 1:
            raise CutError(
                f"layer {layer!r} is called {len(calls)} times in one forward, so there is no single place after it: "
                f"cut at a layer that is called once"
            )
        if not calls:
            raise CutError(f"layer {layer!r} is never called in the model's forward: cut at a layer that is called")
        if not calls[0]:
            raise CutError(f"layer {layer!r} returns no tensor: cut at a layer that returns one")
        return calls[0]


def _nodes(value: Any) -> Iterator[fx.Node]:
    if isinstance(value, fx.Proxy):
        yield value.node
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _nodes(item)
    elif isinstance(value, dict):
        yield from _nodes(list(value.values()))


@contextmanager
def _untouched(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Takes back what tracing writes on modules: modes, fx's constants, proxies that a forward stored on itself."""
    kept = [(module, dict(module.__dict__)) for module in modules]
    registers = [
        (register, dict(register)) for _, held in kept for register in held.values() if isinstance(register, dict)
    ]
    try:
        yield
    finally:
        for module, held in kept:
            module.__dict__.clear()
            module.__dict__.update(held)
        for register, entries in registers:
            register.clear()
            register.update(entries)


@contextmanager
def _no_randomness(layers: Sequence[str]) -> Iterator[None]:
    """Puts the random state back, and refuses code that moved it: what it drew would be drawn once and for all."""
    before = random.getstate()
    with torch.random.fork_rng(devices=[]):
        drawn = torch.get_rng_state()
        try:
            yield
            if random.getstate() != before or not torch.equal(torch.get_rng_state(), drawn):
                raise CutError(_frozen(layers, "draws random numbers"))
        finally:
            random.setstate(before)


def _switches() -> tuple[bool, ...]:
    return torch.is_inference_mode_enabled(), *map(torch.is_autocast_enabled, ("cpu", "cuda"))


def _untraceable(layers: Sequence[str], through: Mapping[str, nn.Module], error: Exception) -> str:
    kinds = ", ".join(f"{path or 'the model'} ({type(module).__name__})" for path, module in through.items())
    reason = shortened(error)
    return f"torch.fx cannot follow the forwards around {_listed(layers)}, of {kinds} ({reason}): {PARTS_HINT}"


def shortened(error: Exception, limit: int = 160) -> str:
    """The first line of an error's text."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _listed(layers: Sequence[str]) -> str:
    return ", ".join(map(repr, layers))

"""A trained model out of the segments that their owners release: weights and a module that loads them, or ONNX."""

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cutlayer.errors import PlanError, RunError
from cutlayer.model.cut import parts_by_name
from cutlayer.model.merge import merge
from cutlayer.model.whole import Whole
from cutlayer.party.agreement import Agreement, build_model, read_plan_terms
from cutlayer.plan.topology import Topology

MODEL = "model.safetensors"
PLAN = "plan.toml"


def released(agreement: Agreement, weights: Sequence[Mapping[str, Tensor]]) -> nn.Module:
    """The uncut model with these weights; what only helps to train may lack, and is then as it was before the run.

    Raises `RunError` that names the segments nobody has released.
    """
    topology = agreement.plan.topology
    given = {name for each in weights for name in each}
    held = {name: segment.state.keys() for name, segment in agreement.plan.contents.segments.items()}
    answering = {segment.name for segment in topology.without(topology.unused_in_prediction).segments}
    missing = [segment for segment, names in held.items() if not names <= given]
    if needed := [segment for segment in missing if segment in answering]:
        told = ", ".join(f"{segment} (of {topology.role_of(segment)})" for segment in needed)
        raise RunError(f"nobody has released {told}: give the folder of weights of each of its owners")
    initial = agreement.model.state_dict()
    spare = {name: initial[name] for segment in missing for name in held[segment] - given}
    return merge(agreement.model, [*weights, spare]).eval()


def write_model(folder: Path, plan: Path, agreement: Agreement, model: nn.Module) -> Path:
    """Write the weights into a folder, with the plan and the model's source that `load_model` needs.

    Raises `PlanError` for a folder that cannot be written, or is the plan's own.
    """
    if folder.resolve() == plan.parent.resolve():
        raise PlanError(f"{folder} is the plan's own folder: name another one for the model")
    source = agreement.plan.terms.model.source
    try:
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        for name, target in ((plan.name, PLAN), (source, source)):
            shutil.copyfile(plan.parent / name, folder / target)
    except OSError as error:
        raise PlanError(f"{folder} cannot be written ({error.strerror}): name another folder") from error
    temporary = folder / f"{MODEL}.tmp"
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, temporary, metadata={"plan": agreement.plan.digest})
    temporary.replace(folder / MODEL)
    return folder / MODEL


def load_model(folder: str | Path) -> nn.Module:
    """The model that `cutlayer export` has written into a folder, in eval mode.

    It is called as the uncut model is; one of several parties' columns as `model(x_bank_a, x_bank_b)`, in the order of
    the plan. Runs the model's source in the folder: only for a folder that you trust. Raises `PlanError`, `RunError`.
    """
    folder = Path(folder)
    terms = read_plan_terms(folder / PLAN)
    model = build_model(folder / terms.model.source)
    try:
        model.load_state_dict(load_file(folder / MODEL))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{folder / MODEL} does not fit the model: export it anew ({error})") from error
    return usable(terms.drawn(), model)


def usable(topology: Topology, model: nn.Module) -> nn.Module:
    """The model as one module that answers: itself if it is a chain, else its segments wired. In eval mode."""
    if topology.is_chain:
        return model.eval()
    return Whole(topology, parts_by_name(model, [segment.name for segment in topology.segments])).eval()


def write_onnx(path: Path, agreement: Agreement, model: nn.Module) -> Path:
    """Write the model as ONNX, for any number of rows. Raises `PlanError` if torch cannot, or has not what it needs."""
    topology = agreement.plan.topology
    module = usable(topology, model)
    used = topology.without(topology.unused_in_prediction)
    names = [source.name for source in used.sources]
    examples = []
    for name in names:
        specs = agreement.plan.contents.edges[used.outputs(name)[0].name]
        tensors = tuple(torch.zeros(s.for_rows(2).shape, dtype=getattr(torch, s.dtype)) for s in specs)
        examples.append(tensors if len(tensors) > 1 and isinstance(module, Whole) else tensors[0])
    rows = torch.export.Dim("rows")
    shapes: tuple[object, ...] = tuple(
        tuple({0: rows} for _ in each) if isinstance(each, tuple) else {0: rows} for each in examples
    )
    if isinstance(module, Whole):  # its inputs are one variadic argument
        shapes = (shapes,)
    options: dict[str, Any] = {"dynamo": True, "dynamic_shapes": shapes, "external_data": False}
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"{path.parent} cannot be made ({error.strerror}): name another file") from error
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")
            torch.onnx.export(module, tuple(examples), temporary, **options)
    except ImportError as error:
        raise PlanError(f"to write ONNX torch needs more packages ({error}): pip install 'cutlayer[onnx]'") from error
    except Exception as error:
        raise PlanError(f"torch cannot write this model as ONNX: {str(error).splitlines()[0]}") from error
    temporary.replace(path)
    return path


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """What a library would log here concerns its own developers."""
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)

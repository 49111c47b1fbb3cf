"""From terms and a model to a plan that all parties can agree on; from a folder's files to both.

`model.py` is code that its author gave to all parties and that each party read and accepted: its digest is part of
the plan. Nothing that comes over a link is ever executed.
"""

import importlib.util
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cutlayer.errors import CutError, CutlayerError, PlanError
from cutlayer.model.cut import cut, parts_by_name
from cutlayer.model.describe import Wiring, describe, state_specs
from cutlayer.model.joining import unjoinable
from cutlayer.model.loss import Loss
from cutlayer.model.methods import batch_norm_layers, canonical, mixes_rows, personal_names
from cutlayer.model.replica import state_digest
from cutlayer.party.coding import codec_faults
from cutlayer.party.defences import defence_faults
from cutlayer.party.judging import check_faults
from cutlayer.party.private import learning_faults
from cutlayer.plan import check
from cutlayer.plan.document import read_terms
from cutlayer.plan.plan import Contents, Cutting, Plan, SegmentContents
from cutlayer.plan.schedule import SCHEDULES
from cutlayer.plan.streams import stream_seed
from cutlayer.plan.tensors import TensorSpec
from cutlayer.plan.terms import Terms
from cutlayer.plan.topology import Edge, SourceKind, Topology


@dataclass(frozen=True, kw_only=True, slots=True)
class Brought:
    """A source: what one row of it looks like; of labels that are classes, how many there are."""

    kind: SourceKind
    specs: tuple[TensorSpec, ...]
    classes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """A plan with what it speaks of: the uncut model with its initial weights, and the model's segments."""

    plan: Plan
    model: nn.Module
    parts: dict[str, nn.Module]
    elsewhere: dict[str, dict[str, nn.Module]] = field(default_factory=dict)
    """For clients whose model is cut elsewhere: their segments."""

    def parts_of(self, owner: str) -> dict[str, nn.Module]:
        """The segments that `owner`'s rows meet."""
        return self.elsewhere.get(owner, self.parts)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a row of features looks like; where parties have different columns, the first one's."""
        return self._carried("rows")

    @property
    def labels(self) -> TensorSpec:
        """What a row's label looks like; the first one's where there are several tasks."""
        return self._carried("labels")[0]

    def brought(self, party: str) -> dict[str, Brought]:
        """The columns that a party brings, by source."""
        contents = self.plan.contents
        return {
            source.name: Brought(
                kind=source.kind,
                specs=contents.edges[self.plan.topology.outputs(source.name)[0].name],
                classes=contents.classes.get(source.name, 0),
            )
            for source in self.plan.sources_of(party)
        }

    def features_of(self, party: str) -> tuple[TensorSpec, ...]:
        """What a row of a party's features looks like; nothing of one that brings none."""
        return next((each.specs for each in self.brought(party).values() if each.kind == "rows"), ())

    def segments_of(self, party: str) -> tuple[str, ...]:
        """The segments that a party runs."""
        plan = self.plan
        return tuple(segment.name for segment in plan.topology.segments if plan.holds(party, segment.role))

    def _carried(self, kind: str) -> tuple[TensorSpec, ...]:
        topology = self.plan.topology
        edge = next(edge for edge in topology.edges if topology.source_kind(edge) == kind)
        return self.plan.contents.edges[edge.name]


def draft(terms: Terms, model: nn.Module, *, model_digest: str = "") -> Agreement:
    """Cut the model as the terms say and write down what follows. Raises `PlanError` with all faults, `CutError`."""
    faults = check.faults(terms)
    training, method_faults = canonical(terms.training)
    terms = replace(terms, training=training)
    faults += [*method_faults, *check_faults(terms)]
    in_parts = training.micro_batches != 1 and not training.statistics_of_parts
    if in_parts and (layers := batch_norm_layers(model)):
        faults.append(
            f"training.micro_batches = {training.micro_batches!r}, but {', '.join(layers)} normalise(s) over the whole "
            "batch: use GroupNorm, or micro_batches = 1, or say statistics_of_parts = true, and each part has its own"
        )
    if faults:
        raise PlanError(faults)
    sketch = Plan(terms=terms, contents=Contents.empty())
    parts, cutting, classes = _cut(sketch, model, terms.model.cut)
    elsewhere, cuttings = {}, {}
    for name in terms.filling("client"):
        if (own := terms.parties[name].cut) and own != terms.model.cut:
            elsewhere[name], cuttings[name], _ = _cut(sketch, model, own)
    personal, faults = personal_names(model, training.personal)
    faults += [fault for each in (cutting, *cuttings.values()) for fault in codec_faults(sketch, each)]
    faults += [fault for each in (cutting, *cuttings.values()) for fault in defence_faults(sketch, each, classes)]
    faults += [fault for own in (parts, *elsewhere.values()) for fault in learning_faults(sketch, own)]
    faults += _joining_faults(terms, parts, cutting, sketch.topology, frozenset(personal))
    if faults:
        raise PlanError(faults)
    contents = Contents(
        segments=cutting.segments,
        edges=cutting.edges,
        classes=classes,
        model_digest=model_digest,
        weights_digest=state_digest(model.state_dict()),
        personal=personal,
        cuttings=cuttings,
    )
    return Agreement(plan=Plan(terms=terms, contents=contents), model=model, parts=parts, elsewhere=elsewhere)


def _cut(
    sketch: Plan, model: nn.Module, at: tuple[str, ...]
) -> tuple[dict[str, nn.Module], Cutting, dict[str, int]]:  # fmt: skip
    """The model's parts when cut there, what that makes of the topology, and how many classes labels have."""
    topology = sketch.topology
    names = [segment.name for segment in topology.segments]
    parts = cut(model, at or None, names) if topology.is_chain else parts_by_name(model, names)
    carried: dict[str, tuple[TensorSpec, ...]] = {
        source.name: tuple(each.spec for each in sketch.terms.inputs_of(source.role))
        for source in topology.sources
        if source.kind == "rows"
    }
    outputs = describe(parts, carried, _wiring(topology))
    labels, classes = _labels(sketch, outputs, carried)
    cutting = Cutting(
        segments={name: _segment(part) for name, part in parts.items()},
        edges={edge.name: _carried_by(edge, carried | labels | outputs) for edge in topology.edges},
    )
    return parts, cutting, classes


def _wiring(topology: Topology) -> Wiring:
    feeds = {
        segment.name: tuple(
            edge.source
            for edge in topology.inputs(segment.name)
            if not segment.loss or edge != topology.target(segment.name)
        )
        for segment in topology.segments
    }
    return Wiring(feeds=feeds, joins={segment.name: segment.join for segment in topology.segments})


def _labels(
    sketch: Plan, outputs: dict[str, tuple[TensorSpec, ...]], rows: dict[str, tuple[TensorSpec, ...]]
) -> tuple[dict[str, tuple[TensorSpec, ...]], dict[str, int]]:
    """What each source of labels must look like for the losses that it goes to. Raises `PlanError`."""
    labels: dict[str, tuple[TensorSpec, ...]] = {}
    classes: dict[str, int] = {}
    faults = []
    topology, micro_batches = sketch.topology, sketch.terms.training.micro_batches
    for node in topology.losses:
        loss, answer, edge = Loss(sketch.loss_of(node.name)), outputs[node.name][0], topology.target(node.name)
        assert edge is not None
        if fault := loss.fault(answer):
            faults.append(fault)
            continue
        if len(topology.losses) > 1 and micro_batches != 1 and loss.counts_labels:
            faults.append(
                f"training.micro_batches = {micro_batches!r}, but what the loss of {node.name} is divided by depends "
                "on the labels of the whole batch, and there are several losses: say micro_batches = 1"
            )
        due = (loss.labels(answer),)
        known = labels.setdefault(edge.source, rows.get(edge.source, due))
        if known != due:
            told = ", ".join(map(str, known))
            faults.append(f"the loss of {node.name} compares {due[0]} with {edge.source}, which is {told}")
        if topology.source_kind(edge) == "labels":
            classes[edge.source] = loss.classes(answer)
    if faults:
        raise PlanError(faults)
    return {name: specs for name, specs in labels.items() if name not in rows}, classes


def _carried_by(edge: Edge, carried: dict[str, tuple[TensorSpec, ...]]) -> tuple[TensorSpec, ...]:
    specs = carried[edge.source]
    if edge.gradient:
        return specs
    return tuple(TensorSpec(dtype=spec.dtype, shape=spec.shape, differentiable=False) for spec in specs)


def _joining_faults(
    terms: Terms, parts: dict[str, nn.Module], cutting: Cutting, topology: Topology, personal: frozenset[str]
) -> list[str]:
    """Why the batches of several clients could not be joined, or would not give the union's gradients."""
    if not SCHEDULES[terms.schedule].joined:
        return []
    faults = [
        f"under {terms.schedule} batches are joined at the server, but {which} on {edge} has no dimension for rows"
        for edge, specs in cutting.edges.items()
        for which in unjoinable(specs)
    ]
    if terms.training.client_segments == "equal":
        layers = [
            layer
            for segment in topology.segments
            if segment.role == "client"
            for layer in batch_norm_layers(parts[segment.name])
            if not any(name.startswith(f"{layer}.") for name in personal)
        ]
        if layers:
            faults.append(
                f"under parallel client segments stay equal, but {', '.join(layers)} normalise(s) by each client's own "
                'batch: use GroupNorm, name them in training.personal, or say training.client_segments = "own"'
            )
    return faults


def _segment(part: nn.Module) -> SegmentContents:
    trainable = sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
    return SegmentContents(state=state_specs(part), parameters=trainable, mixes_rows=mixes_rows(part))


# ---------------------------------------------------------------------- a folder's files


def read_agreement(path: Path) -> Agreement:
    """The agreement that `plan.toml`, the model's source and the initial weights beside it state.

    Runs the model's source: only for a plan that the user wrote, reads, or has accepted.
    Raises `PlanError` with all faults, `CutError`.
    """
    terms = read_plan_terms(path)
    faults = check.faults(terms) + canonical(terms.training)[1]
    if faults:
        raise PlanError(faults)
    source = _beside(path, terms.model.source)
    model = build_model(source)
    _load_weights(model, _beside(path, terms.model.weights), path)
    return draft(terms, model, model_digest=sha256(source.read_bytes()).hexdigest())


def read_plan_terms(path: Path) -> Terms:
    """The terms in a `plan.toml`. Raises `PlanError`."""
    try:
        return read_terms(path.read_text())
    except OSError as error:
        raise PlanError(f"{path} cannot be read ({error.strerror}): `cutlayer init` writes one") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path} is not a text file in UTF-8") from error


def files_digest(path: Path) -> str:
    """SHA-256 over the plan's text and the files it names, found without running any of them."""
    terms = read_plan_terms(path)
    digest = sha256(path.read_bytes())
    for name in (terms.model.source, terms.model.weights):
        try:
            digest.update(sha256(_beside(path, name).read_bytes()).digest())
        except OSError as error:
            raise PlanError(f"{name}, named in {path}, cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def build_model(source: Path) -> nn.Module:
    """The model that `build()` in a source file makes. Raises `PlanError`."""
    spec = importlib.util.spec_from_file_location(f"cutlayer_model_{source.stem}", source)
    if not source.is_file() or spec is None or spec.loader is None:
        raise PlanError(f"{source} is no Python file: model.source names the file that has build() -> nn.Module")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        model = module.build()
    except CutlayerError:
        raise
    except AttributeError as error:
        if hasattr(module, "build"):
            raise PlanError(f"{source}: build() failed: {error}") from error
        raise PlanError(f"{source} has no function build(): write `def build() -> nn.Module`") from error
    except Exception as error:
        raise PlanError(f"{source}: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise PlanError(f"{source}: build() returned {type(model).__name__}, not an nn.Module")
    return model


def write_weights(path: Path) -> Path:
    """Draw initial weights with the plan's seed and write them beside the plan; returns the file's path."""
    terms = read_plan_terms(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(str(terms.seed).encode(), "initial weights"))
        model = build_model(_beside(path, terms.model.source))
    target = _beside(path, terms.model.weights)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, target)
    return target


def _load_weights(model: nn.Module, weights: Path, plan: Path) -> None:
    mend = f"draw them anew with `cutlayer plan weights {plan}` and give the file to all parties"
    if not weights.is_file():
        raise PlanError(f"{weights} is missing: the initial weights travel beside the plan; {mend}")
    try:
        model.load_state_dict(load_file(weights), strict=True)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).split("\n")[1:2] or [str(error)]
        raise CutError(f"{weights} does not fit the model ({reason[0].strip()}): {mend}") from error


def _beside(plan: Path, name: str) -> Path:
    folder = plan.resolve().parent
    target = (folder / name).resolve()
    if not target.is_relative_to(folder):
        raise PlanError(f"{name!r} in {plan} leads out of the plan's folder: put the file beside the plan")
    return target

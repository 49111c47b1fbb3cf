"""A whole plan in one call: what its arguments make of it, and what the rows say about themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.data import Dataset

from cutlayer.data.tables import Table
from cutlayer.errors import DataError, PlanError
from cutlayer.observe.facts import Observer
from cutlayer.observe.tap import Tap
from cutlayer.party.agreement import draft
from cutlayer.party.defending import Hijack
from cutlayer.plan.check import needs_aggregator
from cutlayer.plan.document import nearest
from cutlayer.plan.limits import Limits
from cutlayer.plan.schedule import LEGAL, SCHEDULES, TurnUnit
from cutlayer.plan.terms import (
    AveragedOptimizer,
    BudgetTerms,
    Choice,
    ClientSegments,
    CodecTerms,
    DefenceTerms,
    InputTerms,
    Method,
    ModelTerms,
    OnAlarm,
    Option,
    PartyTerms,
    ProbeTerms,
    Terms,
    Training,
    TurnCheckTerms,
)
from cutlayer.plan.topology import OWN, TOPOLOGIES, Join, Topology
from cutlayer.simulation.runs import Result, simulate_plan

Data = Dataset[Any]
Cut = str | int | Sequence[str | int] | None
HeldOut = float | Mapping[str, Data]


def simulate(  # noqa: PLR0913 (a whole plan in one call; every argument has its word in `plan.toml`)
    model: nn.Module,
    *,
    cut: Cut = None,
    data: Mapping[str, Data],
    topology: str | Topology = "vanilla",
    schedule: str = "",
    roles: Mapping[str, str] | None = None,
    conductor: str = "",
    labels: str = "",
    labels_leave: bool = False,
    join: Join = "concat",
    turn: TurnUnit = "epoch",
    loss: str | Mapping[str, Any] = "cross_entropy",
    losses: Mapping[str, str | Mapping[str, Any]] | None = None,
    loss_weights: Mapping[str, float] | None = None,
    optimizer: str | Mapping[str, Any] = "sgd",
    server_optimizer: str | Mapping[str, Any] | None = None,
    lr: float | None = None,
    lr_schedule: str | Mapping[str, Any] | None = None,
    lr_scales: Mapping[str, float] | None = None,
    batch_size: int = 64,
    micro_batches: int | Literal["auto"] = 1,
    in_flight: int = 0,
    staleness: int = 0,
    statistics_of_parts: bool = False,
    cached_steps: int = 0,
    autocast: Sequence[str] = (),
    compiled: Sequence[str] = (),
    rounds: int = 1,
    clients_per_round: Choice = "all",
    local_epochs: int = 1,
    local_steps: int = 0,
    averaged_optimizer: AveragedOptimizer = "reset",
    client_segments: ClientSegments = "equal",
    cut_average: float = 0.0,
    proximal: float = 0.0,
    averaging: str | Mapping[str, Any] | None = None,
    turn_check: TurnCheckTerms = TurnCheckTerms(),  # noqa: B008 (frozen)
    personal: Sequence[str] = (),
    upload_every: int = 1,
    party_dropout: float = 0.0,
    codec: str | CodecTerms | Sequence[CodecTerms] = (),
    defence: DefenceTerms | Sequence[DefenceTerms] = (),
    budget: BudgetTerms | Sequence[BudgetTerms] = (),
    probe: ProbeTerms = ProbeTerms(),  # noqa: B008 (frozen)
    on_alarm: OnAlarm = "tell",
    cuts: Mapping[str, Cut] | None = None,
    aggregator_sees_weights: bool = False,
    secure_aggregation: bool = False,
    held_out: HeldOut = 0.2,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    max_live: int = Limits().max_live,
    secrets: Mapping[str, bytes] | None = None,
    observers: Sequence[Observer] = (),
    taps: Sequence[Tap] = (),
    hijacks: Mapping[str, Hijack] | None = None,
    device: str = "cpu",
) -> Result:
    """Train `model`, cut after the layers `cut`, on the rows of many clients and one server called `server`.

    Where the schedule sums what clients send, a party called `aggregator` does it.

    Args:
        model: the uncut model, with its initial weights. It is not changed. Where the topology is no chain: `Parts`, a
            part for each segment.
        cut: one layer for `vanilla`, two for `u_shaped`, as many as there are hops and one more for `multi_hop`; None
            for explicit `Parts`.
        data: a map-style dataset of `(x, y)` samples for each client, in party order; where parties have columns of
            the same rows, `x` alone, `y` alone or both, as a party has them.
        topology: one by its name (`cutlayer.plan.topology.TOPOLOGIES`), or one of your own.
        schedule: `alternating`, `relay`, `parallel`, `splitfed_v1`, `splitfed_v2` or `splitfed_v3`; `joint` where
            parties have columns of the same rows. By default the first that goes with the topology.
        roles: the roles of parties that are no clients, `{"bureau": "server"}`; a party called `server` is one.
        conductor: who hands out turns, if not the first server.
        labels: the party that has the labels, where that is a choice; `labels_leave`: they may go to the server.
        join: how several parties' activations become one: `"concat"`, `"sum"`, `"mean"`, or `""`: the model's part
            is called with all of them.
        losses: of segments that have another loss, by segment; `loss_weights`: λ of each, where there are several.
        upload_every: with `decoupled`, the server gets each so-manyth batch.
        party_dropout: how often a party's activation is left out in training, so that the model can do without.
        codec: how what crosses is encoded: a codec's name for all cuts and both ways, or for each cut what a plan says.
        defence: what makes safer what crosses, as a plan says it; `budget`: how much a party may tell of a row.
        probe: mini-batches with wrong labels that ask whether the server looks at labels; `on_alarm`: whether what
            they find is told (`"tell"`), or ends the run (`"end"`).
        turn: with `alternating` and `relay`, `"epoch"` or `"batch"`: how long one client trains before the next does.
        loss: a loss by its name in `torch.nn.functional`, or a mapping of `name` and its options.
        optimizer: one by its name in `torch.optim`, or a mapping of `name` and its options; `lr` is one of them.
        server_optimizer: that of server segments, if another one.
        lr_schedule: one by its name in `torch.optim.lr_scheduler`, or a mapping; it moves on every round, or on every
            step with the option `every="step"`.
        lr_scales: by client, what multiplies the server's learning rate in steps on that client's rows.
        micro_batches: in how many parts a mini-batch travels, `in_flight` of them at a time (0: all), or `"auto"`: over
            a network the fastest number, here 1. `statistics_of_parts`: layers that normalise over a batch may do so
            over each part.
        staleness: how many more steps are begun before the oldest is through, by older weights.
        cached_steps: with `joint`, steps that each party takes by itself after each one that all take.
        autocast: segments that compute in bfloat16; `compiled`: those that `torch.compile` makes faster.
        clients_per_round: how many clients take part in a round, a number or a part (1.0 is all).
        local_epochs: passes of a client over its rows in a round.
        local_steps: steps of a client in a round, instead of whole passes.
        averaged_optimizer: whether the optimizer of an averaged replica is `"reset"`, `"keep"` or `"average"`.
        client_segments: with `parallel`, `"equal"` by summed gradients, or each client's `"own"`.
        cut_average: with `parallel` and own client segments, the part of each batch whose gradients at the cut are
            averaged over the clients.
        proximal: FedProx's μ, for averaged replicas. `averaging`: how they are averaged, if not by their mean.
        turn_check: whether the server takes back turns of clients that moved its segment as most others did not.
        secure_aggregation: whoever averages sees only the sum of what clients send.
        personal: parameters that stay with their owner: patterns of names, or `"type:BatchNorm2d"`.
        cuts: with `splitfed_v1`, by client, where its model is cut instead.
        aggregator_sees_weights: the server itself sums what clients send.
        held_out: a dataset for each client to evaluate on after each round, or a fraction of its rows.
        max_live: how many replicas of a segment are kept in memory; the others lie on disk.
        secrets: 32 bytes a party, the keys of its random streams; by default they are made from `seed`.
        observers: called with every fact of every party. `taps`: shown every tensor at a party's cuts, with the rows
            that it is made of. `hijacks`, by party: what it sends instead of what it should.

    Raises:
        PlanError, CutError, DataError: the arguments do not hold together. Diverged: a loss became infinite or NaN.
    """
    separate = held_out if isinstance(held_out, Mapping) else {}
    _check_names(data, separate, cuts or {}, lr_scales or {})
    name, drawn = (topology, None) if isinstance(topology, str) else (OWN, topology)
    schedule = schedule or _schedule_for(name, drawn)
    _check_words(topology=name, schedule=schedule, join=join, turn=turn)
    parties = {
        party: PartyTerms(role=role, cut=_layers((cuts or {}).get(party)), lr_scale=(lr_scales or {}).get(party, 1.0))
        for party, role in _roles(data, roles or {}, drawn, SCHEDULES[schedule].together).items()
    }
    terms = Terms(
        topology=name,
        schedule=schedule,
        turn=turn,
        seed=seed,
        conductor=conductor,
        labels=labels,
        labels_leave=labels_leave,
        join=join,
        source=drawn.sources if drawn else (),
        segment=drawn.segments if drawn else (),
        edge=drawn.edges if drawn else (),
        model=ModelTerms(cut=_layers(cut)),
        training=Training(
            loss=_method(loss),
            losses={segment: _method(each) for segment, each in (losses or {}).items()},
            loss_weights=dict(loss_weights or {}),
            upload_every=upload_every,
            party_dropout=party_dropout,
            optimizer=_method(optimizer, **({} if lr is None else {"lr": lr})),
            server_optimizer=None if server_optimizer is None else _method(server_optimizer),
            lr_schedule=None if lr_schedule is None else _method(lr_schedule),
            batch_size=batch_size,
            micro_batches=micro_batches,
            in_flight=in_flight,
            staleness=staleness,
            statistics_of_parts=statistics_of_parts,
            cached_steps=cached_steps,
            autocast=tuple(autocast),
            compiled=tuple(compiled),
            rounds=rounds,
            clients_per_round=clients_per_round,
            local_epochs=local_epochs,
            local_steps=local_steps,
            averaged_optimizer=averaged_optimizer,
            client_segments=client_segments,
            cut_average=cut_average,
            proximal=proximal,
            averaging=None if averaging is None else _method(averaging),
            turn_check=turn_check,
            personal=tuple(personal),
            shuffle=shuffle,
            drop_last=drop_last,
            held_out=held_out if isinstance(held_out, float | int) else 0.0,
        ),
        parties=parties,
        aggregator_sees_weights=aggregator_sees_weights,
        codec=_codecs(codec),
        defence=(defence,) if isinstance(defence, DefenceTerms) else tuple(defence),
        budget=(budget,) if isinstance(budget, BudgetTerms) else tuple(budget),
        probe=probe,
        on_alarm=on_alarm,
        secure_aggregation=secure_aggregation,
        limits=Limits(max_live=max_live, header_bytes=max(Limits().header_bytes, 256 * len(data))),
    )
    if needs_aggregator(terms) and not aggregator_sees_weights:
        terms = replace(terms, parties=terms.parties | {"aggregator": PartyTerms(role="aggregator")})
    agreement = draft(_with_inputs(terms, model, data), model)
    return simulate_plan(
        agreement,
        data,
        held_out=separate,
        secrets=secrets,
        observers=observers,
        device=device,
        taps=taps,
        hijacks=hijacks,
    )


def _codecs(given: str | CodecTerms | Sequence[CodecTerms]) -> tuple[CodecTerms, ...]:
    if isinstance(given, str):
        return (CodecTerms(forward=(Method(name=given),), backward=(Method(name=given),)),)
    return (given,) if isinstance(given, CodecTerms) else tuple(given)


def _check_names(data: Mapping[str, Data], held_out: Mapping[str, Data], *others: Mapping[str, Any]) -> None:
    if not data:
        raise DataError("data is empty: give a dataset for at least one client")
    if strange := sorted(held_out.keys() - data.keys()):
        raise DataError(f"held_out has rows of {', '.join(strange)}, but the clients are {', '.join(data)}")
    if unknown := sorted(set().union(*others) - data.keys()):
        raise PlanError(f"cuts and lr_scales name {', '.join(unknown)}, but the clients are {', '.join(data)}")


def _check_words(**given: str) -> None:
    """What a plan's text could not say, a call cannot either."""
    known = {
        "topology": (*TOPOLOGIES, OWN),
        "schedule": tuple(SCHEDULES),
        "join": get_args(Join),
        "turn": get_args(TurnUnit),
    }
    for what, value in given.items():
        if value not in known[what]:
            raise PlanError(f"{what} = {value!r} is unknown{nearest(value, known[what])}")


def _schedule_for(topology: str, drawn: Topology | None) -> str:
    """Where parties have columns of the same rows, all take part in every step; else clients take turns."""
    together = (
        len({source.role for source in drawn.sources}) > 1
        if drawn
        else "alternating" not in LEGAL.get(topology, {"alternating"})
    )
    return "joint" if together else "alternating"


def _roles(
    data: Mapping[str, Data], given: Mapping[str, str], drawn: Topology | None, together: bool
) -> dict[str, str]:
    """Each party's role: those that bring rows are clients, and one that is called server is one."""
    if not together:
        for name in ("server", "aggregator"):
            if name in data:
                raise DataError(f"{name!r} is the name of a party that brings no rows: call that client otherwise")
    roles = {name: "server" if name == "server" else "client" for name in data} | dict(given)
    for role in drawn.roles if drawn else ("server",):
        if role not in roles and role not in roles.values():
            roles[role] = "server" if role == "server" else "member"
    return roles


def _layers(cut: Cut) -> tuple[str, ...]:
    if cut is None:
        return ()
    return (str(cut),) if isinstance(cut, str | int) else tuple(map(str, cut))


def _method(value: str | Mapping[str, Any], **more: Option) -> Method:
    if isinstance(value, str):
        return Method(name=value, options=more)
    options = {name: option for name, option in value.items() if name != "name"}
    return Method(name=value["name"], options=options | more)


def _with_inputs(terms: Terms, model: nn.Module, data: Mapping[str, Data]) -> Terms:
    """The terms with what a row of features looks like, from each party's first sample, or the first client's."""
    if not SCHEDULES[terms.schedule].together:
        return replace(terms, input=_input_terms(model, *next(iter(data.items()))))
    parties = dict(terms.parties)
    for name, dataset in data.items():
        role = parties[name].role
        if terms.topology == OWN:
            kinds = {source.kind for source in terms.source if source.role in (name, role)}
            features, labelled = "rows" in kinds, "labels" in kinds
        else:
            labelled = terms.labels == name or role == "labels" or (role == "server" and not terms.labels)
            table = dataset.has_features if isinstance(dataset, Table) else None
            features = role == "client" or (isinstance(_first(name, dataset), tuple) if table is None else table)
        if features:
            parties[name] = replace(parties[name], input=_input_terms(model, name, dataset, labelled=labelled))
    return replace(terms, parties=parties)


def _input_terms(
    model: nn.Module, name: str, dataset: Data, *, labelled: bool = True
) -> tuple[InputTerms, ...]:  # fmt: skip
    """The shape of one row, from the first sample; floats take the model's own dtype."""
    if isinstance(dataset, Table):  # it says so itself, and has no samples before it was fitted
        return tuple(InputTerms(shape=shape, dtype=dtype) for dtype, shape in dataset.specs)  # type: ignore[arg-type]
    sample = _first(name, dataset)
    try:
        if labelled:
            sample = sample[0] if len(sample) == 2 else sample[:-1]
        given = [torch.as_tensor(x) for x in (sample if isinstance(sample, tuple | list) else (sample,))]
    except Exception as error:
        raise DataError(f"the first sample of {name} is no pair (x, y) of a tensor and a label: {error}") from error
    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    dtypes = [floats if x.is_floating_point() else x.dtype for x in given]
    return tuple(
        InputTerms(shape=tuple(x.shape), dtype=str(dtype).removeprefix("torch."))  # type: ignore[arg-type]
        for x, dtype in zip(given, dtypes, strict=True)
    )


def _first(name: str, dataset: Data) -> Any:
    try:
        with torch.random.fork_rng(devices=[]):
            sample = dataset[0]
    except Exception as error:
        raise DataError(f"the first sample of {name} is no pair (x, y) of a tensor and a label: {error}") from error
    return sample[0] if isinstance(sample, tuple) and len(sample) == 1 else sample

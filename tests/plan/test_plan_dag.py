"""Claims about graphs: each fault has its sentence, all are found at once, and what silence takes along."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from cutlayer.plan import dag
from cutlayer.plan.check import faults
from cutlayer.plan.course import Course
from cutlayer.plan.plan import Contents, Plan
from cutlayer.plan.schedule import SCHEDULES, Entrust, Evaluate, Predict, Save, Train, Work, predictions, works
from cutlayer.plan.terms import TOGETHER, InputTerms, Method, PartyTerms, Terms, Training
from cutlayer.plan.topology import Edge, SegmentNode, Source, Topology
from plan.casts import DRAWN
from plan.test_plan_check import SOUND

ROLES = ("bank", "shop", "lab", "hub")


def graph(*edges: str, **changes: dict[str, Any]) -> Topology:
    """Two parties' bottoms, a hub, a top with the loss at the lab; `edges` come on top, `changes` are of nodes."""
    sources = (
        Source(name="x_b", role="bank", kind="rows"),
        Source(name="x_s", role="shop", kind="rows"),
        Source(name="y", role="lab", kind="labels"),
    )
    segments = (
        SegmentNode(name="bottom_b", role="bank"),
        SegmentNode(name="bottom_s", role="shop"),
        SegmentNode(name="hub", role="hub", join="concat"),
        SegmentNode(name="top", role="lab", loss=True),
    )
    drawn = ["x_b bottom_b", "x_s bottom_s", "bottom_b hub", "bottom_s hub", "hub top", "y top", *edges]
    return Topology(
        name="own",
        sources=tuple(replace(each, **changes.get(each.name, {})) for each in sources),
        segments=tuple(replace(each, **changes.get(each.name, {})) for each in segments),
        edges=tuple(Edge(source=source, target=target) for source, target in map(str.split, drawn)),
    )


def but(topology: Topology, *nodes: Source | SegmentNode, without: str = "", edges: tuple[Edge, ...] = ()) -> Topology:
    """The same with more nodes and edges, and without an edge."""
    return replace(
        topology,
        sources=topology.sources + tuple(node for node in nodes if isinstance(node, Source)),
        segments=topology.segments + tuple(node for node in nodes if isinstance(node, SegmentNode)),
        edges=tuple(edge for edge in topology.edges if edge.name != without) + edges,
    )


def every(topology: Topology, periods: dict[str, int]) -> Topology:
    edges = tuple(replace(edge, every=periods.get(edge.name, 1)) for edge in topology.edges)
    return replace(topology, edges=edges)


def segment(name: str, role: str = "lab", **more: Any) -> SegmentNode:
    return SegmentNode(name=name, role=role, **more)


FAULTY: dict[str, Topology] = {
    "'top' is there 2 times (at lab, bank): a node has one owner": but(graph(), segment("top", "bank")),
    "'x_b' is there 2 times (at bank, shop): a node has one": but(
        graph(), Source(name="x_b", role="shop", kind="rows")
    ),
    "'a.b' is no name for a node: letters, digits and _": but(graph(), segment("a.b")),
    "'a->b' is no name for a node": but(graph(), segment("a->b")),
    "'' is no name for a node": but(graph(), segment("")),
    "top.role = 'labb' is no role or party of the plan: did you mean 'lab'?": graph(top={"role": "labb"}),
    "the edge x_b->hup names 'hup', which is no node: did you mean 'hub'?": graph("x_b hup"),
    "the edge bottom_c->hub names 'bottom_c', which is no node: did you mean": graph("bottom_c hub"),
    "the edge hub->y leads into a source: edges lead from sources to segments": graph("hub y"),
    "the edge y->top has every = 0: at least 1": but(
        graph(), without="y->top", edges=(Edge(source="y", target="top", every=0),)
    ),
    "the edge hub->top is there 2 times: once is enough": graph("hub top"),
    "spare has nothing to work on: an edge must lead to it": but(
        graph(), segment("spare"), edges=(Edge(source="spare", target="top"),)
    ),
    "nothing uses what spare gives: lead an edge from it, or say loss = true": but(
        graph(), segment("spare"), edges=(Edge(source="hub", target="spare"),)
    ),
    "top ends in a loss, but edges lead on from it: give the loss a segment": but(
        graph("top more", "y more"), segment("more", loss=True)
    ),
    "nothing uses the source z: lead an edge from it, or leave it out": but(
        graph(), Source(name="z", role="lab", kind="rows")
    ),
    "the loss other has no target: lead an edge from a source of labels": but(
        graph("hub other"), segment("other", loss=True)
    ),
    "hub lacks bottom_b->hub in some steps and works on the rest: give its edges the same every": every(
        graph(), {"bottom_b->hub": 2}
    ),
    "hub lacks bottom_b->hub, bottom_s->hub in some steps": every(graph(), {"bottom_b->hub": 2, "bottom_s->hub": 3}),
    "hub lacks bottom_b->hub in some steps ": every(graph(), {"x_b->bottom_b": 5}),
    "top lacks y->top in some steps": every(graph(), {"y->top": 2}),
    "raw rows would leave on x_b->hub, from bank to hub: put a segment between them, at bank": graph("x_b hub"),
    "labels would leave on y->top, from shop to lab: say labels_leave = true": graph(y={"role": "shop"}),
    "bank has 2 sources of rows: one has all its columns; draw several edges from it": but(
        graph("z bottom_b"), Source(name="z", role="bank", kind="rows")
    ),
}


@pytest.mark.parametrize(("sentence", "topology"), FAULTY.items(), ids=FAULTY.keys())
def test_each_fault_has_its_sentence(sentence: str, topology: Topology) -> None:
    found = dag.faults(topology, roles=ROLES, labels_leave=False)
    assert [fault[: len(sentence)] for fault in found] == [sentence], found


def test_a_graph_without_a_loss_would_learn_nothing() -> None:
    found = dag.faults(graph(top={"loss": False}), roles=ROLES, labels_leave=False)
    assert "no segment has loss = true: nothing would be learned" in found


def test_a_loss_that_no_rows_reach_learns_nothing() -> None:
    """That labels lead to it is not enough: neither as its target nor by another way."""
    lonely = but(graph("y echo", "echo alone", "y alone"), segment("echo"), segment("alone", loss=True))
    found = dag.faults(lonely, roles=ROLES, labels_leave=False)
    assert [fault[:43] for fault in found] == ["the loss alone is not reached by any rows: "]


@pytest.mark.parametrize("edges", [("top hub",), ("hub hub",), ("hub bottom_b", "bottom_b hub2", "hub2 hub")])
def test_a_cycle_is_told_with_its_whole_way(edges: tuple[str, ...]) -> None:
    drawn = but(graph(*edges), segment("hub2"))
    (told,) = [fault for fault in dag.faults(drawn, roles=ROLES, labels_leave=False) if "is a cycle" in fault]
    way = told.split(" is a cycle")[0].split(" -> ")
    assert way[0] == way[-1]
    assert {f"{a}->{b}" for a, b in pairwise(way)} <= {edge.name for edge in drawn.edges}


def test_all_faults_are_found_at_once() -> None:
    """Names and ends first, since without them nothing else can be said; then everything else."""
    broken = but(graph("x_b hup", "hub y", "hub top", top={"role": "nobody"}), segment("a.b"))
    assert len(dag.faults(broken, roles=ROLES, labels_leave=False)) == 5
    odd = but(graph("x_b hub", y={"role": "shop"}), segment("spare"), segment("lonely", loss=True))
    found = dag.faults(odd, roles=ROLES, labels_leave=False)
    starts = ["spare has", "nothing uses what spare", "lonely has", "the loss lonely has", "the loss lonely is not"]
    assert [fault[: len(start)] for fault, start in zip(found, starts, strict=False)] == starts
    assert [fault.split(" would")[0] for fault in found[5:]] == ["labels", "raw rows"]


def test_labels_may_leave_where_the_plan_says_so_and_rows_never() -> None:
    assert dag.faults(graph(y={"role": "shop"}), roles=ROLES, labels_leave=True) == []
    assert len(dag.faults(graph("x_b hub"), roles=ROLES, labels_leave=True)) == 1


SKIP = replace(
    graph("bottom_b top", "bottom_b probe", "x_b probe"),
    segments=(*graph().segments, segment("probe", "bank", loss=True, auxiliary=True)),
)
"""A way round the hub; and a loss at the bank whose target are the rows themselves."""
SOUND_GRAPHS = {
    "two bottoms": graph(),
    "a way round, and a second loss": SKIP,
    "a joined input that comes at times": every(graph(hub={"join": "mean"}), {"bottom_b->hub": 2}),
    "all that a loss needs comes at times": every(graph(), {"hub->top": 3, "y->top": 3}),
    "a loss with all that leads to it": every(graph(), {"x_b->bottom_b": 2, "x_s->bottom_s": 2, "y->top": 2}),
}


@pytest.mark.parametrize("topology", SOUND_GRAPHS.values(), ids=SOUND_GRAPHS.keys())
def test_a_sound_graph_has_no_fault(topology: Topology) -> None:
    assert dag.faults(topology, roles=ROLES, labels_leave=False) == []


# ---------------------------------------------------------------------- the same in a plan


def own(topology: Topology, **changes: Any) -> Terms:
    parties = {name: PartyTerms(role="member") for name in ROLES}
    terms = replace(
        SOUND,
        topology="own",
        schedule="joint",
        model=replace(SOUND.model, cut=()),
        parties=parties,
        conductor="lab",
        source=topology.sources,
        segment=topology.segments,
        edge=topology.edges,
    )
    return replace(terms, **changes)


def training(**changes: Any) -> dict[str, Any]:
    return {"training": replace(SOUND.training, **changes)}


def vertical(**changes: Any) -> Terms:
    roles = {"bank": "client", "shop": "client", "lab": "server"}
    terms = replace(
        SOUND,
        topology="vertical",
        schedule="joint",
        model=replace(SOUND.model, cut=()),
        parties={name: PartyTerms(role=role) for name, role in roles.items()},
    )
    return replace(terms, **changes)


def with_parties(**roles: str) -> dict[str, Any]:
    return {"parties": vertical().parties | {name.replace("_", "-"): PartyTerms(role=r) for name, r in roles.items()}}


MEMBER = PartyTerms(role="member")
NO_CHAIN = "is no chain that one network could be cut into; let build() return Parts with a part for each segment"
FAULTY_PLANS: dict[str, Terms] = {
    "the topology own does not go with the schedule parallel; it goes with alternating, joint, relay, splitfed_v2": own(
        graph(), schedule="parallel", **training(client_segments="own")
    ),
    "the topology vertical does not go with the schedule relay; it goes with joint": vertical(schedule="relay"),
    '[[source]], [[segment]] and [[edge]] are for topology = "own", not for vertical': vertical(source=graph().sources),
    f"model.cut: vertical {NO_CHAIN} (bottom_bank, bottom_shop, top)": vertical(
        model=replace(SOUND.model, cut=("layer1",))
    ),
    f"model.cut: own {NO_CHAIN}": own(graph(), model=replace(SOUND.model, cut=("layer1",))),
    "what a row of x_bank looks like is not said: give parties.bank.input": vertical(
        input=(), parties=vertical().parties | {"shop": PartyTerms(role="client", input=(InputTerms(shape=(3,)),))}
    ),
    "training.losses.topp: vertical has no such loss: did you mean 'top'?": vertical(
        **training(losses={"topp": Method(name="mse_loss")})
    ),
    "training.loss_weights.bottom_bank: multi_task has no such loss": vertical(
        topology="multi_task", **with_parties(lab_2="server"), **training(loss_weights={"bottom_bank": 1.0})
    ),
    "training.loss_weights.top_lab = -1.0: a finite number, at least 0": vertical(
        topology="multi_task", **with_parties(lab_2="server"), **training(loss_weights={"top_lab": -1.0})
    ),
    "training.loss_weights.top_lab = nan: a finite number, at least 0": vertical(
        topology="multi_task", **with_parties(lab_2="server"), **training(loss_weights={"top_lab": float("nan")})
    ),
    "training.loss_weights means nothing under the schedule joint: there is one loss": vertical(
        **training(loss_weights={"top": 0.5})
    ),
    "training.losses.top.beta = inf: numbers are finite": vertical(
        **training(losses={"top": Method(name="huber_loss", options={"beta": float("inf")})})
    ),
    "training.party_dropout = 1.0: how often, at least 0 and under 1": vertical(**training(party_dropout=1.0)),
    "training.party_dropout means nothing under the schedule alternating": replace(
        SOUND, **training(party_dropout=0.5)
    ),
    "training.clients_per_round means nothing under the schedule joint": vertical(**training(clients_per_round=1)),
    "labels = 'bnk' is no party of the plan": vertical(labels="bnk"),
    "labels = 'bank', but bureau has role = \"labels\": leave one out": vertical(
        labels="bank", labels_leave=True, **with_parties(bureau="labels")
    ),
    "labels = 'hospital-a' means nothing under vanilla: each client has": replace(SOUND, labels="hospital-a"),
    "labels would leave on y->top, from bank to lab: say labels_leave = true": vertical(labels="bank"),
    "labels would leave on y->top, from bureau to lab": vertical(**with_parties(bureau="labels")),
    "vertical_u_shaped keeps labels from the server: say labels = ": vertical(topology="vertical_u_shaped"),
    "parties.bureau.role = 'label' is no role of vertical: did you mean 'labels'?": vertical(
        **with_parties(bureau="label")
    ),
    '2 parties have role = "labels"; vertical has one': vertical(
        labels_leave=True, **with_parties(bureau="labels", bureau_2="labels")
    ),
    '0 parties have role = "middle"; extended_vanilla has one': vertical(topology="extended_vanilla"),
    '2 parties have role = "middle"; extended_vanilla has one': vertical(
        topology="extended_vanilla", **with_parties(hub="middle", hub_2="middle")
    ),
    '2 parties have role = "server"; vertical has exactly one': vertical(**with_parties(lab_2="server")),
    'no party has role = "hop": multi_hop has at least one': replace(SOUND, topology="multi_hop"),
    "parties.all: a party cannot be called so, since 'all' has another meaning here": vertical(
        **with_parties(all="client")
    ),
    "parties.member: a party cannot be called so": own(graph(), parties=dict.fromkeys((*ROLES, "member"), MEMBER)),
    "conductor = 'bank': the conductor must be 'lab', the one that all clients reach": vertical(conductor="bank"),
    'conductor = "NAME" is missing: the party that all others can reach': own(graph(), conductor=""),
    "conductor = 'lob' is no party of the plan: did you mean 'lab'?": own(graph(), conductor="lob"),
    "2 parties fill 'clerks': under joint name the one party of each node": own(
        graph(hub={"role": "clerks"}),
        parties=dict.fromkeys(ROLES, MEMBER) | {n: PartyTerms(role="clerks") for n in ("c1", "c2")},
    ),
    "hub.role = 'hup' is no role or party of the plan": own(graph(hub={"role": "hup"})),
}


@pytest.mark.parametrize(("sentence", "terms"), FAULTY_PLANS.items(), ids=FAULTY_PLANS.keys())
def test_each_fault_of_a_plan_has_its_sentence(sentence: str, terms: Terms) -> None:
    found = faults(terms)
    assert sentence in [fault[: len(sentence)] for fault in found], found
    assert len(found) == 1 or "bnk" in sentence, found


def test_the_rows_of_a_graph_under_another_schedule_are_the_clients() -> None:
    """Each client has all columns of its rows, so its sources lie at the role and not at one party."""
    found = faults(own(graph(), schedule="alternating"))
    start = "{}.role = {!r}: under alternating rows are of parties in the role of client"
    due = ['under alternating one party has role = "server", and it is the conductor']
    due += [start.format(name, role) for name, role in (("x_b", "bank"), ("x_s", "shop"), ("y", "lab"))]
    assert [fault[: len(told)] for fault, told in zip(found, due, strict=True)] == due
    clients = dict.fromkeys(("a", "b"), PartyTerms(role="client"))
    at_clients = replace(DRAWN["u_shaped"], name="own")
    assert faults(own(at_clients, parties=clients | {"lab": PartyTerms(role="server")}, schedule="relay")) == []
    assert len(faults(own(at_clients, parties={"lab": PartyTerms(role="server")}, schedule="relay"))) > 0
    two = clients | dict.fromkeys(("lab", "lab-2"), PartyTerms(role="server"))
    assert faults(own(at_clients, parties=two, schedule="relay")) == [
        "2 parties fill 'server': under relay name the one party of each node",
        'under relay one party has role = "server", and it is the conductor',
    ]


def test_clients_that_take_turns_need_one_server_that_conducts_and_no_segment_of_their_own() -> None:
    """What moves goes to the server, and what is at one client is at none of the others."""
    drawn, lab = replace(DRAWN["u_shaped"], name="own"), {"lab": PartyTerms(role="server")}
    clients = dict.fromkeys(("a", "b"), PartyTerms(role="client"))
    (told,) = faults(
        own(drawn, parties=clients | lab, conductor="a", schedule="splitfed_v2", aggregator_sees_weights=True)
    )
    assert told == 'under splitfed_v2 one party has role = "server", and it is the conductor'
    at_one = replace(drawn, segments=tuple(replace(s, role="a") if s.name == "head" else s for s in drawn.segments))
    found = faults(own(at_one, parties=clients | lab, schedule="alternating", labels_leave=True))
    assert any("head.role = 'a': under alternating each client has a replica" in fault for fault in found)


def test_faults_of_the_graph_and_of_the_terms_are_found_at_once() -> None:
    drawn = graph("x_b hub", y={"role": "shop"})
    found = faults(own(drawn, conductor="", seed=0, **training(batch_size=0, party_dropout=-1.0)))
    assert len(found) == 5


def test_labels_at_nobody_are_a_fault_and_no_more() -> None:
    found = faults(vertical(topology="vertical_u_shaped", labels="nobody"))
    assert any(fault.startswith("labels = 'nobody' is no party of the plan") for fault in found)


@pytest.mark.parametrize(
    "terms",
    [
        own(graph()),
        own(SKIP),
        own(graph(), parties={name: MEMBER for name in ROLES if name != "lab"} | {"lab": PartyTerms(role="server")}),
        vertical(),
        vertical(labels="bank", labels_leave=True),
        vertical(labels_leave=True, **with_parties(bureau="labels")),
        vertical(topology="vertical_u_shaped", labels="bank"),
        vertical(topology="vertical_u_shaped", **with_parties(bureau="labels")),
        vertical(topology="extended_vanilla", **with_parties(hub="middle")),
        vertical(topology="multi_task", **with_parties(lab_2="server")),
        vertical(**with_parties(client="client")),
        vertical(topology="multi_task", conductor="lab-2", **with_parties(lab_2="server")),
        vertical(**training(party_dropout=0.3, losses={"top": Method(name="mse_loss")})),
        vertical(input=(), parties={
            "bank": PartyTerms(role="client", input=(InputTerms(shape=(3,)), InputTerms(shape=(), dtype="int64"))),
            "lab": PartyTerms(role="server"),
        }),
        replace(SOUND, topology="decoupled", model=vertical().model, **training(upload_every=3)),
        replace(SOUND, topology="semi_supervised", model=vertical().model, **training(loss_weights={"decoder": 0.0})),
        replace(
            SOUND, topology="multi_hop", model=replace(SOUND.model, cut=("a", "b")),
            parties=SOUND.parties | {"h": PartyTerms(role="hop")},
        ),
    ],
)  # fmt: skip
def test_a_sound_plan_has_no_fault(terms: Terms) -> None:
    assert faults(terms) == []


# ---------------------------------------------------------------------- what is left where edges are silent


def left(topology: Topology, *silent: str) -> set[str]:
    remains = topology.without(frozenset(silent))
    assert {node.role for node in remains.nodes} == set(remains.roles)
    assert all(topology.edge(edge.name) == edge for edge in remains.edges)
    return {node.name for node in remains.nodes}


def names(topology: Topology) -> set[str]:
    return {node.name for node in topology.nodes}


def test_where_nothing_is_silent_everything_is_left() -> None:
    assert SKIP.without(frozenset()) is SKIP


def test_a_segment_goes_with_its_last_input_and_takes_along_what_led_only_to_it() -> None:
    assert left(DRAWN["decoupled"], "bottom->top", "y->top") == {"x", "y", "bottom", "auxiliary"}
    assert left(DRAWN["decoupled"], "bottom->top") == {"x", "y", "bottom", "auxiliary"}
    assert left(DRAWN["decoupled"], "bottom->auxiliary") == {"x", "y", "bottom", "top"}
    assert left(graph(), "bottom_b->hub") == names(graph()) - {"x_b", "bottom_b"}
    assert left(SKIP, "bottom_b->hub") == names(SKIP)


def test_what_is_far_behind_a_silent_edge_goes_too() -> None:
    chain = DRAWN["multi_hop"]
    assert left(chain, "bottom->hop_1") == set()
    assert left(SKIP, "hub->top") == names(SKIP) - {"x_s", "bottom_s", "hub"}


def test_a_loss_without_its_target_still_answers() -> None:
    """So predictions are made: only what it works on is needed."""
    assert left(graph(), "y->top") == names(graph()) - {"y"}
    remains = DRAWN["vanilla"].without(frozenset({"y->top"}))
    assert [edge.name for edge in remains.edges] == ["x->bottom", "bottom->top"]


UNUSED = {
    "vanilla": {"y->top"},
    "u_shaped": {"y->head"},
    "vertical": {"y->top"},
    "vertical_u_shaped": {"y->head"},
    "extended_vanilla": {"y->top"},
    "multi_task": {"y_lab->top_lab", "y_lab_2->top_lab_2"},
    "multi_hop": {"y->top"},
    "decoupled": {"y->top", "y->auxiliary", "bottom->auxiliary"},
    "semi_supervised": {"y->top", "x->decoder", "bottom->decoder"},
    "bottleneck": {"y->top"},
}


@pytest.mark.parametrize("name", UNUSED)
def test_predictions_need_no_targets_and_nothing_that_only_helps(name: str) -> None:
    topology = DRAWN[name]
    assert topology.unused_in_prediction == UNUSED[name]
    remains = topology.without(topology.unused_in_prediction)
    assert {source.kind for source in remains.sources} == {"rows"}
    assert remains.losses == tuple(loss for loss in topology.losses if not loss.auxiliary)


# ---------------------------------------------------------------------- turns where edges are silent


def course(rows: int, periods: dict[str, int], **terms: Any) -> Course:
    settings: dict[str, Any] = {"rounds": 2, "batch_size": 1, "held_out_rows": {"a": 1}} | terms
    return Course(train_rows={"a": rows}, periods=periods, **settings)


def said(work: Work) -> str:
    match work:
        case Train():
            return f"{work.first}-{work.first + work.steps - 1} {'+'.join(sorted(work.silent))}".strip()
        case Evaluate():
            return "evaluate"
        case _:
            return type(work).__name__


def test_a_turn_is_parted_where_an_edge_speaks_in_each_third_step_of_a_run() -> None:
    """Were they counted anew in each round, a client of two steps a round would never be heard."""
    each = course(7, {"e": 3})
    found = [said(work) for work in works(each, SCHEDULES["alternating"]) if not isinstance(work, Save)]
    first = ["0-1 e", "2-2", "3-4 e", "5-5", "6-6 e", "evaluate"]
    assert found == [*first, "0-0 e", "1-1", "2-3 e", "4-4", "5-6 e", "evaluate"]


def test_edges_of_several_periods_part_a_turn_together() -> None:
    found = [said(work) for work in works(course(7, {"e": 2, "f": 3}, rounds=1), SCHEDULES["alternating"])]
    assert found == ["0-0 e+f", "1-1 f", "2-2 e", "3-3 f", "4-4 e+f", "5-5", "6-6 e+f", "evaluate", "Save"]


def test_turns_by_batch_count_a_clients_own_steps() -> None:
    each = Course(
        train_rows={"a": 4, "b": 2}, held_out_rows={"a": 0, "b": 0}, rounds=1, batch_size=1, turn="batch",
        periods={"e": 2},
    )  # fmt: skip
    trains = [work for work in works(each, SCHEDULES["alternating"]) if isinstance(work, Train)]
    assert [(*work.parties, said(work)) for work in trains] == [
        ("a", "0-0 e"), ("b", "0-0 e"), ("a", "1-1"), ("b", "1-1"), ("a", "2-2 e"), ("a", "3-3"),
    ]  # fmt: skip


def test_without_periods_turns_stay_whole() -> None:
    for name, schedule in SCHEDULES.items():
        each = course(7, {}, row_owners=("p", "q"))
        left = [work for work in works(each, schedule) if not isinstance(work, Save)]
        assert left == list(schedule.turns(each)), name


def test_the_parts_of_a_turn_are_its_steps_in_order() -> None:
    for rows in range(1, 14):
        for every in range(2, 6):
            each = course(rows, {"e": every}, rounds=1)
            trains = [work for work in works(each, SCHEDULES["alternating"]) if isinstance(work, Train)]
            steps = [
                (step, "e" in work.silent) for work in trains for step in range(work.first, work.first + work.steps)
            ]
            assert steps == [(step, (step + 1) % every != 0) for step in range(rows)]
            assert all(one.silent != other.silent for one, other in pairwise(trains))


# ---------------------------------------------------------------------- predictions


def planned(terms: Terms) -> Plan:
    return Plan(terms=terms, contents=Contents.empty())


def predicted(plan: Plan, *absent: str) -> list[Work]:
    owners = (TOGETHER,) if plan.schedule.together else plan.clients
    rows = {owner: 4 for owner in owners if owner not in absent}
    return list(predictions(Course.of(plan, dict.fromkeys(rows, 0), rows), absent))


def test_predictions_tell_the_order_to_who_brings_features_and_are_one_turn_for_each_owner() -> None:
    plan = planned(vertical(labels_leave=True, **with_parties(bureau="labels")))
    entrust, predict = predicted(plan)
    assert entrust == Entrust(source="bank", targets=("shop",))
    assert predict == Predict(parties=(TOGETHER,), silent=frozenset({"y->top"}))
    assert predicted(plan, "bank", "bureau") == [
        Predict(parties=(TOGETHER,), silent=frozenset({"y->top", "bottom_bank->top"}))
    ]
    vanilla = planned(replace(SOUND, parties=SOUND.parties | {"b": PartyTerms(role="client")}))
    assert [work.parties for work in predicted(vanilla) if isinstance(work, Predict)] == [("hospital-a",), ("b",)]
    assert [work.parties for work in predicted(vanilla, "b") if isinstance(work, Predict)] == [("hospital-a",)]


DROPPING = {"training": replace(SOUND.training, party_dropout=0.5)}


def test_why_predictions_cannot_do_without_a_party() -> None:
    plan = planned(vertical(labels_leave=True, **with_parties(bureau="labels")))
    dropping = planned(vertical(labels_leave=True, **with_parties(bureau="labels"), **DROPPING))
    for each in (plan, dropping):
        assert each.why_not_without([]) == ""
        assert each.why_not_without(["bureau"]) == ""
        assert each.why_not_without(["lab"]) == "lab hands out turns: nothing goes without it"
    assert plan.why_not_without(["bank"]).startswith("the model never learned to do without bank: train it with")
    assert dropping.why_not_without(["bank"]) == dropping.why_not_without(["shop", "bureau"]) == ""
    assert dropping.why_not_without(["bank", "shop"]) == "without bank, shop nothing is left that answers"


def test_predictions_cannot_do_without_whoever_joins_or_answers() -> None:
    extended = planned(vertical(topology="extended_vanilla", **with_parties(hub="middle"), **DROPPING))
    assert extended.why_not_without(["hub"]) == "without hub nothing is left that answers"
    u_shaped = planned(vertical(topology="vertical_u_shaped", labels="bank", **DROPPING))
    assert u_shaped.why_not_without(["bank"]) == "without bank nothing is left that answers"
    assert u_shaped.why_not_without(["shop"]) == ""
    tasks = planned(vertical(topology="multi_task", **with_parties(lab_2="server"), **DROPPING))
    assert tasks.why_not_without(["lab-2"]) == "without lab-2 nothing is left that answers"


def test_scores_bear_the_name_of_their_segment_unless_one_loss_alone_answers() -> None:
    def prefixes(terms: Terms) -> dict[str, str]:
        return planned(terms).score_prefixes

    assert prefixes(SOUND) == {"top": ""}
    assert prefixes(replace(SOUND, topology="decoupled")) == {"auxiliary": "auxiliary.", "top": ""}
    assert prefixes(replace(SOUND, topology="semi_supervised")) == {"decoder": "decoder.", "top": ""}
    tasks = vertical(topology="multi_task", **with_parties(lab_2="server"))
    assert prefixes(tasks) == {"top_lab": "top_lab.", "top_lab_2": "top_lab_2."}


def test_each_loss_has_the_method_that_is_named_for_it_and_rows_are_given_back_by_their_squares() -> None:
    plan = planned(replace(SOUND, topology="semi_supervised", **training(loss=Method(name="cross_entropy"))))
    assert {name: plan.loss_of(name).name for name in ("decoder", "top")} == {
        "decoder": "mse_loss", "top": "cross_entropy",
    }  # fmt: skip
    named = planned(replace(plan.terms, **training(losses={"decoder": Method(name="l1_loss")})))
    assert named.loss_of("decoder").name == "l1_loss"


def test_who_talks_by_the_conductor_is_who_has_an_edge_and_no_link() -> None:
    assert planned(SOUND).forwarded_pairs == frozenset()
    hops = planned(replace(SOUND, topology="multi_hop", parties=SOUND.parties | {"h": PartyTerms(role="hop")}))
    assert hops.forwarded_pairs == {("hospital-a", "h"), ("h", "hospital-a")}
    hub = planned(own(graph()))
    assert hub.forwarded_pairs == {(a, b) for each in ("bank", "shop") for a, b in ((each, "hub"), ("hub", each))}
    assert isinstance(hub.terms.training, Training)

"""Claims about reading `plan.toml`: all faults at once, each a sentence that says what to mend."""

import pytest

from cutlayer.errors import PlanError
from cutlayer.plan.document import read_terms
from cutlayer.plan.limits import Limits
from cutlayer.plan.terms import FORMAT, CodecTerms, InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from cutlayer.plan.topology import Edge, SegmentNode, Source

SHORT = """
topology = "u_shaped"
schedule = "alternating"

[model]
cut = ["layer1", "layer3"]

[input]
shape = [3, 32, 32]

[training]
loss = "cross_entropy"
optimizer = { name = "SGD", lr = 0.1, momentum = 0.9 }
batch_size = 64
rounds = 10

[parties.hospital-a]
role = "client"
[parties.lab]
role = "server"
address = "lab.example.org:7443"
"""
FAULTY = """
topolgy = "vanilla"
schedule = 3
turn = "epoche"
seed = "1"
wholly_unknown = 1

[model]
cut = 3

[input]
shape = [2, "x"]
dtype = "float31"

[training]
loss = { lr = 1 }
optimizer = { name = "SGD", lr = [["a"]] }
batch_size = 8.5
held_out = "a fifth"
losses = { top = 3 }
loss_weights = { top = "heavy" }

[parties]
stray = 3
[parties.hospital-a]
rolle = "client"
input = { shape = [1], dtype = "int3" }

[[source]]
name = "x"
roll = "client"
kind = "row"

[[edge]]
source = "x"
[[edge]]
source = "x"
target = "top"
every = 1.5

[limits]
header_bytes = true
"""
FAULTS = [
    "topolgy is no key of a plan: did you mean 'topology'?",
    "wholly_unknown is no key of a plan; known are aggregator_sees_wei",
    "schedule = 3: expected `str`, got `int`",
    "model.cut = 3: expected `array`, got `int`",
    'training.loss must be a name, or a table with a name, such as { name = "Adam", lr = 0.001 }',
    "training.optimizer: its options must be numbers, words or lists of numbers (",
    "training.batch_size = 8.5: expected `int`, got `float`",
    "training.held_out = 'a fifth': expected `float`, got `str`",
    'training.losses.top must be a name, or a table with a name, such as { name = "Adam"',
    "training.loss_weights = {'top': 'heavy'}: expected `float`, got `str`",
    "training.rounds is missing",
    "[parties.stray] must be a table of keys",
    "parties.hospital-a.rolle is no key of a plan: did you mean 'role'?",
    "parties.hospital-a.input.dtype = 'int3' is unknown: did you mean 'int32'?",
    "parties.hospital-a.role is missing",
    "input.shape = [2, 'x']: expected `int`, got `str`",
    "input.dtype = 'float31' is unknown: did you mean 'float32'?",
    "turn = 'epoche' is unknown: did you mean 'epoch'?",
    "seed = '1': expected `int`, got `str`",
    "source.roll is no key of a plan: did you mean 'role'?",
    "source.kind = 'row' is unknown: did you mean 'rows'?",
    "source.role is missing",
    "edge[0].target is missing",
    "edge[1].every = 1.5: expected `int`, got `float`",
    "limits.header_bytes = True: expected `int`, got `bool`",
    "topology is missing",
]


def faults_of(text: str) -> list[str]:
    with pytest.raises(PlanError) as caught:
        read_terms(text)
    return list(caught.value.faults)


def test_what_is_written_is_read_and_the_rest_has_defaults() -> None:
    assert read_terms(SHORT) == Terms(
        topology="u_shaped",
        schedule="alternating",
        model=ModelTerms(cut=("layer1", "layer3"), source="model.py", weights="initial.safetensors"),
        input=(InputTerms(shape=(3, 32, 32), dtype="float32"),),
        training=Training(
            loss=Method(name="cross_entropy"),
            optimizer=Method(name="SGD", options={"lr": 0.1, "momentum": 0.9}),
            batch_size=64,
            rounds=10,
        ),
        parties={
            "hospital-a": PartyTerms(role="client"),
            "lab": PartyTerms(role="server", address="lab.example.org:7443"),
        },
        format=FORMAT,
        limits=Limits(),
    )


GRAPH = """
[[source]]
name = "x"
role = "hospital-a"
kind = "rows"
[[segment]]
name = "top"
role = "lab"
loss = true
join = ""
[[edge]]
source = "x"
target = "top"
gradient = false
every = 3
"""


def test_a_graph_of_ones_own_is_read_table_by_table() -> None:
    terms = read_terms(SHORT.replace('"u_shaped"', '"own"') + GRAPH)
    assert terms.source == (Source(name="x", role="hospital-a", kind="rows"),)
    assert terms.segment == (SegmentNode(name="top", role="lab", loss=True),)
    assert terms.edge == (Edge(source="x", target="top", gradient=False, every=3),)
    assert terms.drawn().nodes == terms.source + terms.segment


def test_a_row_of_several_tensors_is_several_tables_and_a_party_may_have_its_own() -> None:
    text = SHORT.replace("[input]", "[[input]]") + '[[input]]\nshape = [4]\ndtype = "int64"\n'
    text = text.replace('role = "client"', 'role = "client"\ninput = [{ shape = [2] }, { shape = [] }]')
    terms = read_terms(text)
    two = (InputTerms(shape=(3, 32, 32)), InputTerms(shape=(4,), dtype="int64"))
    own = (InputTerms(shape=(2,)), InputTerms(shape=()))
    assert terms.input == two
    assert (terms.inputs_of("hospital-a"), terms.inputs_of("client"), terms.inputs_of("lab")) == (own, two, two)


def test_methods_and_weights_of_several_losses_are_tables_by_segment() -> None:
    more = 'losses = { top_1 = "mse_loss", top_2 = { name = "huber_loss", delta = 2.0 } }\nloss_weights.top_1 = 0.5\n'
    training = read_terms(SHORT.replace("batch_size", more + "batch_size")).training
    huber = Method(name="huber_loss", options={"delta": 2.0})
    assert training.losses == {"top_1": Method(name="mse_loss"), "top_2": huber}
    assert training.loss_weights == {"top_1": 0.5}


def test_the_order_of_parties_is_that_of_the_text() -> None:
    text = SHORT + '[parties.aaa]\nrole = "client"\n'
    assert read_terms(text).filling("client") == ("hospital-a", "aaa")


def test_one_cut_needs_no_list_and_a_method_no_table() -> None:
    text = SHORT.replace('["layer1", "layer3"]', '"layer1"').replace("optimizer = {", "lr_schedule = {")
    terms = read_terms(text.replace("loss =", 'optimizer = "Adam"\nloss ='))
    assert terms.model.cut == ("layer1",)
    assert terms.training.optimizer == Method(name="Adam")


def test_all_faults_are_found_at_once_in_the_order_of_the_plan() -> None:
    faults = faults_of(FAULTY)
    assert [fault[: len(due)] for fault, due in zip(faults, FAULTS, strict=True)] == FAULTS


def test_an_empty_plan_misses_what_has_no_default() -> None:
    required = ["topology", "schedule", "model", "training", "parties"]
    assert faults_of("") == [f"{name} is missing" for name in required]


@pytest.mark.parametrize("table", ["model", "input", "training", "limits"])
def test_a_table_is_no_word(table: str) -> None:
    assert f"[{table}] must be a table of keys" in faults_of(f'{table} = "word"')


def test_parties_are_tables() -> None:
    assert "[parties] must have a table for each party, such as [parties.hospital-a]" in faults_of("parties = 3")


def test_what_is_no_toml_is_one_fault_with_its_place() -> None:
    (fault,) = faults_of("topology = \nschedule")
    assert fault.startswith("the plan is not valid TOML: ")
    assert "line 1" in fault


def test_codecs_are_named_alone_or_in_chains_with_their_options() -> None:
    text = (
        SHORT
        + """
[[codec]]
forward = "int8"
backward = [{ name = "topk", share = 0.1 }, "zstd"]
backward_feedback = "channel"
"""
    )
    (codec,) = read_terms(text).codec
    assert codec == CodecTerms(
        forward=(Method(name="int8"),),
        backward=(Method(name="topk", options={"share": 0.1}), Method(name="zstd")),
        backward_feedback="channel",
    )
    with pytest.raises(PlanError, match=r"codec\.forward must be a name, or a table with a name"):
        read_terms(SHORT + "\n[[codec]]\nforward = 8\n")

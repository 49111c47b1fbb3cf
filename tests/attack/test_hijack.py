"""What every attack that learns while a run goes on must do, and leave alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attack.insiders import COLUMNS, CUT, INSIDERS, ONLOOKERS, drops, known, linear, made, rows, run
from cutlayer.attack.attack import Knowledge
from cutlayer.attack.fsha import Fsha
from cutlayer.attack.hijack import Insider, Onlooker
from cutlayer.attack.pcat import Pcat
from cutlayer.attack.sdar import Sdar
from cutlayer.errors import DataError, PlanError

every_insider = pytest.mark.parametrize("make", INSIDERS, ids=lambda make: make.word)
every_onlooker = pytest.mark.parametrize("make", ONLOOKERS, ids=lambda make: make.word)

FEW = 4


def weights(module: nn.Module) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in module.state_dict().values()])


@every_insider
def test_equal_seeds_and_mini_batches_give_equal_scores(make: Callable[..., Insider]) -> None:
    one, other = make(), make()
    scores = []
    for insider in (one, other):
        ran = run(insider, steps=FEW, knowledge=known())
        scores.append(insider.score(ran.traffic))
    assert replace(scores[0], shown=None) == replace(scores[1], shown=None)
    assert scores[0].shown is not None
    assert scores[1].shown is not None
    assert torch.equal(scores[0].shown[1], scores[1].shown[1])


@every_insider
def test_another_seed_gives_other_networks(make: Callable[..., Insider]) -> None:
    traffic = run(None, steps=1, knowledge=known()).traffic
    assert traffic.activations is not None
    values = set()
    for seed in (0, 1):
        insider = make()
        insider.begin(known(), traffic.activations, seed)
        values.add(insider.score(traffic).value)
    assert len(values) == 2


@every_insider
def test_the_global_generator_is_left_as_it_was(make: Callable[..., Insider]) -> None:
    """Though the simulator that it makes draws when it is made, and drops out when it runs."""
    insider, (x, y) = make(), rows(32, 4)

    def dropping() -> nn.Module:
        return nn.Sequential(nn.Linear(COLUMNS, CUT), nn.Dropout(0.5))

    torch.manual_seed(11)
    before = torch.get_rng_state()
    insider.begin(known(bottom=dropping), torch.randn(32, CUT, generator=torch.Generator().manual_seed(0)), 0)
    z, top = x[:, :CUT], made(drops, 1)
    if isinstance(insider, Fsha):
        insider.answer(z, y)
    if isinstance(insider, Pcat | Sdar):
        insider.watch(z, y, top)
    assert torch.equal(torch.get_rng_state(), before)


@every_onlooker
def test_a_run_that_is_looked_on_has_the_bits_of_one_that_is_not(make: Callable[..., Onlooker]) -> None:
    """Its top has batch norms and dropout, which whoever used it could not but change."""
    alone, seen = run(None, steps=FEW, knowledge=known()), run(make(repeats=2), steps=FEW, knowledge=known())
    assert torch.equal(weights(alone.client), weights(seen.client))
    assert torch.equal(weights(alone.top), weights(seen.top))


@every_onlooker
def test_the_top_keeps_its_gradients_and_its_mode(make: Callable[..., Onlooker]) -> None:
    insider, top, (x, y) = make(), made(drops, 1), rows(32, 4)
    for parameter in top.parameters():
        parameter.grad = torch.ones_like(parameter)
    z = x[:, :CUT].clone().requires_grad_()
    insider.begin(known(), z, 0)
    insider.watch(z, y, top)
    assert top.training
    assert all(p.requires_grad and p.grad is not None and bool((p.grad == 1).all()) for p in top.parameters())
    assert z.grad is None


@every_onlooker
def test_it_learns_from_the_top_as_it_is_at_each_step(make: Callable[..., Onlooker]) -> None:
    """An onlooker that kept the weights of the first step would not see that the top has changed."""
    (x, y), z_seen = rows(32, 4), []
    for changed in (False, True):
        insider, top = make(), made(drops, 1)
        insider.begin(known(bottom=linear), x[:, :CUT], 0)
        insider.watch(x[:, :CUT], y, top)
        if changed:
            with torch.no_grad():
                for parameter in top.parameters():
                    parameter.mul_(-3)
        insider.watch(x[:, :CUT], y, top)
        begun = insider._begun  # type: ignore[attr-defined]
        z_seen.append(weights(begun.client.network))
    assert not torch.equal(*z_seen)


@every_onlooker
def test_a_client_known_by_its_architecture_is_simulated_by_it(make: Callable[..., Onlooker]) -> None:
    insider = make()
    insider.begin(known(bottom=linear), torch.randn(4, CUT), 0)
    assert isinstance(insider._begun.client.network, nn.Linear)  # type: ignore[attr-defined]


@every_onlooker
def test_a_client_known_by_another_architecture_is_refused(make: Callable[..., Onlooker]) -> None:
    with pytest.raises(DataError, match=r"gives rows \[4\], not \[5\]"):
        make().begin(known(bottom=linear), torch.randn(4, CUT + 1), 0)


@every_insider
def test_without_rows_of_its_own_it_is_refused(make: Callable[..., Insider]) -> None:
    with pytest.raises(DataError, match="auxiliary"):
        make().begin(Knowledge(classes=3), torch.zeros(4, CUT), 0)
    with pytest.raises(DataError, match="floats"):
        make().begin(Knowledge(auxiliary=(torch.zeros(9, 3, dtype=torch.int64), None)), torch.zeros(4, CUT), 0)
    with pytest.raises(DataError, match="one for each"):
        make().begin(Knowledge(auxiliary=(torch.zeros(9, 3), torch.zeros(8))), torch.zeros(4, CUT), 0)


@every_onlooker
def test_without_labels_an_onlooker_is_refused(make: Callable[..., Onlooker]) -> None:
    insider, z = make(), torch.randn(4, CUT)
    with pytest.raises(DataError, match="labels"):
        insider.begin(Knowledge(auxiliary=(rows(50, 2)[0], None), classes=3), z, 0)
    insider.begin(known(), z, 0)
    with pytest.raises(DataError, match="labels"):
        insider.watch(z, None, made(drops, 1))


@every_insider
def test_before_it_has_begun_it_is_refused(make: Callable[..., Insider]) -> None:
    with pytest.raises(DataError, match="begin it first"):
        make().score(run(None, steps=1, knowledge=known()).traffic)


@every_insider
def test_options_of_no_use_are_refused_all_at_once(make: Callable[..., Insider]) -> None:
    with pytest.raises(PlanError) as refused:
        make(width=0, lr=-1.0, measure="beauty")
    assert len(refused.value.faults) == 3


def test_a_name_tells_the_options_that_are_not_as_usual() -> None:
    assert Fsha().name == "fsha"
    assert Pcat(width=8, aligned=False).name == "pcat(width=8, aligned=False)"
    assert Sdar(client_weight=0.5).name == "sdar(client_weight=0.5)"


@every_insider
def test_a_row_that_crossed_twice_counts_as_it_crossed_last(make: Callable[..., Insider]) -> None:
    insider = make()
    last = run(insider, steps=FEW, knowledge=known()).traffic
    assert last.activations is not None
    count = len(last)
    earlier = replace(last, activations=torch.zeros_like(last.activations), rows=torch.arange(count))
    last = replace(last, rows=torch.arange(count))
    both = type(last)(
        **{
            name: torch.cat((getattr(earlier, name), getattr(last, name)))
            for name in ("steps", "activations", "inputs", "labels", "rows")
        }
    )
    assert insider.score(both).value == insider.score(last).value

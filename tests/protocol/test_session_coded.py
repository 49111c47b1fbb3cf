"""What may come on an edge that has a codec: one length for each tensor, and none beyond its limit."""

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from cutlayer.errors import RemoteProtocolError
from cutlayer.plan.batches import Batch
from cutlayer.plan.schedule import SCHEDULES
from cutlayer.plan.tensors import most_coded_bytes
from cutlayer.plan.terms import CodecTerms, Method
from cutlayer.protocol.arrivals import check_forward
from cutlayer.protocol.messages import Forward
from cutlayer.protocol.route import Route, largest_body_bytes
from cutlayer.protocol.turns import Flight
from cutlayer.protocol.wire import body_bytes
from protocol.plans import LAB, A, make_plan
from protocol.scenes import forward

INT8 = (Method(name="int8"),)
PLAIN = make_plan()
CODED = replace(PLAIN, terms=replace(PLAIN.terms, codec=(CodecTerms(forward=INT8),)))


class Turn:
    """As much of an open turn as the check asks for."""

    finished: frozenset[Any] = frozenset()


def checked(message: Forward) -> None:
    assert CODED.schedule is SCHEDULES["alternating"]
    route = Route(CODED, LAB, A)
    edge = route.edges["bottom->top"]
    assert edge.coded == {"forward"}
    check_forward(Turn(), Flight(Batch(0, 0, 2), route), edge, A, message)  # type: ignore[arg-type]


def test_a_length_up_to_the_limit_is_taken() -> None:
    most = most_coded_bytes(forward().tensors[0])
    for size in (0, 12, most):
        checked(structs.replace(forward(), sizes=(size,)))


@pytest.mark.parametrize("sizes", [(), (1, 1), (10**6,)], ids=["none", "two", "too long"])
def test_other_lengths_are_refused_before_anything_is_decoded(sizes: tuple[int, ...]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        checked(structs.replace(forward(), sizes=sizes))
    assert caught.value.rule == "wrong-size"


def test_the_largest_body_of_a_run_has_room_for_what_codecs_may_make() -> None:
    rows = CODED.terms.training.batch_size
    shapes = [spec.for_rows(rows) for spec in CODED.contents.edges["bottom->top"]]
    assert largest_body_bytes(CODED) >= sum(map(most_coded_bytes, shapes)) >= body_bytes(shapes)

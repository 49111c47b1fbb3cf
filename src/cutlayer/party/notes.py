"""What a party remembers beside its replicas, and must find again when its run is taken up."""

from dataclasses import dataclass

from cutlayer.party.coding import Coding
from cutlayer.party.pace import Pace


@dataclass(frozen=True, slots=True)
class Notes:
    """What its codecs lost so far, and how many micro-batches it has found to be fastest."""

    coding: Coding
    pace: Pace

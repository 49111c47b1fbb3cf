"""What a party remembers beside its replicas, and must find again when its run is taken up."""

from dataclasses import dataclass

from cutlayer.model.state import ReplicaState
from cutlayer.party.coding import Coding
from cutlayer.party.defending import Defending
from cutlayer.party.judging import Judging
from cutlayer.party.pace import Pace
from cutlayer.party.probing import Probing


@dataclass(frozen=True, slots=True)
class Notes:
    """What its codecs lost so far, what its defences learned, what its probes found, the turns by which others are
    judged, how many micro-batches it has found to be fastest."""

    coding: Coding
    defending: Defending
    probing: Probing
    judging: Judging
    pace: Pace

    def states(self) -> dict[str, ReplicaState]:
        """What of it is tensors, by what a save calls it."""
        return {
            "coding": self.coding.state(),
            "defending": self.defending.state(),
            "probing": self.probing.state(),
            "judging": self.judging.state(),
        }

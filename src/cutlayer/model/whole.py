"""A network that is no chain, whole again: its segments, called one after another as the topology says."""

from collections.abc import Mapping

from torch import Tensor, nn

from cutlayer.model.joining import combine
from cutlayer.model.parts import as_tuple
from cutlayer.plan.topology import Topology


class Whole(nn.Module):
    """The segments that answer, wired: called with the sources' tensors in the topology's order.

    `whole(x_bank_a, x_bank_b)` gives what the segment that answers gives, or a tuple of what each does. A source of
    several tensors is given as a tuple. Its state's names are those of the segments' own parameters.
    """

    def __init__(self, topology: Topology, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._topology = topology.without(topology.unused_in_prediction)
        self.sources = tuple(source.name for source in self._topology.sources)
        self._answering = tuple(s.name for s in self._topology.segments if s.loss)
        self._joins = {segment.name: segment.join for segment in self._topology.segments}
        self._feeds = {
            segment.name: tuple(edge.source for edge in self._topology.inputs(segment.name))
            for segment in self._topology.segments
        }
        self.segments = nn.ModuleDict({segment.name: parts[segment.name] for segment in self._topology.segments})

    def forward(self, *inputs: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        values = {name: as_tuple(value) for name, value in zip(self.sources, inputs, strict=True)}
        for name, part in self.segments.items():
            fed = [values[source] for source in self._feeds[name]]
            values[name] = as_tuple(part(*combine(fed, self._joins[name])))
        answers = tuple(values[name][0] for name in self._answering)
        return answers[0] if len(answers) == 1 else answers

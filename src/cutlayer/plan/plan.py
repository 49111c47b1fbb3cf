"""The plan: what was agreed, frozen, with canonical bytes and a digest.

`Terms` are what a person writes in `plan.toml`. `Contents` are what follows from them and the model: which parameters
lie in which segment, and what each edge carries. A party agrees to both, through one digest.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import msgspec

from cutlayer.plan.schedule import SCHEDULES, Schedule
from cutlayer.plan.tensors import TensorShape, TensorSpec
from cutlayer.plan.terms import TOGETHER, Channel, CodecTerms, DefenceTerms, Method, Terms, Way
from cutlayer.plan.topology import Source, Topology

RAW, OPEN = CodecTerms(), DefenceTerms()


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentContents:
    """A segment's parameters and buffers, by their names in the uncut model."""

    state: dict[str, TensorShape]
    parameters: int
    """How many trainable numbers."""
    mixes_rows: bool = False
    """Whether what it gives for a row depends on the batch's other rows, or on rows of batches before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutting:
    """What a way of cutting the model gives: its segments, and what its edges carry."""

    segments: dict[str, SegmentContents]
    edges: dict[str, tuple[TensorSpec, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What follows from the terms and the model."""

    segments: dict[str, SegmentContents]
    edges: dict[str, tuple[TensorSpec, ...]]
    classes: dict[str, int]
    """How many classes the labels of a source have; 0 where they are no classes."""
    model_digest: str
    weights_digest: str
    personal: tuple[str, ...] = ()
    """The parameters and buffers that stay with their owner, by name."""
    cuttings: dict[str, Cutting] = field(default_factory=dict)
    """For clients whose model is cut elsewhere."""

    @classmethod
    def empty(cls) -> "Contents":
        """Of a plan whose model nobody has looked at."""
        return cls(segments={}, edges={}, classes={}, model_digest="", weights_digest="")

    @property
    def everywhere(self) -> "tuple[Cutting | Contents, ...]":
        """The plan's own way of cutting the model, and those of clients whose model is cut elsewhere."""
        return (self, *self.cuttings.values())

    def of(self, owner: str) -> "Cutting | Contents":
        """The segments and edges that `owner`'s rows meet."""
        return self.cuttings.get(owner, self)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Terms and contents: everything that all parties must agree on."""

    terms: Terms
    contents: Contents

    @cached_property
    def topology(self) -> Topology:
        return self.terms.drawn()

    @cached_property
    def schedule(self) -> Schedule:
        return SCHEDULES[self.terms.schedule]

    @cached_property
    def first(self) -> dict[str, str]:
        """The first party that fills each role."""
        return {party.role: name for name, party in reversed(self.terms.parties.items())}

    def holder(self, role: str, owner: str) -> str:
        """The party that has the nodes of a role when `owner`'s rows travel."""
        parties = self.terms.parties
        if role in parties:
            return role
        return owner if owner in parties and parties[owner].role == role else self.first[role]

    def holds(self, party: str, role: str) -> bool:
        """Whether a party has the nodes of a role, for rows of its own or of others."""
        return role == party if role in self.terms.parties else role == self.terms.parties[party].role

    def parties_of(self, role: str) -> tuple[str, ...]:
        """The parties that have the nodes of a role, in party order."""
        return tuple(party for party in self.terms.parties if self.holds(party, role))

    def sources_of(self, party: str) -> tuple[Source, ...]:
        """The columns that a party brings."""
        return tuple(source for source in self.topology.sources if self.holds(party, source.role))

    def way(self, silent: frozenset[str]) -> Topology:
        """The topology where these edges carry nothing."""
        if silent not in self._ways:
            self._ways[silent] = self.topology.without(silent)
        return self._ways[silent]

    def why_not_without(self, absent: Collection[str]) -> str:
        """Why predictions cannot be made without these parties: a sentence, or nothing if they can."""
        if strange := [party for party in absent if party not in self.terms.parties]:
            return f"{strange[0]!r} is no party of the plan; its parties are {', '.join(self.terms.parties)}"
        if self.conductor in absent:
            return f"{self.conductor} hands out turns: nothing goes without it"
        if not self.schedule.together and set(self.clients) <= set(absent):
            return f"without {', '.join(absent)} nothing is left that answers"
        unused = self.topology.unused_in_prediction
        holders = {s.name: self._one_holder(s.role) for s in self.topology.nodes}
        needed = {holders[s.name] for s in self.way(unused).segments}
        missed = [party for party in absent if party in needed]
        return self._why_not_missed(missed, holders) if missed else ""

    def _why_not_missed(self, missed: Collection[str], holders: Mapping[str, str]) -> str:
        """The same for parties with a part in predictions; `holders` of each node."""
        first, unused = next(iter(missed)), self.topology.unused_in_prediction
        if not self.schedule.together:
            return f"nothing goes without {first}, which has a part of every row's way"
        if not self.terms.training.party_dropout:
            return f"the model never learned to do without {first}: train it with training.party_dropout"
        gone = {e.name for e in self.topology.cuts() if holders[e.source] in missed}
        left = {segment.name for segment in self.way(unused | gone).segments}
        answers = {loss.name for loss in self.topology.losses if not loss.auxiliary}
        lost = [s for s in self.topology.segments if holders[s.name] in missed and s.name in left]
        if not answers <= left or lost:
            return f"without {', '.join(missed)} nothing is left that answers"
        return ""

    def why_not_go_on_without(self, absent: Collection[str]) -> str:
        """Why training cannot go on without these parties: a sentence, or nothing if it can."""
        quorum = self.terms.quorum
        left = [party for party in self.clients if party not in absent]
        if strange := [party for party in absent if party not in self.clients]:
            return f"nothing goes without {strange[0]}, which is no client"
        if absent and (quorum == "all" or len(left) < quorum):
            return f"quorum = {quorum}, and only {len(left)} of {len(self.clients)} clients are there"
        if not absent or not self.schedule.together:
            return ""
        held = {node.name: self._one_holder(node.role) for node in self.topology.nodes}
        gone = {edge.name for edge in self.topology.cuts() if held[edge.source] in absent}
        way = self.way(frozenset(gone))
        needed = [s.name for s in way.segments if held[s.name] in absent]
        if needed or gone & {e.name for loss in way.losses if (e := self.topology.target(loss.name))}:
            return f"nothing goes without {', '.join(absent)}: a loss, or its labels, would be gone"
        return ""

    def _one_holder(self, role: str) -> str:
        """The party that has a role's nodes; none of clients, each of which has its own."""
        return "" if role == "client" and not self.schedule.together else self.holder(role, "")

    @cached_property
    def _ways(self) -> dict[frozenset[str], Topology]:
        return {}

    @cached_property
    def aggregator(self) -> str:
        """The party that sums and averages what clients send; empty if there is none."""
        return self.terms.aggregator

    @cached_property
    def clients(self) -> tuple[str, ...]:
        """The parties in the role of client, in party order."""
        return self.terms.filling("client")

    @cached_property
    def row_owners(self) -> tuple[str, ...]:
        """The parties that bring columns, in party order."""
        return self.terms.bringing("rows", "labels")

    @cached_property
    def feature_owners(self) -> tuple[str, ...]:
        """The parties that bring columns of features, in party order."""
        return self.terms.bringing("rows")

    @cached_property
    def score_prefixes(self) -> dict[str, str]:
        """By loss, what the names of its scores begin with: nothing for the one that answers, if it is one."""
        answers = [loss.name for loss in self.topology.losses if not loss.auxiliary]
        return {
            loss.name: "" if answers == [loss.name] else f"{loss.name}." for loss in self.topology.losses
        }  # fmt: skip

    @cached_property
    def owners(self) -> tuple[str, ...]:
        """Under which names rows travel: each client's, or all parties' together."""
        return (TOGETHER,) if self.schedule.together else self.clients

    @cached_property
    def forwarded_pairs(self) -> frozenset[tuple[str, str]]:
        """Parties with an edge between them, of which neither is the conductor."""
        return self.terms.forwarded_pairs

    def coding(self, edge: str) -> CodecTerms:
        """How an edge is encoded: by the entry that names it, or the one for all cuts that carry activations."""
        return self._codings.get(edge, RAW)

    @cached_property
    def _codings(self) -> dict[str, CodecTerms]:
        topology = self.topology
        everywhere = next((each for each in self.terms.codec if not each.edge), RAW)
        activations = {edge.name: everywhere for edge in topology.cuts() if topology.source_kind(edge) is None}
        return activations | {each.edge: each for each in self.terms.codec if each.edge}

    def defending(self, edge: str) -> DefenceTerms:
        """How an edge is defended: by the entry that names it, or the one for all cuts that carry activations."""
        return self._defences.get(edge, OPEN)

    @cached_property
    def _defences(self) -> dict[str, DefenceTerms]:
        topology, entries = self.topology, [each for each in self.terms.defence if not each.segment]
        everywhere = next((each for each in entries if not each.edge), OPEN)
        activations = {edge.name: everywhere for edge in topology.cuts() if topology.source_kind(edge) is None}
        return activations | {each.edge: each for each in entries if each.edge}

    def learning(self, segment: str) -> tuple[Method, ...]:
        """By which defences a segment learns."""
        return next((each.update for each in self.terms.defence if each.segment == segment), ())

    def channel(self, edge: str, way: Way) -> Channel:
        """What crosses an edge, one way, as an accountant calls it."""
        carries = next((self.topology.source_kind(each) for each in self.topology.edges if each.name == edge), None)
        return "labels" if carries == "labels" else "activations" if way == "forward" else "gradients"

    @cached_property
    def staleness(self) -> dict[str, int]:
        """By segment: by how many steps the weights with which a mini-batch meets it are older than in an exact run.

        The plan's at those furthest from a loss, none at the losses, and in proportion between them: each leg of the
        way has as many steps under way then.
        """
        most, topology = self.terms.training.staleness, self.topology
        if not most:
            return {}
        cuts = {segment.name: topology.crossings_to_loss(segment.name) for segment in topology.segments}
        longest = max(cuts.values())
        return {name: most * count // longest for name, count in cuts.items()} if longest else {}

    def loss_of(self, segment: str) -> Method:
        """The loss that a segment ends in; by default rows are compared with what was made of them by their squares."""
        training, target = self.terms.training, self.topology.target(segment)
        gives_back = target is not None and self.topology.source_kind(target) == "rows"
        return training.losses.get(segment) or (Method(name="mse_loss") if gives_back else training.loss)

    @cached_property
    def conductor(self) -> str:
        return self.terms.conducting

    @cached_property
    def averaged_segments(self) -> tuple[str, ...]:
        """Segments whose replicas are averaged, in the order of the topology."""
        return self._segments_at(self.schedule.averaged)

    @cached_property
    def client_segments(self) -> tuple[str, ...]:
        return self._segments_at(("client",))

    @cached_property
    def server_segments(self) -> tuple[str, ...]:
        return self._segments_at(("server",))

    def _segments_at(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        """Segments of these roles, or of parties that fill them."""
        parties = self.terms.parties
        return tuple(
            segment.name
            for segment in self.topology.segments
            if (parties[segment.role].role if segment.role in parties else segment.role) in roles
        )

    @cached_property
    def straddling(self) -> frozenset[str]:
        """Names of state that lies at a client under one cut and at the server under another."""
        held: dict[bool, set[str]] = {True: set(), False: set()}
        for cutting in self.contents.everywhere if self.contents.cuttings else ():
            for segment, contents in cutting.segments.items():
                held[segment in self.client_segments].update(contents.state)
        return frozenset(held[True] & held[False])

    def canonical(self) -> bytes:
        """The bytes that the digest covers: JSON with a fixed order, and the parties' own order, which turns follow."""
        return msgspec.json.encode((self.terms, list(self.terms.parties), self.contents), order="deterministic")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        return sha256(self.canonical()).hexdigest()

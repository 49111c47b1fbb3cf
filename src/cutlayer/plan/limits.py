"""Every limit of a run in one place, each with its unit in its name."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a party waits for, and how much it takes from a peer. Part of the plan: all parties agree on it."""

    join_timeout_s: float = 300.0
    """How long parties wait for each other at the start, and how long a client tries to reach the server."""
    handshake_timeout_s: float = 20.0
    """TCP, TLS and the opening of one connection."""
    silence_timeout_s: float = 30.0
    """A peer from whom no byte came for so long is lost. Heartbeats are sent four times as often."""
    send_timeout_s: float = 120.0
    """How long one frame may take to leave."""
    reconnect_timeout_s: float = 60.0
    """How long a link whose connections broke may take to stand again; at 0 a broken link is lost at once."""
    queued_frames: int = 128
    queued_bytes: int = 256 * 2**20
    """How much a sender keeps that the peer has not acknowledged, and bytes of it; one frame always fits."""
    progress_timeout_s: float = 900.0
    """A live peer that owes a message and does not send it for so long is lost."""
    turn_timeout_s: float = 86_400.0
    """How long a party waits for its next turn while others have theirs."""
    rejoin_timeout_s: float = 3600.0
    """How long parties wait for one that was lost to come back, before the run is taken up again."""
    deadline_s: float = 600.0
    """Where a quorum is enough: how long the others wait for a lost client, or for a live one's part of a turn."""
    tensor_rms: float = 1e6
    """The largest root mean square of a tensor that a party takes from a peer."""
    header_bytes: int = 65_536
    """The largest header of a frame."""
    live_tickets: int = 64
    """The most micro-batches a party holds activations for at a time."""
    turns_ahead: int = 4
    """How many turns the conductor grants before the oldest of them is done."""
    max_live: int = 32
    """How many replicas of a segment a process keeps in memory, and how many clients train at once on replicas of
    their own at the server; the rest lie on disk."""
    connections: int = 256
    """The most connections a listener holds that have not finished their handshake."""

    @property
    def heartbeat_s(self) -> float:
        return self.silence_timeout_s / 4

"""How long a party waits without a word, by where it stands in a run. Each of these is a limit of the plan."""

from typing import Literal

from cutlayer.plan.limits import Limits
from cutlayer.protocol.resuming import Standing

Stage = Literal["joining", "at work", "idle", "leaving"]
"""Before the run; a peer owes something; others have their turns; all is over, but for the goodbyes."""


def patience_s(limits: Limits, stage: Stage, standing: Standing, *, conducts: bool) -> float:
    """Seconds. Where a run is taken up again there may be long to wait, and a member may have to wait for its round."""
    if standing.over:
        return limits.reconnect_timeout_s + limits.silence_timeout_s  # who lives has dialled again by then
    if stage == "joining" and (standing.again or (standing.lasting and not conducts)):
        return limits.rejoin_timeout_s if conducts else limits.turn_timeout_s
    if stage == "leaving" and standing.lasting:
        return limits.rejoin_timeout_s
    return {
        "joining": limits.join_timeout_s,
        "at work": limits.progress_timeout_s,
        "idle": limits.turn_timeout_s,
        "leaving": limits.progress_timeout_s,
    }[stage]

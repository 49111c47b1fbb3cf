"""Many parties in one process: the same objects as over a network, over memory, one thread.

A simulation of a plan gives the bits that the plan gives over a network, given the same secrets, processor type,
torch build and thread count.
"""

from cutlayer.simulation.call import simulate
from cutlayer.simulation.runs import Result, simulate_plan

__all__ = ["Result", "simulate", "simulate_plan"]

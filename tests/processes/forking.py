"""Processes forked from one that has loaded what takes seconds: torch, and what torch loads by its first optimizer."""

import multiprocessing
from multiprocessing.context import ForkServerContext

LOADED = ["torch._dynamo", "cutlayer.cli.app", "cutlayer.party.run", "cutlayer.keys"]


def forking() -> ForkServerContext:
    """The context of these processes; all tests of a process have one such server, which has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context

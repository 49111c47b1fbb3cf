"""What must outlive a party's process: its part of each save, and that its run is over."""

import time
from collections.abc import Callable

from cutlayer.errors import CutlayerError
from cutlayer.observe.facts import Fact, Saved, Spent
from cutlayer.party.notes import Notes
from cutlayer.party.replicas import Replicas
from cutlayer.party.saver import Saver
from cutlayer.protocol.events import Broke, Commit, Event, Finish, Lasting, Restore, Store, Stored

Post = Callable[[Event], None]
"""Where another thread may put an event for the party."""


class Keeping:
    """Carries out a session's orders about saves, for party `name`; without a `saver` nothing is kept.

    Methods give facts to be told. Events go to `feed` at once; or, if there is a `post`, there when they happen: a save
    is written in another thread then.
    """

    def __init__(
        self, name: str, replicas: Replicas, notes: Notes, *, saver: Saver | None, feed: Post, post: Post | None
    ) -> None:  # fmt: skip
        self._name, self._replicas, self._notes = name, replicas, notes
        self._saver, self._feed, self._post = saver, feed, post

    def keep(self, action: Lasting) -> list[Fact]:
        """Do what the session says. Raises `RunError`."""
        if self._saver is None:
            if isinstance(action, Store):
                self._feed(Stored(action.number))
            return []
        match action:
            case Restore():
                return [self._saver.restore(action, self._replicas, self._name, self._notes)]
            case Store():
                return self._store(action, self._saver)
            case Commit():
                post = self._post or self._feed
                self._saver.commit(action, lambda error: post(Broke(error)))
                return [Saved(party=self._name, number=action.number, round=action.round)]
            case Finish():
                self._saver.finish(left=action.left)
                return []

    def take_up_last(self) -> Fact:
        """Become what the last save has of this party, whose part of the run is over."""
        assert self._saver is not None
        return self._saver.take_up_last(self._replicas, self._name)

    def _store(self, store: Store, saver: Saver) -> list[Fact]:
        start = time.perf_counter()
        written: list[Event] = []
        post = self._post or written.append

        def done(number: int, error: CutlayerError | None) -> None:
            post(Stored(number) if error is None else Broke(error))

        saver.store(store, self._replicas, done, self._notes)
        if self._post is None:
            saver.wait()
        for event in written:
            self._feed(event)
        return [Spent(party=self._name, on="save", seconds=time.perf_counter() - start)]

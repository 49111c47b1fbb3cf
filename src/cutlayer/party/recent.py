"""What is remembered of tickets in flight, and forgotten of those that never came back."""

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The newest `most` entries by key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[K, V] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __setitem__(self, key: K, value: V) -> None:
        while len(self._entries) >= self._most:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = value

    def __getitem__(self, key: K) -> V:
        return self._entries[key]

    def get(self, key: K) -> V | None:
        """The entry, if it is still there."""
        return self._entries.get(key)

    def pop(self, key: K) -> V | None:
        """Take the entry out, if it is still there."""
        return self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()

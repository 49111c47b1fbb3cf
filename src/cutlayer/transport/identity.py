"""What a party shows and trusts, read again when its files have changed: a renewed certificate needs no restart."""

import ssl
from collections.abc import Callable
from contextlib import suppress

from cutlayer.transport.tls import KeyFiles, context_for

Stamp = tuple[tuple[int, int, int], ...]


class Identity:
    """A TLS context that follows its files. `build` makes one; with `plaintext`, on loopback only, there is none.

    Raises `CredentialError`.
    """

    def __init__(
        self, build: Callable[[KeyFiles], ssl.SSLContext], files: KeyFiles | None, host: str, *, plaintext: bool
    ) -> None:
        self._build, self._files = build, None if plaintext else files
        self._stamp = self._look()
        self.context = context_for(build, files, host, plaintext=plaintext)

    def renew(self) -> None:
        """Read the files again if they have changed. Raises `CredentialError`, and keeps what was read before."""
        if self._files is not None and (stamp := self._look()) != self._stamp:
            self.context = self._build(self._files)
            self._stamp = stamp

    def _look(self) -> Stamp:
        stamp = []
        if self._files is not None:
            for path in (self._files.key, self._files.certificate, self._files.authority):
                with suppress(OSError):  # a file that is not there is told of when it is read
                    status = path.stat()
                    stamp.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(stamp)

"""Draws that no peer can draw again: a stream cipher, keyed by a generator of the party's own.

torch's generator on the CPU is a Mersenne Twister. It is linear: who knows the other rows of a mini-batch (differential
privacy grants an attacker that much) could solve for its state from their noise, and subtract the noise of the last
row. And `manual_seed` keeps 32 bits of a seed, which can be tried one after another. So a generator gives no more than
a key here, and the draws are AES-256 in counter mode; `generator_of` makes a generator whose whole state is secret.

Floating point: the textbook samplers of numbers with a last bit leave gaps, and what is released may tell by its last
bits what the noise was added to (Mironov 2012, CCS, for Laplace; Jin et al. 2022, arXiv 2112.05307, for Gaussian, and
for the time that a draw takes; Haney et al. 2022, arXiv 2207.13793). Here noise is drawn, scaled and added in float64
and rounded once, to the tensor's own dtype: below float64 that rounding drops the 29 bits or more where the published
attacks look. For float64 nothing is dropped. We do not claim more: no draw here is of an exact discrete distribution.
"""

import math
from collections.abc import Sequence
from hashlib import shake_256

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from torch import Tensor

_KEY_BYTES = 32
_FIRST_WORD, _WORDS = 24, 624
"""Where a saved generator has the words of its state, each in 8 bytes, and how many there are."""


def generator_of(secret: bytes) -> torch.Generator:
    """A generator whose 19,937 bits of state all come from a secret of 32 bytes or more."""
    assert len(secret) >= _KEY_BYTES, "a shorter secret can be tried out"
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state().numpy().copy()
    words = np.frombuffer(shake_256(secret).digest(4 * _WORDS), dtype="<u4").astype("<u8")
    state[_FIRST_WORD : _FIRST_WORD + 8 * _WORDS] = np.frombuffer(words.tobytes(), dtype=np.uint8)
    return generator.set_state(torch.from_numpy(state))


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Even draws from (0, 1], multiples of 2⁻⁵³, in float64 on the CPU."""
    return _fractions(_words(math.prod(shape), generator)).view(tuple(shape))


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws from N(0, 1), in float64 on the CPU (Box and Muller 1958)."""
    count = math.prod(shape)
    radius, turn = _fractions(_words(count + count % 2, generator)).view(2, -1)
    radius, turn = radius.log().mul_(-2).sqrt_(), turn.mul_(2 * math.pi)
    return torch.cat((radius * turn.cos(), radius * turn.sin()))[:count].view(tuple(shape))


def laplace(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws from Laplace(0, 1), in float64 on the CPU: an exponential draw, with a sign."""
    words = _words(math.prod(shape), generator)
    signs = torch.from_numpy((words & np.uint64(1)).astype(np.float64)).mul_(2).sub_(1)
    return _fractions(words).log().mul_(signs).view(tuple(shape))


def _words(count: int, generator: torch.Generator) -> NDArray[np.uint64]:
    """Words of 64 random bits. Each call takes a new key of the generator."""
    key = torch.randint(256, (_KEY_BYTES,), generator=generator, dtype=torch.uint8).numpy().tobytes()
    # A key is used once, so a counter from zero repeats nothing.
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(8 * count))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def _fractions(words: NDArray[np.uint64]) -> Tensor:
    """The upper 53 bits of each word as a number in (0, 1]."""
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64)).add_(1).mul_(2.0**-53)

"""Keys and certificates: each party makes its own keys; the authority only signs. Sealed messages. No network."""

from cutlayer.keys.authority import make_authority, make_demo_kit, sign_request
from cutlayer.keys.certificates import Credentials, load_credentials, make_request, party_secret, public_pin
from cutlayer.keys.files import hand_over
from cutlayer.keys.pairs import PublicKeys
from cutlayer.keys.sealing import SEAL_BYTES, Sealer, load_sealer

__all__ = [
    "SEAL_BYTES",
    "Credentials",
    "PublicKeys",
    "Sealer",
    "hand_over",
    "load_credentials",
    "load_sealer",
    "make_authority",
    "make_demo_kit",
    "make_request",
    "party_secret",
    "public_pin",
    "sign_request",
]

"""Keys and certificates: each party makes its own key; the authority only signs. Files, no network."""

from cutlayer.keys.authority import make_authority, make_demo_kit, sign_request
from cutlayer.keys.certificates import Credentials, load_credentials, make_request, party_secret, public_pin

__all__ = [
    "Credentials",
    "load_credentials",
    "make_authority",
    "make_demo_kit",
    "make_request",
    "party_secret",
    "public_pin",
    "sign_request",
]

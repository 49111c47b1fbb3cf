"""Writes the parties' public keys into a plan, from the files that they sent. Comments and layout stay as they are.

The certificate's key (`key`) is what TLS meets; `signing_key` and `sealing_key` are for messages that a third party
forwards. A plan with other pins is another plan.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from cutlayer.errors import CredentialError, PlanError
from cutlayer.keys.certificates import check_names, load_certificate, public_pin
from cutlayer.keys.files import check_party, write_public
from cutlayer.keys.pairs import read_public_keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Pins:
    """What became of one party's pins: names of keys in the plan, and of files that were not there."""

    party: str
    written: tuple[str, ...]
    equal: tuple[str, ...]
    missing: tuple[str, ...]


def pin_keys(plan: Path, folder: Path, *, replace: bool = False) -> tuple[Pins, ...]:
    """Pins what `NAME.crt` and `NAME.pub` in `folder` hold, for each party of the plan; all of it or nothing.

    Raises `PlanError` for what is no plan; `CredentialError` if no party's file is there, for a file that is not its
    party's, and, unless `replace`, if the plan pins another key already.
    """
    text = _read_plan(plan)
    parties = _parties(text, plan)
    found = {party: dict(_found(folder, party)) for party in parties}
    if not any(found.values()):
        raise CredentialError(
            f"{folder} has no NAME.crt and no NAME.pub of a party of {plan} ({', '.join(parties)}): "
            "name the folder of the files that they sent, with --keys"
        )
    changed = [
        f"parties.{party}.{name}"
        for party, keys in found.items()
        for name, key in keys.items()
        if parties[party].get(name) and parties[party][name] != key
    ]
    if changed and not replace:
        raise CredentialError(
            f"{plan} pins other keys than the files in {folder} hold ({', '.join(changed)}): ask their owners, by "
            "another way than the files came, which are right, and add --replace if the files are"
        )
    pins = tuple(_compare(party, parties[party], keys) for party, keys in found.items())
    if any(entry.written for entry in pins):
        write_public(plan.resolve(), _with_pins(text, found, plan).encode())
    return pins


def _read_plan(plan: Path) -> str:
    try:
        return plan.read_bytes().decode()
    except OSError as error:
        raise PlanError(f"{plan} cannot be read ({error.strerror}): `cutlayer init` writes one") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{plan} is not a text file in UTF-8") from error


def _parties(text: str, plan: Path) -> dict[str, dict[str, Any]]:
    try:
        parties = tomllib.loads(text).get("parties")
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{plan} is not valid TOML: {error}") from error
    if not isinstance(parties, dict) or not parties or not all(isinstance(terms, dict) for terms in parties.values()):
        raise PlanError(f"{plan} must have a table for each party, such as [parties.hospital-a]")
    return parties


def _found(folder: Path, party: str) -> Iterator[tuple[str, str]]:
    check_party(party)
    certificate, public = folder / f"{party}.crt", folder / f"{party}.pub"
    if certificate.exists():
        check_names(load_certificate(certificate, mend=f"ask {party} for it again"), party, certificate)
        yield "key", public_pin(certificate)
    if public.exists():
        keys = read_public_keys(public, party)
        yield "signing_key", keys.signing
        yield "sealing_key", keys.sealing


def _compare(party: str, terms: dict[str, Any], keys: dict[str, str]) -> Pins:
    return Pins(
        party=party,
        written=tuple(name for name, key in keys.items() if terms.get(name) != key),
        equal=tuple(name for name, key in keys.items() if terms.get(name) == key),
        missing=tuple(f"{party}{end}" for end, name in ((".crt", "key"), (".pub", "signing_key")) if name not in keys),
    )


def _add(table: Any, keys: dict[str, str]) -> None:
    """The new keys follow the old ones; comments and empty lines before the next table stay with that."""
    body = table.value.body if isinstance(table, Table) else []
    after: list[Any] = []
    while body and body[-1][0] is None:
        after.insert(0, body.pop())
    for name, key in keys.items():
        table[name] = key
    body.extend(after)


def _with_pins(text: str, found: dict[str, dict[str, str]], plan: Path) -> str:
    """The plan's text with all pins. What it means is checked against the same change made to the plain document."""
    meant = tomllib.loads(text)
    for party, keys in found.items():
        meant["parties"][party] |= keys
    try:
        document = tomlkit.parse(text)
        for party, keys in found.items():
            _add(document["parties"][party], keys)
        pinned = tomlkit.dumps(document)
    except TOMLKitError:
        pinned = ""
    if not pinned or tomllib.loads(pinned) != meant:
        raise PlanError(
            f"{plan} is laid out so that keys cannot be added to it: write one [parties.NAME] for each party"
        )
    return pinned

"""`plan.toml` to `Terms`. All faults are found at once; an unknown key is answered with the nearest known one."""

import dataclasses
import tomllib
import typing
from difflib import get_close_matches
from typing import Any

import msgspec

from cutlayer.errors import PlanError
from cutlayer.plan.terms import Method, ModelTerms, PartyTerms, Terms

T = typing.TypeVar("T")


def read_terms(text: str) -> Terms:
    """The terms that a plan's text states. Raises `PlanError` with all faults of form, one sentence each."""
    return read_document(text, Terms, "plan")


def read_document(text: str, kind: type[T], what: str) -> T:
    """A dataclass from the text of a TOML file; `what` it is, for faults. Raises `PlanError` with all of them."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"the {what} is not valid TOML: {error}") from error
    faults: list[str] = []
    result = _table(document, kind, "", faults, what)
    if faults:
        raise PlanError(faults)
    return typing.cast(T, result)


def _table(table: Any, kind: type, path: str, faults: list[str], what: str = "plan") -> Any:
    """A dataclass from a TOML table; None if anything in it is at fault."""
    if not isinstance(table, dict):
        faults.append(f"[{path}] must be a table of keys")
        return None
    fields = {field.name: field for field in dataclasses.fields(kind)}
    before = len(faults)
    for key in sorted(table.keys() - fields.keys()):
        faults.append(f"{_at(path, key)} is no key of a {what}{nearest(key, fields)}")
    hints = typing.get_type_hints(kind)
    values = {key: _value(table[key], hints[key], _at(path, key), faults) for key in fields if key in table}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in table:
            faults.append(f"{_at(path, name)} is missing")
    return kind(**values) if len(faults) == before else None


def _value(value: Any, kind: Any, path: str, faults: list[str]) -> Any:
    if kind == Method or kind == Method | None:
        return _method(value, path, faults)
    if kind == tuple[Method, ...]:
        methods = value if isinstance(value, list) else [value]
        return tuple(_method(method, path, faults) for method in methods)
    if kind in (dict[str, PartyTerms], dict[str, Method]):
        return _named(value, typing.get_args(kind)[1], path, faults)
    if (item := _item(kind)) is not None:
        tables = value if isinstance(value, list) else [value]
        places = [f"{path}[{at}]" if len(tables) > 1 else path for at in range(len(tables))]
        return tuple(_table(table, item, place, faults) for table, place in zip(tables, places, strict=True))
    if dataclasses.is_dataclass(kind):
        if kind in (ModelTerms, PartyTerms) and isinstance(value, dict) and isinstance(value.get("cut"), str):
            value = value | {"cut": [value["cut"]]}
        return _table(value, typing.cast(type, kind), path, faults)
    return _plain(value, kind, path, faults)


def _named(value: Any, kind: Any, path: str, faults: list[str]) -> Any:
    """A table of parties or of methods, by name."""
    if not isinstance(value, dict):
        each, example = ("party", "hospital-a") if kind is PartyTerms else ("method", "top")
        faults.append(f"[{path}] must have a table for each {each}, such as [{path}.{example}]")
        return None
    return {name: _value(own, kind, _at(path, name), faults) for name, own in value.items()}


def _plain(value: Any, kind: Any, path: str, faults: list[str]) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        if typing.get_origin(kind) is typing.Literal and isinstance(value, str):
            faults.append(f"{path} = {value!r} is unknown{nearest(value, typing.get_args(kind))}")
        else:
            faults.append(f"{path} = {value!r}: {str(error)[:1].lower()}{str(error)[1:]}")
        return None


def _item(kind: Any) -> type | None:
    """The dataclass of which `kind` is a tuple: alone, or as one of two choices."""
    for choice in (kind, *typing.get_args(kind)):
        if typing.get_origin(choice) is tuple and dataclasses.is_dataclass(item := typing.get_args(choice)[0]):
            return typing.cast(type, item)
    return None


def _method(value: Any, path: str, faults: list[str]) -> Method | None:
    """`"Adam"`, or `{ name = "Adam", lr = 0.001 }`."""
    if isinstance(value, str):
        return Method(name=value)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        faults.append(f'{path} must be a name, or a table with a name, such as {{ name = "Adam", lr = 0.001 }}')
        return None
    try:
        return msgspec.convert({"name": value["name"], "options": _without(value, "name")}, Method)
    except msgspec.ValidationError as error:
        faults.append(f"{path}: its options must be numbers, words or lists of numbers ({error})")
        return None


def _without(table: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != key}


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """`": did you mean 'x'?"`, `"; known are …"`, for the end of a fault."""
    known = list(known)
    folded = {name.lower(): name for name in known}
    if close := get_close_matches(word.lower(), folded, n=1, cutoff=0.5):
        return f": did you mean {folded[close[0]]!r}?"
    return f"; known are {', '.join(sorted(known))}"

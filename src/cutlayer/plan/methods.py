"""Methods with options, as a plan names them: a word to a dataclass whose fields are its options."""

import re
import typing
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields

import msgspec

from cutlayer.errors import PlanError
from cutlayer.plan.document import nearest
from cutlayer.plan.terms import Method, Option

Known = Mapping[str, type]

_METHOD = re.compile(r"([a-z0-9_]+)(?:\((.*)\))?", re.DOTALL)
_BETWEEN = re.compile(r",(?![^()]*\))")
_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


def options_of(kind: type, hidden: Collection[str] = ()) -> dict[str, type]:
    """The options of a method and their types; fields that are `hidden` are none."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.name not in hidden}


def method_faults(what: str, method: Method, known: Known, hidden: Collection[str] = ()) -> list[str]:
    """What is wrong with a method that a plan names as its `what`: one sentence each."""
    if method.name not in known:
        return [f"{what} = {method.name!r} is unknown{nearest(method.name, known)}"]
    kind = known[method.name]
    options = options_of(kind, hidden)
    found = [
        f"{what} {method.name}: {option} is no option of it{nearest(option, options or {'none': None})}"
        for option in method.options
        if option not in options
    ]
    found += [
        f"{what} {method.name}: {option} = {value!r} must be {_WORDS[options[option]]}"
        for option, value in method.options.items()
        if option in options and not _fits(value, options[option])
    ]
    required = {field.name for field in fields(kind) if field.default is MISSING} & options.keys()
    found += [
        f"{what} {method.name}: {option} is missing"
        for option in options
        if option in required and option not in method.options
    ]
    return found or _refusal(what, kind, method)


def _fits(value: object, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)


def _refusal(what: str, kind: type, method: Method) -> list[str]:
    """What the method itself says to its options' values."""
    try:
        kind(**method.options)
    except PlanError as error:
        return [f"{what} {fault}" for fault in error.faults]
    return []


# ---------------------------------------------------------------------- as a person writes them on one line


def words_of(text: str) -> list[str]:
    """What stands between commas that are in no brackets: `half,topk(share=0.01,across='row')` is two."""
    return [word.strip() for word in _BETWEEN.split(text) if word.strip()]


def methods_from(text: str) -> list[Method]:
    """Of `topk(share=0.01)+zstd` both, in their order. Raises `PlanError`."""
    return [method_from(part) for part in text.split("+")]


def method_from(text: str) -> Method:
    """`topk(share=0.01)` as a plan would have it. Raises `PlanError`.

    >>> method_from("topk(share=0.01)").options
    {'share': 0.01}
    """
    found = _METHOD.fullmatch(text.strip())
    if found is None:
        raise PlanError(f"{text!r} is no method: write its name, such as half or topk(share=0.01)")
    options = {}
    for pair in filter(None, (found[2] or "").split(",")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise PlanError(f"{pair!r} in {text!r} is no option: write name=value")
        options[name.strip()] = _option(value.strip())
    return Method(name=found[1], options=options)


def _option(text: str) -> Option:
    try:
        return msgspec.json.decode(text.encode(), type=bool | int | float | str)
    except msgspec.DecodeError:
        return text.strip("'\"")

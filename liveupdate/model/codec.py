# SPDX-License-Identifier: Apache-2.0
"""JSON codec of the model's frozen dataclasses, driven by their type hints.

Strict in both directions: an unknown key, a missing one, a bool where an int belongs or a document
of another kind is a :class:`CodecError` that names the place. ``bytes`` never go into JSON; they
are files of their own (:mod:`liveupdate.evidence`).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import math
import types
import typing
from enum import Enum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


class CodecError(ValueError):
    """A value or document does not fit its type; ``where`` is a path such as ``plan.hops[0]``."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


@cache
def _hints(cls: typing.Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def encode(value: object, where: str = "value") -> object:
    """Turn a model value into what :mod:`json` writes.

    :raises CodecError: for a type that has no place in JSON, bytes included.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise CodecError(where, f"{value} is not a JSON number")
        return value
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: encode(getattr(value, field.name), f"{where}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if isinstance(value, collections.abc.Mapping):
        for key in value:
            if not isinstance(key, str):
                raise CodecError(where, f"key {key!r} is not a string")
        return {key: encode(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, tuple):
        return [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise CodecError(where, f"{type(value).__name__} has no JSON form")


def decode(wanted: type[T], raw: object, where: str = "value") -> T:
    """Turn parsed JSON into a ``wanted``.

    :raises CodecError: with the place and what was expected there.
    """
    return typing.cast(T, _decode(wanted, raw, where))


def _decode(wanted: Any, raw: object, where: str) -> object:
    origin = typing.get_origin(wanted)
    arguments = typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, raw, where)
    if origin is tuple:
        return _decode_tuple(arguments, raw, where)
    if origin is collections.abc.Mapping:
        if not isinstance(raw, dict):
            raise _mismatch(where, "an object", raw)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in raw.items()}
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _decode_dataclass(wanted, raw, where)
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        try:
            return wanted(raw)
        except ValueError:
            raise _mismatch(where, "one of " + ", ".join(map(str, wanted)), raw) from None
    return _decode_scalar(wanted, raw, where)


def _decode_scalar(wanted: Any, raw: object, where: str) -> object:
    if wanted is object:
        return raw
    if wanted is type(None):
        if raw is not None:
            raise _mismatch(where, "null", raw)
        return None
    if wanted is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if wanted not in (bool, int, float, str):
        raise CodecError(where, f"{wanted!r} has no JSON form")
    # bool is an int to Python, and a wrong value to us
    if not isinstance(raw, wanted) or (wanted is int and isinstance(raw, bool)):
        raise _mismatch(where, wanted.__name__, raw)
    return raw


def _decode_union(arguments: tuple[Any, ...], raw: object, where: str) -> object:
    if raw is None and type(None) in arguments:
        return None
    others = [argument for argument in arguments if argument is not type(None)]
    if len(others) != 1:
        raise CodecError(where, f"a union of {len(others)} types is ambiguous in JSON")
    return _decode(others[0], raw, where)


def _decode_tuple(arguments: tuple[Any, ...], raw: object, where: str) -> tuple[object, ...]:
    if not isinstance(raw, list):
        raise _mismatch(where, "an array", raw)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(
            _decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(raw)
        )
    if len(raw) != len(arguments):
        raise _mismatch(where, f"an array of {len(arguments)}", raw)
    return tuple(
        _decode(argument, item, f"{where}[{index}]")
        for index, (argument, item) in enumerate(zip(arguments, raw, strict=True))
    )


def _decode_dataclass(wanted: type[Any], raw: object, where: str) -> object:
    if not isinstance(raw, dict):
        raise _mismatch(where, f"an object ({wanted.__name__})", raw)
    fields = {field.name: field for field in dataclasses.fields(wanted)}
    if unknown := sorted(set(raw) - set(fields)):
        raise CodecError(where, f"{wanted.__name__} has no key '{unknown[0]}'")
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in raw
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )
    if missing:
        raise CodecError(where, f"key '{missing[0]}' of {wanted.__name__} is missing")
    hints = _hints(typing.cast(typing.Hashable, wanted))
    return wanted(
        **{name: _decode(hints[name], item, f"{where}.{name}") for name, item in raw.items()}
    )


def _mismatch(where: str, wanted: str, raw: object) -> CodecError:
    found = json.dumps(raw, default=repr)
    return CodecError(where, f"expected {wanted}, found {found[:60]}")


def dumps(kind: str, value: object) -> str:
    """Write ``value`` as a document: ``{"format": "KIND/1", "value": …}`` newline-terminated."""
    document = {"format": f"{kind}/1", "value": encode(value, kind)}
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def loads(wanted: type[T], kind: str, text: str) -> T:
    """Read a document that :func:`dumps` wrote.

    :raises CodecError: when it is cut, garbled, of another kind, or does not fit ``wanted``.
    """
    document = parse(kind, text)
    if not isinstance(document, dict) or document.get("format") != f"{kind}/1":
        found = document.get("format") if isinstance(document, dict) else None
        raise CodecError(kind, f"expected a document '{kind}/1', found {found!r}")
    if "value" not in document:
        raise CodecError(kind, "the document has no value")
    return decode(wanted, document["value"], kind)


def parse(where: str, text: str) -> object:
    """Parse JSON.

    :raises CodecError: when it is not JSON.
    """
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CodecError(where, f"not JSON ({error})") from error
    return parsed


def encode_row(value: object) -> list[object]:
    """Turn a flat dataclass into its fields in order: one line of a series."""
    document = encode(value)
    assert isinstance(document, dict), "rows are made of dataclasses"
    return list(document.values())


def decode_row(wanted: type[T], raw: object, where: str) -> T:
    """Undo :func:`encode_row`.

    :raises CodecError: when the row does not fit.
    """
    columns = _columns(typing.cast(Any, wanted))
    if not isinstance(raw, list) or len(raw) != len(columns):
        raise _mismatch(where, f"an array of {len(columns)} ({wanted.__name__})", raw)
    # a run has thousands of rows, nearly all of plain numbers: those are checked and no more
    values = {
        name: item if type(item) in plain else _decode(hint, item, f"{where}.{name}")
        for (name, hint, plain), item in zip(columns, raw, strict=True)
    }
    return wanted(**values)


@cache
def _columns(wanted: typing.Hashable) -> tuple[tuple[str, Any, frozenset[type]], ...]:
    """Name, type hint, and JSON types that need no conversion, for each field in order."""
    hints = _hints(wanted)
    columns: list[tuple[str, Any, frozenset[type]]] = []
    for field in dataclasses.fields(typing.cast(Any, wanted)):
        hint = hints[field.name]
        choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = {choice for choice in choices if choice in (int, float, bool, str, type(None))}
        columns.append((field.name, hint, frozenset(plain)))
    return tuple(columns)

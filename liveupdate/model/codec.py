# SPDX-License-Identifier: Apache-2.0
"""JSON of the model's values, by msgspec from their types.

Reading is strict: what does not fit its type is a :class:`CodecError` that names the place.
``bytes`` never go into JSON; they are files of their own (:mod:`liveupdate.evidence`).
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, TypeVar, cast

import msgspec

T = TypeVar("T")


class CodecError(ValueError):
    """A value or document does not fit its type; ``where`` is a path such as ``plan.hops[0]``."""

    def __init__(self, where: str, message: str) -> None:
        # msgspec: "Expected `int`, got `str` - at `$.hops[0].number`"
        message, _, place = message.partition(" - at `$")
        self.where = where + place.rstrip("`")
        super().__init__(f"{self.where}: {message}")


#: fast, and knows no larger integers than those of 64 bits
_packer = msgspec.msgpack.Encoder(enc_hook=lambda value: _encode_other(value))


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    value: msgspec.Raw


def encode(value: object) -> Any:
    """Turn a model value into what :mod:`json` writes; ``bytes`` stay what they are.

    :raises CodecError: for a type that has no place in JSON.
    """
    return msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=_encode_other)


def _encode_other(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise CodecError("value", f"{type(value).__name__} has no JSON form")


def decode(wanted: type[T], raw: object, where: str = "value") -> T:
    """Turn parsed JSON into a ``wanted``.

    :raises CodecError: with the place and what was expected there.
    """
    try:
        return _bound(msgspec.convert(raw, wanted))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(where, str(error)) from error


def _bound(value: T) -> T:
    """Refuse integers of more than 64 bits, which floats and arrays cannot hold.

    :raises OverflowError: there is one.
    """
    _packer.encode(value)
    return value


def dumps(kind: str, value: object) -> str:
    """Write ``value`` as a document: ``{"format": "KIND/1", "value": …}`` newline-terminated.

    :raises CodecError: ``value`` holds bytes or a number that JSON does not have.
    """
    document = {"format": f"{kind}/1", "value": encode(value)}
    try:
        return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CodecError(kind, str(error)) from error


def loads(wanted: type[T], kind: str, text: bytes | str) -> T:
    """Read a document that :func:`dumps` wrote.

    :raises CodecError: when it is cut, garbled, of another kind, or does not fit ``wanted``.
    """
    document = parse(_Document, text, kind)
    if document.format != f"{kind}/1":
        raise CodecError(kind, f"expected a document '{kind}/1', found '{document.format}'")
    return parse(wanted, document.value, kind)


def parse(wanted: type[T], text: bytes | str | msgspec.Raw, where: str) -> T:
    """Read JSON without an envelope, such as a line of a series.

    :raises CodecError: when it is not JSON or does not fit ``wanted``.
    """
    try:
        return _bound(cast(T, _decoder(cast(Hashable, wanted)).decode(text)))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(where, str(error)) from error


@cache
def _decoder(wanted: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(cast(Any, wanted))

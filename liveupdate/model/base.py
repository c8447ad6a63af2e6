# SPDX-License-Identifier: Apache-2.0
"""What the model's values are made of: frozen, and strict when they are read from JSON.

A key that a type does not have, a missing one and a bool where an int belongs are refused.
"""

from __future__ import annotations

from msgspec import Struct


class Value(Struct, frozen=True, forbid_unknown_fields=True):
    """A value that JSON holds as an object."""


class Row(Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A value that JSON holds as an array of its fields in order: one line of a series."""

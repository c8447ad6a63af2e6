# SPDX-License-Identifier: Apache-2.0
"""Writes a resolved scenario as TOML, so that a run directory records the whole request.

``parse_scenario(dump_scenario(s)) == s``, except for the origins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal

from liveupdate.core.units import GIB, KIB, MIB
from liveupdate.model.scenario import Scenario
from liveupdate.scenario.keys import DEVICE, GUEST, SECTIONS, Key


def dump_scenario(scenario: Scenario) -> str:
    """Write every key that has a value."""
    lines = list(_lines(SECTIONS[""], scenario))
    for guest in scenario.guests:
        lines += ["", "[[guest]]", *_lines(GUEST, guest)]
    for device in scenario.devices:
        lines += ["", "[[device]]", *_lines(DEVICE, device)]
    for section, keys in SECTIONS.items():
        if section:
            lines += ["", f"[{section}]", *_lines(keys, getattr(scenario, section))]
    return "\n".join(lines) + "\n"


def _lines(keys: tuple[Key, ...], values: object) -> Iterator[str]:
    for key in keys:
        value = getattr(values, key.attribute)
        if value is not None:
            yield f"{key.name} = {_format(key, value)}"


def _format(key: Key, value: object) -> str:
    if key.kind == "size" and isinstance(value, int):
        for suffix, factor in (("G", GIB), ("M", MIB), ("K", KIB)):
            if value and value % factor == 0:
                return f'"{value // factor}{suffix}"'
        return f'"{value}"'
    if key.kind == "duration" and isinstance(value, (int, float)):
        # Decimal of repr: exact, and never with an exponent
        text = f"{Decimal(repr(value)):f}"
        return f'"{text.rstrip("0").rstrip(".") if "." in text else text}s"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped and JSON leaves
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")

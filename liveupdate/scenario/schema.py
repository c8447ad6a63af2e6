# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of a scenario file, made from its keys, so that editors complete and check it.

It is stored in ``scenario.schema.json`` beside this module; ``liveupdate schema scenario`` prints
it. What depends on several keys is checked by :mod:`liveupdate.scenario.load` only.
"""

from __future__ import annotations

from typing import Any

from liveupdate.core.units import DURATION, SIZE
from liveupdate.faults.table import FAULTS
from liveupdate.scenario.keys import ARRAYS, SECTIONS, Key
from liveupdate.scenario.values import NAME

SCHEMA_ID = "urn:liveupdate:schema:scenario:1"


def scenario_schema() -> dict[str, Any]:
    """Make the schema."""
    tables = {name: _table(keys) for name, keys in SECTIONS.items() if name}
    arrays = {name: {"type": "array", "items": _table(keys)} for name, keys in ARRAYS.items()}
    top = _table(SECTIONS[""])
    top["properties"]["fault"]["enum"] = ["none", *FAULTS]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "Scenario of a liveupdate run",
        "$comment": "SPDX-License-Identifier: Apache-2.0",
        **top,
        "properties": {**top["properties"], **arrays, **tables},
    }


def _table(keys: tuple[Key, ...]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key.name: {"description": key.doc, **_value(key)} for key in keys},
        "additionalProperties": False,
    }


def _value(key: Key) -> dict[str, Any]:
    """Say what a key may have; a range in units is in the description only."""
    match key.kind:
        case "boolean":
            return {"type": "boolean"}
        case "integer" | "number":
            return {"type": key.kind, "minimum": key.low, "maximum": key.high}
        case "choice":
            return {"enum": list(key.choices)}
        case "size" | "duration":
            pattern = (SIZE if key.kind == "size" else DURATION).pattern
            none = "|none" if key.nullable else ""
            return {"type": "string", "pattern": f"^({pattern}{none})$"}
        case "name":
            return {"type": "string", "pattern": f"^{NAME.pattern}$", "maxLength": 64}
        case "address":
            return {"type": "string", "format": "ipv4"}
        case _:
            return {"type": "string"}

# SPDX-License-Identifier: Apache-2.0
"""A matrix as a table for people and as one JSON document. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from liveupdate.matrix import CHECKS, COLUMNS, Figure, Row
from liveupdate.report.common import clean
from liveupdate.units import format_ns, format_size

SCHEMA_VERSION = "1.0"


def say_figure(figure: Figure | None, unit: str) -> str:
    """Median and spread; "-" where no run gave one."""
    if figure is None:
        return "-"
    if figure.count == 1:
        return _say(figure.median, unit)
    return f"{_say(figure.median, unit)} ({_say(figure.low, unit)}…{_say(figure.high, unit)})"


def _say(value: float, unit: str) -> str:
    return format_size(round(value)) if unit == "bytes" else format_ns(round(value))


def render_table(rows: Sequence[Row]) -> str:
    """Render one line per cell as a Markdown table, and below it why cells did not pass."""
    head = ["mechanism", "guest RAM", "guests", "works", *CHECKS]
    head += [column.title for column in COLUMNS]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cell = row.cell
        line = [cell.mechanism, cell.guest_memory, str(cell.guests), row.works or "-"]
        line += [row.checks.get(check) or "-" for check in CHECKS]
        line += [say_figure(row.figures.get(column.key), column.unit) for column in COLUMNS]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        f"| {' | '.join(item.ljust(width) for item, width in zip(line, widths, strict=True))} |"
        for line in lines
    )
    whys = [f"{row.cell.name}: {clean(row.reason)}" for row in rows if row.reason]
    return text + "\n" + "".join(f"\n{why}" for why in whys) + ("\n" if whys else "")


def render_json(rows: Sequence[Row]) -> str:
    """Render the document; ends with a newline."""
    units = {column.key: column.unit for column in COLUMNS}
    document = {
        "schema_version": SCHEMA_VERSION,
        "cells": [
            {
                **asdict(row.cell),
                "runs": [{"outcome": outcome, "path": path} for outcome, path in row.runs],
                "reason": row.reason,
                "checks": dict(row.checks),
                "figures": {
                    key: {"unit": units[key], **asdict(figure)}
                    for key, figure in row.figures.items()
                },
            }
            for row in rows
        ],
    }
    return json.dumps(document, indent=2) + "\n"

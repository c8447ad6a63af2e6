# SPDX-License-Identifier: Apache-2.0
"""Elements of an SVG, for plots. Texts are made safe to show."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from liveupdate.report.common import clean


def text(x: float, y: float, said: str, anchor: str, style: str = "") -> str:
    """Write a text. ``anchor``: which end of it is at ``x``: start, middle or end."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place}{style}>{escape(clean(said))}</text>"


def box(x: float, y: float, width: float, height: float, fill: str, hint: str = "") -> str:
    """Write a filled rectangle; ``hint`` is shown under the pointer."""
    title = f"<title>{escape(clean(hint))}</title>" if hint else ""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} fill="{fill}">{title}</rect>'


def line(path: str, stroke: str = "#ddd", width: float = 1.0) -> str:
    """Write a line along a path."""
    return f'<path d="{path}" stroke="{stroke}" stroke-width="{width:g}"/>'


def picture(title: str, width: float, height: float, fill: str, body: Iterable[str]) -> str:
    """Put elements into a picture. ``fill`` is the colour of texts."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
        f' aria-label="{escape(clean(title))}" font-family="system-ui,sans-serif" font-size="11"'
        f' fill="{fill}">{"".join(body)}</svg>'
    )

# SPDX-License-Identifier: Apache-2.0
"""Plots of a matrix as SVG: one figure by mechanism and size, and one over size. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from liveupdate.core.units import format_size, parse_size
from liveupdate.planning.matrix import COLUMNS, Figure, Row, fit_slope
from liveupdate.report import svg
from liveupdate.report.common import say_value

_WIDTH, _LEFT, _RIGHT = 760, 120, 110
_TOP, _ROW, _BOTTOM = 44, 18, 30
_PLOT_HEIGHT = 260
_GRID_LINES = 5
#: Okabe and Ito's palette, which colour-blind readers can tell apart
_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#4b2e83",
)  # fmt: skip


def render_bars(rows: Sequence[Row], key: str) -> str:
    """Render one figure of every cell as bars of the median, with the spread as a whisker.

    :param key: of :data:`liveupdate.planning.matrix.COLUMNS`.
    """
    column = next(each for each in COLUMNS if each.key == key)
    shown = [(row, row.figures[key]) for row in rows if key in row.figures]
    if not shown:
        return _frame(f"{column.title}: no run gave it", 60, [])
    names = tuple(dict.fromkeys(row.cell.mechanism for row, _ in shown))
    labels = tuple(dict.fromkeys(_label(row) for row, _ in shown))
    most = max(figure.high for _, figure in shown) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    height = _TOP + len(shown) * _ROW + len(names) * 8 + _BOTTOM
    body: list[str] = []
    for value in _grid(most):
        x = _LEFT + value * scale
        body.append(svg.line(f"M{x:.1f} {_TOP - 4}V{height - _BOTTOM + 4}"))
        body.append(svg.text(x, height - 12, say_value(value, column.unit), "middle"))
    y = float(_TOP)
    for name in names:
        of_name = [(row, figure) for row, figure in shown if row.cell.mechanism == name]
        body.append(svg.text(_LEFT - 10, y + len(of_name) * _ROW / 2 + 4, name, "end"))
        for row, figure in of_name:
            body += _bar(row, figure, _colour(labels.index(_label(row))), scale, y, column.unit)
            y += _ROW
        y += 8
    for number, label in enumerate(labels):
        body += _legend(_LEFT + number * 130, 33, number, label)
    return _frame(column.title, height, body)


def _grid(most: float) -> list[float]:
    """Return the values that have a line of the grid."""
    return [most * index / _GRID_LINES for index in range(_GRID_LINES + 1)]


def _legend(x: float, y: float, number: int, said: str) -> tuple[str, str]:
    return svg.box(x, y - 9, 10, 10, _colour(number)), svg.text(x + 14, y, said, "start")


def _label(row: Row) -> str:
    count = f" × {row.cell.guests}" if row.cell.guests > 1 else ""
    where = ", fragmented" if row.cell.fragment else ""
    kernel = f", {row.cell.next_kernel}" if row.cell.next_kernel else ""
    return f"{row.cell.guest_memory}{count}{where}{kernel}"


def _bar(row: Row, figure: Figure, fill: str, scale: float, y: float, unit: str) -> Iterator[str]:
    width = max(figure.median * scale, 1.0)
    low, high = _LEFT + figure.low * scale, _LEFT + figure.high * scale
    said = say_value(figure.median, unit)
    hint = f"{row.cell.name}: {said}, n={figure.count}"
    yield svg.box(_LEFT, y + 2, width, _ROW - 5, fill, hint)
    if figure.count > 1:
        yield svg.line(f"M{low:.1f} {y + _ROW / 2 - 0.5:.1f}H{high:.1f}", "#222", 1.5)
    yield svg.text(max(high, _LEFT + width) + 5, y + 13, said, "start")


def render_lines(rows: Sequence[Row], key: str) -> str:
    """Render one figure over the size of a guest, a line for each mechanism, with its slope.

    :param key: of :data:`liveupdate.planning.matrix.COLUMNS`.
    """
    column = next(each for each in COLUMNS if each.key == key)
    shown = [row for row in rows if key in row.figures]
    if not shown:
        return _frame(f"{column.title}: no run gave it", 60, [])
    most_x = max(parse_size(row.cell.guest_memory) for row in shown)
    most_y = max(row.figures[key].high for row in shown) or 1.0
    kinds = tuple(dict.fromkeys(_kind(row) for row in shown))
    height = _TOP + _PLOT_HEIGHT + _BOTTOM
    right = 330
    wide, high = (_WIDTH - _LEFT - right) / most_x, _PLOT_HEIGHT / most_y
    floor = float(_TOP + _PLOT_HEIGHT)
    body: list[str] = []
    for value in _grid(most_y):
        y = floor - value * high
        body.append(svg.line(f"M{_LEFT} {y:.1f}H{_WIDTH - right}"))
        body.append(svg.text(_LEFT - 8, y + 4, say_value(value, column.unit), "end"))
    for size in sorted({parse_size(row.cell.guest_memory) for row in shown}):
        body.append(svg.text(_LEFT + size * wide, floor + 18, format_size(size), "middle"))
    for number, kind in enumerate(kinds):
        of_kind = [row for row in shown if _kind(row) == kind]
        points = sorted(
            (parse_size(row.cell.guest_memory) * wide + _LEFT, row.figures[key]) for row in of_kind
        )
        path = " ".join(f"{x:.1f},{floor - figure.median * high:.1f}" for x, figure in points)
        colour = _colour(number)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, figure in points:
            top, bottom = floor - figure.high * high, floor - figure.low * high
            body.append(svg.line(f"M{x:.1f} {top:.1f}V{bottom:.1f}", colour))
            y = floor - figure.median * high
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
        slope = fit_slope(of_kind, key)
        said = f"{kind}: " + (_say_slope(slope.per_gib, column.unit) if slope else "one size only")
        body += _legend(_WIDTH - right + 20, _TOP + 14 + number * _ROW, number, said)
    return _frame(f"{column.title}, over the RAM of a guest", height, body)


def _kind(row: Row) -> str:
    """Say what a line is of: everything but the size."""
    return " ".join([row.cell.mechanism, *_label(row).split(" ")[1:]]).replace(" ,", ",")


def _say_slope(per_gib: float, unit: str) -> str:
    sign = "" if per_gib < 0 else "+"
    if unit == "ns":
        return f"{sign}{per_gib / 1e6:.1f} ms/GiB"
    return f"{sign}{say_value(per_gib, unit)}/GiB"


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _frame(title: str, height: float, body: Sequence[str]) -> str:
    """Put a plot on a white background: an image does not know the colour of the page around it."""
    ground = svg.box(0, 0, _WIDTH, height, "#fff")
    heading = svg.text(10, 16, title, "start", ' font-weight="bold"')
    return svg.picture(title, _WIDTH, height, "#222", [ground, heading, *body]) + "\n"


def render_plots(rows: Sequence[Row]) -> dict[str, str]:
    """Render the plots of a matrix, by file name."""
    whole = [row for row in rows if not row.cell.fragment]
    return {
        "matrix-blackout.svg": render_bars(whole, "blackout"),
        "matrix-restore.svg": render_lines(whole, "restore"),
        "matrix-allocate.svg": render_bars(rows, "allocate"),
    }

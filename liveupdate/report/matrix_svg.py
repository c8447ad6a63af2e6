# SPDX-License-Identifier: Apache-2.0
"""Plots of a matrix as SVG: one figure by mechanism and size, and one over size. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from liveupdate.core.units import format_ns, format_size, parse_size
from liveupdate.planning.matrix import COLUMNS, Figure, Row, fit_slope
from liveupdate.report.common import clean

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
    body: list[str] = []
    y = float(_TOP)
    height = _TOP + len(shown) * _ROW + len(names) * 8 + _BOTTOM
    body += _grid(most, scale, height, column.unit)
    for name in names:
        of_name = [(row, figure) for row, figure in shown if row.cell.mechanism == name]
        middle = y + len(of_name) * _ROW / 2 + 4
        body.append(_text(_LEFT - 10, middle, name, "end"))
        for row, figure in of_name:
            body += _bar(row, figure, labels.index(_label(row)), scale, y, column.unit)
            y += _ROW
        y += 8
    for number, label in enumerate(labels):
        x = _LEFT + number * 130
        body.append(f'<rect x="{x}" y="24" width="10" height="10" fill="{_colour(number)}"/>')
        body.append(_text(x + 14, 33, label, "start"))
    return _frame(column.title, height, body)


def _label(row: Row) -> str:
    count = f" × {row.cell.guests}" if row.cell.guests > 1 else ""
    where = ", fragmented" if row.cell.fragment else ""
    kernel = f", {row.cell.next_kernel}" if row.cell.next_kernel else ""
    return f"{row.cell.guest_memory}{count}{where}{kernel}"


def _bar(row: Row, figure: Figure, number: int, scale: float, y: float, unit: str) -> Iterator[str]:
    width = max(figure.median * scale, 1.0)
    low, high = _LEFT + figure.low * scale, _LEFT + figure.high * scale
    said = f"{_say(figure.median, unit)}"
    hint = f"{row.cell.name}: {said}, n={figure.count}"
    yield (
        f'<rect x="{_LEFT}" y="{y + 2:.1f}" width="{width:.1f}" height="{_ROW - 5}"'
        f' fill="{_colour(number)}"><title>{escape(clean(hint))}</title></rect>'
    )
    if figure.count > 1:
        yield (
            f'<path d="M{low:.1f} {y + _ROW / 2 - 0.5:.1f}H{high:.1f}" stroke="#222"'
            ' stroke-width="1.5"/>'
        )
    yield _text(max(high, _LEFT + width) + 5, y + 13, said, "start")


def _grid(most: float, scale: float, height: float, unit: str) -> Iterator[str]:
    for index in range(_GRID_LINES + 1):
        value = most * index / _GRID_LINES
        x = _LEFT + value * scale
        yield f'<path d="M{x:.1f} {_TOP - 4}V{height - _BOTTOM + 4}" stroke="#ddd"/>'
        yield _text(x, height - 12, _say(value, unit), "middle")


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
    for index in range(_GRID_LINES + 1):
        value = most_y * index / _GRID_LINES
        y = floor - value * high
        body.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - right}" stroke="#ddd"/>')
        body.append(_text(_LEFT - 8, y + 4, _say(value, column.unit), "end"))
    for size in sorted({parse_size(row.cell.guest_memory) for row in shown}):
        body.append(_text(_LEFT + size * wide, floor + 18, format_size(size), "middle"))
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
            body.append(f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}"/>')
            y = floor - figure.median * high
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
        slope = fit_slope(of_kind, key)
        said = f"{kind}: " + (_say_slope(slope.per_gib, column.unit) if slope else "one size only")
        y = _TOP + 14 + number * _ROW
        x = _WIDTH - right + 20
        body.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        body.append(_text(x + 16, y, said, "start"))
    return _frame(f"{column.title}, over the RAM of a guest", height, body)


def _kind(row: Row) -> str:
    """Say what a line is of: everything but the size."""
    return " ".join([row.cell.mechanism, *_label(row).split(" ")[1:]]).replace(" ,", ",")


def _say_slope(per_gib: float, unit: str) -> str:
    sign = "" if per_gib < 0 else "+"
    if unit == "ns":
        return f"{sign}{per_gib / 1e6:.1f} ms/GiB"
    return f"{sign}{_say(per_gib, unit)}/GiB"


def _say(value: float, unit: str) -> str:
    if unit == "bytes":
        sign = "-" if value < 0 else ""
        return sign + format_size(abs(round(value)))
    if unit == "ns":
        sign = "-" if value < 0 else ""
        return sign + format_ns(abs(round(value)))
    return f"{value:.0f} {unit}"


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _text(x: float, y: float, said: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(clean(said))}</text>'


def _frame(title: str, height: float, body: Sequence[str]) -> str:
    """Put a plot on a white background: an image does not know the colour of the page around it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img"'
        f' aria-label="{escape(title)}" font-family="system-ui,sans-serif" font-size="11"'
        ' fill="#222">'
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#fff"/>'
        f'<text x="10" y="16" font-weight="bold">{escape(title)}</text>'
        + "".join(body)
        + "</svg>\n"
    )


#: name of a file beside the table: what is in it
PLOTS = ("matrix-blackout.svg", "matrix-restore.svg", "matrix-allocate.svg")


def render_plots(rows: Sequence[Row]) -> dict[str, str]:
    """Render the plots of a matrix, by file name."""
    whole = [row for row in rows if not row.cell.fragment]
    drawn = (
        render_bars(whole, "blackout"),
        render_lines(whole, "restore"),
        render_bars(rows, "allocate"),
    )
    return dict(zip(PLOTS, drawn, strict=True))

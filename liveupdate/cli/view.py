# SPDX-License-Identifier: Apache-2.0
"""The terminal as a subscriber of step events: a moving display on a tty, plain lines elsewhere.

Both write to stderr only. Must not know what the steps mean.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from liveupdate.cli.output import log, one_line, wants_color, wants_live
from liveupdate.core.steps import StepEvent, Steps
from liveupdate.core.units import format_ns, format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from liveupdate.cli.app import App

WIDTH = 44


def format_fields(fields: Mapping[str, object]) -> str:
    """Format an event's fields for people: ``*_ns`` and ``*_bytes`` get their units."""
    shown = []
    for name, value in fields.items():
        if name == "error":
            continue
        if name.endswith("_ns") and isinstance(value, (int, float)):
            shown.append(f"{name.removesuffix('_ns')} {format_ns(value)}")
        elif name.endswith("_bytes") and isinstance(value, int):
            shown.append(f"{name.removesuffix('_bytes')} {format_size(value)}")
        else:
            shown.append(f"{name} {value}")
    return one_line(", ".join(shown))


def format_event(event: StepEvent, depth: int) -> str:
    """Format a finished, failed or noted step as one line."""
    name = "  " * depth + event.name
    took = format_ns((event.elapsed_s or 0.0) * 1e9)
    fields = format_fields(event.fields)
    if event.kind == "note":
        return f"{name}: {fields}" if fields else name
    if event.kind == "failed":
        return f"{name:<{WIDTH}} {took:>9}  FAILED: {one_line(str(event.fields.get('error', '')))}"
    return f"{name:<{WIDTH}} {took:>9}  {fields}".rstrip()


class PlainView:
    """One line for each step that ended; with ``verbosity`` above 0 also for each that begins."""

    def __init__(self, verbosity: int, write: Callable[[str], None] = log) -> None:
        self._verbosity = verbosity
        self._write = write
        self._depth = 0
        self._lock = threading.Lock()

    def __call__(self, event: StepEvent) -> None:
        with self._lock:
            if event.kind == "start":
                if self._verbosity > 0:
                    self._write(f"{'  ' * self._depth}{event.name} …")
                self._depth += 1
                return
            if event.kind != "note":
                self._depth = max(0, self._depth - 1)
            if self._verbosity >= 0 or event.kind == "failed":
                self._write(format_event(event, self._depth))


class LiveView:
    """Finished steps scroll up; running steps stay at the bottom with their time."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._running: list[StepEvent] = []
        self._lock = threading.RLock()
        self.live: Live = Live(
            get_renderable=self._render, console=console, refresh_per_second=8, transient=True
        )

    def __call__(self, event: StepEvent) -> None:
        from rich.text import Text

        with self._lock:
            if event.kind == "start":
                self._running.append(event)
                return
            if event.kind != "note":
                self._forget(event.name)
            text = format_event(event, len(self._running))
        mark, style = {"stop": ("✓", "green"), "failed": ("✗", "bold red")}.get(
            event.kind, ("·", "dim")
        )
        body = Text(text, style="" if event.kind == "stop" else style)
        self.live.console.print(Text.assemble((f"{mark} ", style), body), soft_wrap=True)

    def _forget(self, name: str) -> None:
        for index in range(len(self._running) - 1, -1, -1):
            if self._running[index].name == name:
                del self._running[index]
                return

    def _render(self) -> Text:
        from rich.text import Text

        now = time.monotonic_ns()
        frame = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[now // 125_000_000 % 10]
        with self._lock:
            lines = [
                f"{frame} {'  ' * depth + step.name:<{WIDTH}} {format_ns(now - step.at_ns):>9}"
                for depth, step in enumerate(self._running)
            ]
        return Text("\n".join(lines), style="cyan", no_wrap=True)


@contextmanager
def show_steps(app: App, env: Mapping[str, str] = os.environ) -> Iterator[Steps]:
    """Yield steps, and show them on stderr: a moving display on a terminal, else lines."""
    steps = Steps()
    is_tty = sys.stderr.isatty()
    if app.verbosity < 0 or not wants_live(env, is_tty=is_tty):
        steps.subscribe(PlainView(app.verbosity))
        yield steps
        return
    from rich.console import Console

    color = wants_color(app.color, env, is_tty=is_tty)
    view = LiveView(Console(stderr=True, no_color=not color, highlight=False))
    steps.subscribe(view)
    with view.live:
        yield steps

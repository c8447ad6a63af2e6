# SPDX-License-Identifier: Apache-2.0
"""The terminal as a subscriber of step events."""

from __future__ import annotations

import io
import re
import sys

import pytest
from rich.console import Console

from liveupdate.cli.app import App
from liveupdate.cli.view import LiveView, PlainView, format_event, format_fields, show_steps
from liveupdate.core.steps import StepEvent, Steps


def walk(steps: Steps) -> None:
    with steps.step("hop", hop=1):
        with steps.step("prepare"):
            pass
        steps.note("resumed", guest="vm0", gap_ns=250_000_000)
        with pytest.raises(ValueError, match="no"), steps.step("restore"):
            raise ValueError("no\nway")


def plain(verbosity: int) -> list[str]:
    lines: list[str] = []
    steps = Steps()
    steps.subscribe(PlainView(verbosity, lines.append))
    walk(steps)
    return lines


def test_plain_view_has_a_line_for_each_step_that_ended() -> None:
    lines = plain(0)
    assert [line.split()[0] for line in lines] == ["prepare", "resumed:", "restore", "hop"]
    assert lines[0].startswith("  prepare")
    assert "FAILED: no | way" in lines[2]
    assert "gap 250 ms" in lines[1]


def test_verbose_view_says_what_begins_and_quiet_view_only_what_failed() -> None:
    assert plain(1)[0] == "hop …"
    assert ["FAILED" in line for line in plain(-1)] == [True]


def test_fields_carry_their_units_and_no_control_characters() -> None:
    text = format_fields({"size_bytes": 1 << 20, "guest": "a\x1b[2J", "error": "x"})
    assert text == "size 1 MiB, guest a\N{REPLACEMENT CHARACTER}[2J"


def test_note_without_fields_is_its_name() -> None:
    assert format_event(StepEvent(kind="note", name="jumping", at_ns=0), 1) == "  jumping"


def test_live_view_scrolls_what_ended_and_keeps_what_runs() -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, force_terminal=True, width=100, no_color=True))
    steps = Steps()
    steps.subscribe(view)
    with view.live:
        with steps.step("boot"):
            view.live.refresh()
        walk(steps)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "✓ boot" in text
    assert "✗   restore" in text
    assert "resumed: guest vm0" in text
    assert view._running == []


def test_without_a_terminal_lines_go_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not sys.stderr.isatty()
    with show_steps(App(), {"TERM": "xterm"}) as steps:
        walk(steps)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "prepare" in captured.err

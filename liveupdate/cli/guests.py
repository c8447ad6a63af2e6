# SPDX-License-Identifier: Apache-2.0
"""``liveupdate guests``: the guests that a host's agent runs."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import common, json_option
from liveupdate.core.errors import ScenarioError
from liveupdate.model.verdict import ExitCode

START_S = 180.0
_MAX_BYTES = 1 << 20


@click.group()
def guests() -> None:
    """List and start the guests that a host's agent runs."""


@guests.command("list")
@click.argument("host")
@json_option
@common
def list_(app: App, *, host: str, as_json: bool) -> int:
    """List the guests of HOST and whether each can be preserved."""
    from liveupdate.cli import apply_session
    from liveupdate.cli.output import printable, say, say_json
    from liveupdate.core.units import format_size
    from liveupdate.model.codec import encode
    from liveupdate.operate.preflight import why_not

    survey, _ = apply_session.survey_host(apply_session.find_place(host))
    if as_json:
        say_json({name: encode(guest) for name, guest in sorted(survey.guests.items())})
        return ExitCode.PASS
    for name, guest in sorted(survey.guests.items()):
        size = format_size(guest.spec.memory_bytes)
        said = why_not(guest) or "can be preserved"
        say(printable(f"{name:<20} {size:>9} {guest.status or 'lost':<10} {said}"))
    return ExitCode.PASS


@guests.command("start")
@click.argument("host")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@common
def start(app: App, *, host: str, file: Path) -> int:
    """Start the guests that the TOML file FILE describes on HOST (docs/apply.md)."""
    from liveupdate.cli import apply_session
    from liveupdate.cli.output import say
    from liveupdate.core.deadline import Deadline
    from liveupdate.target.ssh.held import ask

    place = apply_session.find_place(host)
    apply_session.check_allowed(place)
    wanted = read_guests(file)
    deadline = Deadline.after(START_S, "the guests to be started")
    ask(place.machine, "start_guests", {"guests": wanted}, deadline, attach=True)
    names = ", ".join(str(each["name"]) for each in wanted)
    say(f"started on '{place.name}': {names}")
    return ExitCode.PASS


def read_guests(path: Path) -> list[dict[str, object]]:
    """Read a description of guests; the agent checks the values.

    :raises ScenarioError: the file cannot be read, or describes no guest.
    """
    from liveupdate.core.units import parse_size

    try:
        with path.open("rb") as file:
            value = tomllib.loads(file.read(_MAX_BYTES).decode())
    except (OSError, ValueError) as error:
        raise ScenarioError(f"cannot be read: {error}", where=str(path)) from error
    rows = value.get("guest")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ScenarioError("there is no [[guest]]", where=str(path))
    wanted: list[dict[str, object]] = []
    for index, row in enumerate(rows):
        # no two guests have a page in common
        name = str(row.get("name", "")).encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "little")
        spec: dict[str, object] = {"index": index, "seed": str(seed), **row}
        for key, field in (("memory", "memory_bytes"), ("pattern", "pattern_bytes")):
            size = spec.pop(key, None)
            if size is not None:
                try:
                    spec[field] = parse_size(str(size))
                except ValueError as error:
                    raise ScenarioError(f"guest {index}: {error}", where=str(path)) from error
        wanted.append(spec)
    return wanted

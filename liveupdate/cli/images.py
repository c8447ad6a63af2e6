# SPDX-License-Identifier: Apache-2.0
"""``liveupdate images build|list|gc``."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from liveupdate.cli import complete
from liveupdate.cli.app import App
from liveupdate.cli.options import common, json_option
from liveupdate.cli.output import say, say_json
from liveupdate.cli.view import show_steps
from liveupdate.core.units import format_size
from liveupdate.images import catalogue
from liveupdate.model.verdict import ExitCode


@click.group()
def images() -> None:
    """Build, list and trim kernels, root disks and payloads."""


@images.command()
@click.argument("names", nargs=-1, shell_complete=complete.images)
@click.option("--tests", is_flag=True, help="Also build the kernels that fault tests need.")
@common
def build(app: App, *, names: tuple[str, ...], tests: bool) -> int:
    """Build the images that are not in the cache, and print their paths."""
    which = [*names, *([] if names else catalogue.DEFAULT), *(catalogue.TESTS if tests else ())]
    with show_steps(app) as steps:
        built = catalogue.build(which, steps=steps)
    for path in built:
        say(str(path))
    return ExitCode.PASS


@images.command("list")
@json_option
@common
def list_images(app: App, *, as_json: bool) -> int:
    """List the cache; `*` marks the images that a run would use now."""
    found = catalogue.listing()
    if as_json:
        say_json(
            [
                {
                    "name": info.entry.name,
                    "kind": info.entry.kind,
                    "digest": info.entry.digest,
                    "path": str(info.entry.path),
                    "size_bytes": info.entry.size_bytes,
                    "used_at": datetime.fromtimestamp(info.entry.used_at, UTC).isoformat(),
                    "current": info.is_current,
                    "detail": info.detail,
                }
                for info in found
            ]
        )
        return ExitCode.PASS
    for info in found:
        mark, entry = "*" if info.is_current else " ", info.entry
        say(
            f"{mark} {entry.name:<14} {entry.digest[:12]}  {format_size(entry.size_bytes):>10}"
            f"  {datetime.fromtimestamp(entry.used_at, UTC):%Y-%m-%d %H:%M}  {info.detail}"
        )
    if not found:
        say("no images; build them with 'liveupdate images build'")
    return ExitCode.PASS


@images.command()
@click.option(
    "--days", type=click.FloatRange(min=0), help="Keep images that were used in the last DAYS days."
)
@click.option("--all", "everything", is_flag=True, help="Remove all images, also current ones.")
@json_option
@common
def gc(app: App, *, days: float | None, everything: bool, as_json: bool) -> int:
    """Remove images that no run has used for a while; current ones stay."""
    keep = catalogue.KEEP_DAYS if days is None else days
    removed, freed_bytes = catalogue.gc(keep_days=keep, everything=everything)
    if as_json:
        say_json({"removed": removed, "freed_bytes": freed_bytes})
    else:
        say(f"removed {removed} images, {format_size(freed_bytes)}")
    return ExitCode.PASS

# SPDX-License-Identifier: Apache-2.0
"""``liveupdate inspect``, ``compat`` and ``kernel needs``: look at kernels before a jump."""

from __future__ import annotations

from pathlib import Path

import click

from liveupdate.cli import complete
from liveupdate.cli.app import App
from liveupdate.cli.options import common, json_option
from liveupdate.cli.output import say, say_json
from liveupdate.core.errors import ScenarioError
from liveupdate.core.suggest import suggest_or_list
from liveupdate.images import catalogue
from liveupdate.images.kernel_facts import read_facts
from liveupdate.model.kernel_needs import fragment, lacking
from liveupdate.model.verdict import ExitCode
from liveupdate.planning.compat import Outcome, compare, outcome_of
from liveupdate.planning.mechanisms import MECHANISMS


@click.command()
@click.argument("image", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@json_option
@common
def inspect(app: App, *, image: Path, as_json: bool) -> int:
    """Show what a kernel image says of itself.

    IMAGE is a bzImage, a vmlinux or an Image of arm64, packed by any compression of the kernel. The
    configuration is the embedded one, or that beside the image.
    """

    facts = read_facts(image)
    lacks = None if facts.config is None else lacking(facts.config.values)
    rows = {
        "image": str(image),
        "kind": facts.kind,
        "release": facts.release,
        "build_id": facts.build_id or None,
        "abi": facts.abi,
        "features": facts.features,
        "options": None if facts.config is None else len(facts.config.values),
        "lacks": lacks,
    }
    if as_json:
        say_json(rows)
        return ExitCode.PASS
    rows["options"] = "no configuration in it or beside it" if lacks is None else rows["options"]
    rows["lacks"] = "not known" if lacks is None else lacks
    for name, value in rows.items():
        text = " ".join(value) if isinstance(value, tuple) else value
        say(f"{name.replace('_', ' '):<9} {text or 'none'}")
    return ExitCode.PASS


@click.command()
@click.argument("outgoing", shell_complete=complete.kernels)
@click.argument("incoming", shell_complete=complete.kernels)
@click.option(
    "--mechanism", default="luo-memfd", metavar="NAME", shell_complete=complete.mechanisms,
    help="luo-memfd by default.",
)  # fmt: skip
@json_option
@common
def compat(app: App, *, outgoing: str, incoming: str, mechanism: str, as_json: bool) -> int:
    """Say what happens to guests when INCOMING replaces OUTGOING, and why.

    Both are image files, or names of built images such as kernel-a. Exit status: 0 passes, 1 the
    guests are lost or nothing is handed over, 3 the images do not tell.
    """

    if mechanism not in MECHANISMS:
        raise ScenarioError(
            f"unknown mechanism '{mechanism}'",
            where="--mechanism",
            hint=suggest_or_list(mechanism, MECHANISMS),
        )
    pair = catalogue.name_or_read(outgoing), catalogue.name_or_read(incoming)
    findings = compare(*pair, MECHANISMS[mechanism])
    outcome = outcome_of(findings)
    if as_json:
        rows = [
            {"outcome": each.outcome.name, "side": each.side, "why": each.why, "rule": each.source}
            for each in findings
        ]
        releases = {"outgoing": pair[0].release, "incoming": pair[1].release}
        say_json({**releases, "mechanism": mechanism, "outcome": outcome.name, "findings": rows})
    else:
        say(f"{pair[0].release} -> {pair[1].release}, {mechanism}: {outcome.text}")
        for each in findings:
            say(f"  {each.outcome.name:<9} {each.why}")
            say(f"  {'':<9} rule: {each.source}")
    if outcome is Outcome.UNKNOWN:
        return ExitCode.ERROR
    return ExitCode.PASS if outcome < Outcome.UNKNOWN else ExitCode.FAIL


@click.group()
def kernel() -> None:
    """Show what the testbed needs of a kernel."""


@kernel.command()
@common
def needs(app: App) -> int:
    """Print the options that a host's kernel needs, with reasons, as a fragment to merge.

    liveupdate kernel needs > needs.config; scripts/kconfig/merge_config.sh .config needs.config
    """

    say(fragment())
    return ExitCode.PASS

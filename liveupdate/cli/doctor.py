# SPDX-License-Identifier: Apache-2.0
"""``liveupdate doctor``."""

from __future__ import annotations

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import common, json_option
from liveupdate.cli.output import one_line, say, say_json
from liveupdate.model.verdict import ExitCode


@click.command()
@json_option
@common
def doctor(app: App, *, as_json: bool) -> int:
    """Check this machine and list what is missing; exit 3 when a run cannot work here."""
    from liveupdate.cli.checks import BAD, CHECKS, Finding

    findings: dict[str, Finding] = {}
    for name, check in CHECKS.items():
        findings[name] = finding = check()
        if not as_json:
            say(f"{finding.state:<5} {name:<8} {one_line(finding.what)}")
            if finding.hint:
                say(f"{'':<14} -> {finding.hint}")
    bad = [name for name, finding in findings.items() if finding.state == BAD]
    if as_json:
        rows = [{"name": name, **finding._asdict()} for name, finding in findings.items()]
        say_json({"ok": not bad, "checks": rows})
    elif bad:
        say(f"a run cannot work here: {', '.join(bad)}")
    else:
        say("a run can work here")
    return ExitCode.ERROR if bad else ExitCode.PASS

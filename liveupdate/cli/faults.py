# SPDX-License-Identifier: Apache-2.0
"""``liveupdate faults``."""

from __future__ import annotations

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import common, json_option
from liveupdate.cli.output import say, say_json
from liveupdate.faults.base import DEFAULT
from liveupdate.faults.table import FAULTS
from liveupdate.model.verdict import ExitCode


@click.command()
@json_option
@common
def faults(app: App, *, as_json: bool) -> int:
    """List the faults that `run --fault NAME` can inject, and the result that each must have.

    A run that names no scenario takes the scenario listed with its fault, or else the default.
    """
    if as_json:
        say_json([_document(name) for name in FAULTS])
        return ExitCode.PASS
    width = max(map(len, FAULTS))
    for name, fault in FAULTS.items():
        expected = fault.expected
        needs = "" if fault.scenario == DEFAULT else f"; scenario {fault.scenario}"
        say(
            f"{name:<{width}}  {expected.check} {expected.status}, exit {expected.exit_code}{needs}"
        )
        say(f"{'':<{width}}  {fault.what}")
    return ExitCode.PASS


def _document(name: str) -> dict[str, object]:
    fault = FAULTS[name]
    expected = fault.expected
    return {
        "name": name,
        "what": fault.what,
        "where": fault.where,
        "scenario": fault.scenario,
        "check": expected.check,
        "status": expected.status,
        "exit_code": int(expected.exit_code),
    }

# SPDX-License-Identifier: Apache-2.0
"""``liveupdate schema``."""

from __future__ import annotations

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import common
from liveupdate.cli.output import say_json
from liveupdate.model.verdict import ExitCode


@click.command()
@click.argument("of", type=click.Choice(["scenario", "result"]))
@common
def schema(app: App, *, of: str) -> int:
    """Print the JSON Schema of a scenario file or of result.json.

    An editor that is given the schema of scenarios completes their keys.
    """
    if of == "scenario":
        from liveupdate.scenario.schema import scenario_schema

        say_json(scenario_schema())
    else:
        from liveupdate.report.json_result import result_schema

        say_json(result_schema())
    return ExitCode.PASS

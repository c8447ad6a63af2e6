# SPDX-License-Identifier: Apache-2.0
"""``liveupdate plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import (
    ScenarioArgs,
    common,
    json_option,
    results_option,
    scenario_options,
)
from liveupdate.cli.output import say, say_json
from liveupdate.model.verdict import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from liveupdate.model.plan import Plan


@click.command()
@scenario_options
@results_option
@json_option
@common
def plan(app: App, *, scenario_args: ScenarioArgs, results: Path | None, as_json: bool) -> int:
    """Show what `run` would do with the same arguments; change nothing.

    SCENARIO is a file, or the name of a shipped one. Ends like `run` would for bad input. The
    accelerator is found out by a probe guest, as a run does.
    """
    from liveupdate.cli.prepare_run import prepare
    from liveupdate.model import codec

    prepared = prepare(app, scenario_args, results, dry=True)
    if as_json:
        say_json(codec.encode(prepared.plan))
        return ExitCode.PASS
    for line in describe(prepared.plan, prepared.accel_reason):
        say(line)
    return ExitCode.PASS


def describe(plan: Plan, accel_reason: str) -> Iterator[str]:
    """Say a plan in lines for people."""
    from liveupdate.core.units import format_size
    from liveupdate.model.targets import Capability

    machine = plan.machine
    images = plan.images
    yield f"scenario    {plan.scenario}"
    yield f"mechanism   {plan.mechanism}"
    if not plan.target_has(Capability.MADE):
        yield f"host        {plan.target}, {plan.place}, reset before the run"
    else:
        yield (
            f"host        {plan.target}, {format_size(machine.memory_bytes)},"
            f" {machine.vcpus} vCPUs, accel {machine.accel} ({accel_reason}),"
            f" {'cold' if plan.cold else 'warm'} start"
        )
    for guest in plan.guests:
        what = guest.image or f"payload, disk {format_size(guest.disk_bytes)}"
        yield (
            f"guest       {guest.name}: {format_size(guest.memory_bytes)}, {guest.vcpus} vCPUs,"
            f" {what}"
        )
    for device in plan.devices:
        work = f"{device.ring} descriptors, {device.rate} frames/s"
        if device.guest is not None:
            work = f"for guest {device.guest}"
        yield (
            f"device      {device.name}: {device.kind} {device.bdf or 'behind a port of its own'},"
            f" tier {device.tier}, {device.access}, {work}"
        )
    if machine.iommu != "none" and plan.target_has(Capability.MADE):
        mode = ", scalable mode" if machine.scalable else ""
        yield f"iommu       {machine.iommu}{mode}"
    yield f"outgoing    {images.outgoing.release} build id {images.outgoing.build_id or 'none'}"
    yield f"            {plan.boot_append}"
    for hop in plan.hops:
        kernel = hop.incoming
        how = "kexec -s" if hop.loader == "file" else "kexec -c"
        yield f"hop {hop.number:<7} {kernel.release} build id {kernel.build_id or 'none'} ({how})"
        yield f"            {hop.append}"
    yield f"watch       {plan.observe.before_s:g} s before, {plan.observe.after_s:g} s after"
    if plan.fault is not None:
        expected = plan.fault.expected
        yield (
            f"fault       {plan.fault.name}: {expected.check} {expected.status},"
            f" exit {expected.exit_code}"
        )
    for check, reason in plan.skips:
        yield f"skip        {check}: {reason}"

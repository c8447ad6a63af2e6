# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share, as decorators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from liveupdate.cli import complete
from liveupdate.cli.app import GLOBAL_OPTIONS, App
from liveupdate.cli.output import setup_logging

if TYPE_CHECKING:
    from liveupdate.scenario.load import Override

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioArgs:
    """A scenario as named on the command line: file or shipped name, and what overrides it."""

    scenario: str | None
    overrides: tuple[Override, ...]


#: option, scenario key, metavar, help; see docs/scenario.md
OVERRIDES = (
    ("--kernel", "kernel", "PATH", "bzImage of the outgoing kernel."),
    ("--next-kernel", "next_kernel", "PATH", "bzImage of the incoming kernel."),
    (
        "--kernel-tree",
        "kernel_tree",
        "DIR",
        "Source tree, build (also O=) or linux-image package; for both kernels.",
    ),
    ("--next-kernel-tree", "next_kernel_tree", "DIR", "The same, for the incoming kernel."),
    ("--config", "kernel_config", "FRAGMENT", "Kconfig fragment on top of the trees' own."),
    (
        "--mechanism",
        "mechanism",
        "NAME",
        "Mechanism that carries the guests' memory across the kexec.",
    ),
    ("--guests", "guests", "N", "How many guests."),
    ("--guest-memory", "guest.*.memory", "SIZE", "RAM of every guest, such as 512M."),
    ("--hops", "hops", "N", "How many kexecs in a row."),
    ("--target", "target", "NAME", "Kind of host under update: qemu, libvirt or ssh:NAME."),
    ("--accel", "accel", "NAME", "auto, kvm (never falls back) or tcg."),
    ("--fault", "fault", "NAME", "Inject a fault; see `liveupdate faults`."),
)


def common(function: F) -> F:
    """Add the global options, and pass the :class:`App` as first argument."""

    @click.pass_context
    @functools.wraps(function)
    def wrapper(ctx: click.Context, /, *args: Any, **kwargs: Any) -> Any:
        app = ctx.ensure_object(App)
        setup_logging(app.verbosity)
        return function(app, *args, **kwargs)

    decorated: Any = wrapper
    for option in reversed(GLOBAL_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def scenario_options(function: F) -> F:
    """Add ``[SCENARIO]`` and everything that overrides it; passed on as ``scenario_args``."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from liveupdate.scenario.load import Override, set_override

        values = ((key, kwargs.pop(_parameter(opt)), opt) for opt, key, _, _ in OVERRIDES)
        overrides = [Override(*each) for each in values if each[1] is not None]
        for flag in ("cold", "jump_anyway"):
            if kwargs.pop(flag):
                overrides.append(Override(flag, "true", "--" + flag.replace("_", "-")))
        overrides += map(set_override, kwargs.pop("sets"))
        scenario_args = ScenarioArgs(scenario=kwargs.pop("scenario"), overrides=tuple(overrides))
        return function(*args, scenario_args=scenario_args, **kwargs)

    decorated: Any = click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override any key of the scenario.",
    )(wrapper)
    decorated = click.option(
        "--jump-anyway", is_flag=True, help="Run it even if `compat` says that guests are lost."
    )(decorated)
    decorated = click.option(
        "--cold", is_flag=True, help="Boot the host; do not load a saved one."
    )(decorated)
    for option, key, metavar, text in reversed(OVERRIDES):
        decorated = click.option(
            option, _parameter(option), metavar=metavar, help=text,
            shell_complete=complete.VALUES.get(key),
        )(decorated)  # fmt: skip
    argument = click.argument("scenario", required=False, shell_complete=complete.scenarios)
    return argument(decorated)  # type: ignore[no-any-return]


def _parameter(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


results_option = click.option(
    "--results",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory for run directories; ./runs by default.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def report_files(function: F) -> F:
    """Add ``--junit FILE`` and ``--ktap FILE``."""
    for name in ("ktap", "junit"):
        function = click.option(
            f"--{name}",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help=f"Also write a {'KTAP' if name == 'ktap' else 'JUnit'} report.",
        )(function)
    return function

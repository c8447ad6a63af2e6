# SPDX-License-Identifier: Apache-2.0
"""The group of verbs, loaded one at a time, and the one place that maps errors to exit codes.

This module imports only what ``liveupdate --help`` needs, which has a budget of 150 ms.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from liveupdate import __version__
from liveupdate.cli.output import PROGRAM, complain, log, log_error, setup_logging
from liveupdate.cli.signals import Interrupted, handle_signals
from liveupdate.cli.streams import guard_streams
from liveupdate.core.errors import DeadlineExceeded, LiveUpdateError, ScenarioError
from liveupdate.core.suggest import suggest
from liveupdate.model.verdict import ExitCode

COMPLETION_VARIABLE = "_LIVEUPDATE_COMPLETE"

#: verb: (module of this room:command, one line of help); in the order of --help
VERBS = {
    "setup": ("setup:setup", "Install what is needed and build the images."),
    "doctor": ("doctor:doctor", "Check this machine and list what is missing."),
    "run": ("run:run", "Update a host under its guests; judge the result."),
    "matrix": ("matrix:matrix", "Compare mechanisms over guest sizes."),
    "plan": ("plan:plan", "Show what a run would do; change nothing."),
    "kselftest": ("stage:kselftest", "Run a tree's own live update tests."),
    "stage": ("stage:stage", "Run a program before and after a kexec."),
    "bisect": ("bisect:bisect", "Judge one commit, as a step of git bisect run."),
    "inspect": ("inspect:inspect", "Show what kernel images say of themselves."),
    "compat": ("inspect:compat", "Say what one kernel hands over to another."),
    "kernel": ("inspect:kernel", "Show what the testbed needs of a kernel."),
    "apply": ("apply:apply", "Update the kernel of a host whose guests matter."),
    "status": ("apply:status", "Show how far an update of a host has got."),
    "resume": ("apply:resume", "Continue an interrupted update."),
    "abort": ("apply:abort", "Roll an update back before it jumps."),
    "guests": ("guests:guests", "List and start the guests of a host."),
    "judge": ("judge:judge", "Judge a run directory again; needs no machine."),
    "report": ("judge:report", "Report on a run directory in another format."),
    "images": ("images:images", "Build, list and trim kernels and root disks."),
    "faults": ("faults:faults", "List the faults a run can inject."),
    "schema": ("schema:schema", "Print a JSON Schema, such as an editor needs."),
    "ps": ("machines:ps", "List the machines that liveupdate started and that still run."),
    "gc": ("machines:gc", "End machines whose run is gone; remove their files."),
    "shell": ("shell:shell", "Boot a host under update and log in."),
    "completion": ("completion:completion", "Print a shell's completion script."),
}


@dataclass(slots=True)
class App:
    """The values of the global options; filled while the command line is parsed."""

    argv: tuple[str, ...] = ()
    verbosity: int = 0
    color: str = "auto"
    #: the exit status is a verdict that is stored in a run directory, whether stdout took it or not
    has_verdict: bool = False

    @property
    def command_line(self) -> tuple[str, ...]:
        """The whole command line, as provenance.json and hints to reproduce a run show it."""
        return (PROGRAM, *self.argv)


class Verbs(click.Group):
    """A group that imports a verb's module when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the verbs in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb and return its command; None for an unknown name."""
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"liveupdate.cli.{module}"), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{VERBS[cmd_name][0]} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs into the help text without importing any of them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a verb; the error for an unknown one suggests a similar name."""
        if args[0] not in VERBS:
            hint = suggest(args[0], VERBS)
            if hint:
                ctx.fail(f"No such command '{args[0]}'. {hint.capitalize()}")
        return super().resolve_command(ctx, args)


def _set_verbosity(ctx: click.Context, _param: click.Parameter, count: int) -> None:
    ctx.ensure_object(App).verbosity += count


def _set_quiet(ctx: click.Context, _param: click.Parameter, is_set: bool) -> None:
    if is_set:
        ctx.ensure_object(App).verbosity = -1


def _set_color(ctx: click.Context, _param: click.Parameter, choice: str | None) -> None:
    if choice:
        ctx.ensure_object(App).color = choice


GLOBAL_OPTIONS = (
    click.option("-v", "--verbose", count=True, expose_value=False, callback=_set_verbosity,
                 help="Log and report more; twice for all details."),
    click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet,
                 help="Log errors only."),
    click.option("--color", type=click.Choice(["auto", "always", "never"]), expose_value=False,
                 callback=_set_color, help="Colours; auto looks at the terminal and NO_COLOR."),
)  # fmt: skip
"""Accepted before and after the verb."""


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> int:
    """Replace the kernel of a host by kexec while its guests survive, and prove that they did.

    Exit status: 0 pass; 1 something that had to be preserved was lost, or a budget was exceeded;
    2 the input is wrong; 3 this machine could not do it, or evidence is missing; 4 all skipped;
    5 rolled back, guests run; 124 timed out; 125 cannot judge (--bisect); 130, 143 signals.
    """
    if ctx.invoked_subcommand is None:
        log(ctx.get_help())
        return ExitCode.USAGE
    return ExitCode.PASS


for _option in reversed(GLOBAL_OPTIONS):
    cli = _option(cli)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; never raises for an expected failure."""
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    app = App(argv=arguments)
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {"obj": app}, PROGRAM, COMPLETION_VARIABLE, instruction)
    with guard_streams() as (stdout, _):
        try:
            with handle_signals():
                code = int(_invoke(app, arguments))
                sys.stdout.flush()
        except Interrupted as interrupt:
            log(f"{PROGRAM}: stopped by {interrupt}")
            return interrupt.exit_code
        if stdout.lost is not None:
            log(f"{PROGRAM}: stdout cannot be written: {stdout.lost}")
            if code == ExitCode.PASS and not app.has_verdict:
                code = ExitCode.ERROR
        # an option that cannot be parsed never gets as far as the verb
        verb = next((word for word in arguments if word in VERBS), "")
        is_bisect = verb == "bisect" or "--bisect" in arguments
        return for_bisect(code) if is_bisect else code


def for_bisect(code: int) -> int:
    """Map an exit status for ``git bisect run``, which takes 1 to 127 for bad, and ends at 128.

    125 (skip) is for a commit that cannot be judged, and a wrong call is wrong for every commit.
    """
    if code == ExitCode.USAGE:
        return ExitCode.END_BISECT
    skip = (ExitCode.ERROR, ExitCode.SKIP, ExitCode.TIMEOUT)
    return ExitCode.CANNOT_JUDGE if code in skip else code


def _invoke(app: App, arguments: tuple[str, ...]) -> int:
    """Parse, call the verb, and turn every error into a message and a status."""
    setup_logging(0)
    try:
        with cli.make_context(PROGRAM, list(arguments), obj=app) as ctx:
            result = cli.invoke(ctx)
            return int(result) if isinstance(result, int) else ExitCode.PASS
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else PROGRAM
        complain(error.format_message(), f"see '{path} --help'")
        return ExitCode.USAGE
    except ScenarioError as error:
        log_error(error)
        return ExitCode.USAGE
    except DeadlineExceeded as error:
        log_error(error)
        return ExitCode.TIMEOUT
    except LiveUpdateError as error:
        log_error(error)
        return ExitCode.ERROR
    except Exception as error:
        import traceback

        traceback.print_exc()
        complain(
            f"{type(error).__name__}: {error}", "this is a bug in liveupdate; please report it"
        )
        return ExitCode.ERROR

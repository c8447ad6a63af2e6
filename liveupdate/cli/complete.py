# SPDX-License-Identifier: Apache-2.0
"""Values that a shell completes: scenarios, faults, mechanisms, images, runs, targets, files.

Each is a click ``shell_complete`` callback. It imports what it needs when a shell asks, because
``--help`` has a budget, and returns nothing where a list cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _offer(list_values: Callable[[], Iterable[str]], *, files: bool = False) -> Complete:
    """Make a callback that offers values, and files as well when none of them fits."""

    def complete(
        _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        try:
            found = [value for value in list_values() if value.startswith(incomplete)]
        except Exception:
            found = []  # the shell would show a traceback in the middle of a command line
        if files and not found:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(value) for value in found]

    return complete


def _scenarios() -> Iterable[str]:
    from liveupdate.core.paths import scenarios_dir

    return sorted(path.stem for path in scenarios_dir().glob("*.toml"))


def _faults() -> Iterable[str]:
    from liveupdate.faults.table import FAULTS

    return FAULTS


def _mechanisms() -> Iterable[str]:
    from liveupdate.planning.mechanisms import MECHANISMS

    return MECHANISMS


def _images() -> Iterable[str]:
    from liveupdate.images.catalogue import DEFAULT, TESTS

    return (*DEFAULT, *TESTS)


def _kernels() -> Iterable[str]:
    return (name for name in _images() if name.startswith("kernel-"))


def _runs() -> Iterable[str]:
    runs = Path("runs")
    names = (path.name for path in runs.iterdir() if path.is_dir() and not path.is_symlink())
    return (str(runs / name) for name in ("latest", *sorted(names, reverse=True)))


def _targets() -> Iterable[str]:
    from liveupdate.model.targets import DEFAULT

    return (DEFAULT, "libvirt", "ssh:")


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leave the completion of a file to the shell."""
    return [CompletionItem(incomplete, type="file")]


scenarios = _offer(_scenarios, files=True)
faults = _offer(_faults)
mechanisms = _offer(_mechanisms)
images = _offer(_images)
kernels = _offer(_kernels, files=True)
runs = _offer(_runs, files=True)
targets = _offer(_targets)
accels = _offer(lambda: ("auto", "kvm", "tcg"))

#: scenario key: what completes the option that overrides it
VALUES = {
    "kernel": files,
    "next_kernel": files,
    "kernel_tree": files,
    "next_kernel_tree": files,
    "kernel_config": files,
    "mechanism": mechanisms,
    "target": targets,
    "accel": accels,
    "fault": faults,
}

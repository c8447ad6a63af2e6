# SPDX-License-Identifier: Apache-2.0
"""The package's layers, enforced by reading the import statements.

::

    L0 leaf <- L1 model, formats, data <- L2 pure policy
    L0, L1  <- L3 I/O primitives <- L4 machines, probes, images
    all     <- L5 runner <- L6 cli

L2 and L3/L4 never import each other: they meet in L5, through values of L1. The agent runs on
another machine from a directory of its own and imports nothing of ours at all.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "liveupdate"

#: the longest prefix wins; a new top-level module has to be entered here, which is the point
LAYERS = {
    "": 0,  # __version__
    "core": 0,
    "core.errors": 0,
    "core.units": 0,
    "core.deadline": 0,
    "core.steps": 0,
    "model": 1,
    "faults": 1,
    "run": 2,
    "run.observers": 5,
    "planning": 2,
    "scenario": 2,
    "formats": 1,
    "faults.table": 1,
    "model.targets": 1,
    # mechanisms' requirements, as data; the mechanisms themselves are the agent's
    "preserve": 1,
    "scenario.load": 2,
    "scenario.keys": 2,
    "scenario.values": 2,
    "scenario.dump": 2,
    "planning.planner": 2,
    "planning.kernels": 2,
    "planning.devices": 2,
    "planning.reserved_region": 2,
    "judging.require": 2,
    "judging.clockfit": 2,
    "judging.compare": 2,
    "judging.compare_iommu": 2,
    "judging.judge": 2,
    "planning.matrix": 2,
    "judging": 2,
    "run.timeline": 2,
    "report": 2,
    "operate.steps": 1,
    "operate.journal": 1,
    "operate.preflight": 2,
    "operate.plan": 2,
    "operate.wal": 3,
    "operate.bundle": 3,
    "operate.host_record": 4,
    "operate": 5,
    "core.paths": 3,
    "core.proc": 3,
    "transport.physmem": 3,
    "target.machines": 3,
    "evidence": 3,
    "transport": 3,
    "target": 4,
    "images": 4,
    "probes": 4,
    "target.accel": 4,
    "run.testbed": 5,
    "run.observers.host_queries": 5,
    "run.devices": 5,
    "run.observers.guest_device_use": 5,
    "run.bringup": 5,
    "faults.strikes": 5,
    "run.hop": 5,
    "run.observers.iommu": 5,
    "run.observers.guests": 5,
    "run.provenance": 5,
    "run.runner": 5,
    "cli": 6,
    "__main__": 6,
}

#: what only the named modules may import: heavy, or the business of one place
OWNERS = {
    "subprocess": {"core.proc", "cli.setup"},
    "paramiko": {"transport.ssh"},
    "qemu": {"transport.qmp"},
    "click": {"cli"},
    "rich": {"cli"},
    "junitparser": {"report"},
    "libvirt": {"target.libvirt.link"},
    "libvirt_qemu": {"target.libvirt.link"},
    "labgrid": {"target.labgrid_peer"},
    "grpc": {"target.labgrid_peer"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """Dotted name below the package, "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(name: str) -> int | None:
    if not name:
        return 0
    while name:
        if name in LAYERS:
            return LAYERS[name]
        name = name.rpartition(".")[0]
    return None


def imports(source: str, name: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield line and dotted target of every import, function-level and TYPE_CHECKING ones too."""
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = ["liveupdate", *package.split(".")] if package else ["liveupdate"]
                base = ".".join([*up[: len(up) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def own_target(target: str) -> str | None:
    """Module below the package that ``target`` names (or names something in), else None."""
    if target != "liveupdate" and not target.startswith("liveupdate."):
        return None
    parts = target.split(".")[1:]
    while parts:
        path = PACKAGE.joinpath(*parts)
        if path.is_dir() or path.with_suffix(".py").is_file() or ".".join(parts) in LAYERS:
            return ".".join(parts)
        parts.pop()
    return ""


def check(name: str, source: str, is_package: bool = False) -> list[str]:
    """Return what is wrong with the imports of one module."""
    if name == "agent" or name.startswith("agent."):
        return check_agent(name, source, is_package)
    layer = layer_of(name)
    if layer is None:
        return [f"{name}: has no layer; enter it in LAYERS"]
    wrong = []
    for line, target in imports(source, name, is_package):
        owners = OWNERS.get(target.partition(".")[0])
        if owners is not None and not any(f"{name}.".startswith(f"{own}.") for own in owners):
            wrong.append(f"{name}:{line}: imports '{target}', which is for {sorted(owners)}")
        own = own_target(target)
        if own is None:
            continue
        if own == "agent" or own.startswith("agent."):
            if layer < 3:
                wrong.append(f"{name}:{line}: L{layer} imports the agent")
            continue
        below = layer_of(own)
        assert below is not None, f"{own} has no layer"
        if below > layer:
            wrong.append(f"{name}:{line}: L{layer} imports 'liveupdate.{own}' of L{below}")
        if below == 2 and layer in (3, 4):
            wrong.append(f"{name}:{line}: I/O (L{layer}) imports policy 'liveupdate.{own}'")
    return wrong


def check_agent(name: str, source: str, is_package: bool) -> list[str]:
    """Standard library and its own directory; there it is not in a package called liveupdate."""
    wrong = []
    siblings = {path.stem for path in (PACKAGE / "agent").glob("*")} - {"__init__"}
    for line, target in imports(source, name, is_package):
        top = target.partition(".")[0]
        own = own_target(target)
        inside = own is not None and (own == "agent" or own.startswith("agent."))
        if not inside and top not in sys.stdlib_module_names and top not in siblings:
            wrong.append(f"{name}:{line}: the agent imports '{target}'")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=lambda path: module_name(path) or "liveupdate")
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert check(module_name(path), source, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("core.errors", "from liveupdate.core.units import GIB\nimport liveupdate.scenario.load"),
        ("model.plan", "from liveupdate.planning.planner import make_plan"),
        ("planning.planner", "from liveupdate.core import proc"),
        ("planning.planner", "def f():\n    from liveupdate.evidence import RunDir"),
        ("judging.judge", "from liveupdate.images.kernel import read_image"),
        ("images.kernel", "from liveupdate.scenario.load import load_scenario"),
        ("transport.qmp", "from liveupdate.target.qemu.host import QemuHost"),
        ("transport.qmp", "from ..target import qemu"),
        ("target.qemu.host", "from liveupdate.judging.judge import judge"),
        ("run.runner", "from liveupdate.cli.view import PlainView"),
        ("target.qemu.host", "import subprocess"),
        ("run.runner", "from rich.console import Console"),
        ("judging.judge", "from liveupdate.agent import wire"),
        ("agent.base.framing", "from liveupdate.core.units import GIB"),
        ("agent.base.framing", "import click"),
        ("no_such_module", ""),
    ],
)
def test_forbidden_import_is_found(name: str, source: str) -> None:
    assert check(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "run.runner",
            "from liveupdate.judging.judge import judge\nfrom liveupdate.target import qemu",
        ),
        ("target.qemu.host", "from liveupdate.transport.qmp import Qmp"),
        ("cli.run", "import click\nfrom liveupdate.run.runner import run"),
        ("agent.base.framing", "import json\nfrom liveupdate.agent import lean"),
        ("cli", "from liveupdate import __version__"),
    ],
)
def test_allowed_import_is_let_through(name: str, source: str) -> None:
    assert check(name, source) == []

# SPDX-License-Identifier: Apache-2.0
"""Who may import whom is written in ``pyproject.toml``; import-linter holds the package to it."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "liveupdate" / "agent"
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"

#: module, and what it may not import
PLANTED = [
    ("judging.judge", "liveupdate.target.base"),
    ("report.text", "liveupdate.core.proc"),
    ("formats.arp", "liveupdate.core.paths"),
    ("core.errors", "liveupdate.core.atomic_write"),
    ("model.plan", "liveupdate.planning.kernels"),
    ("evidence.store", "liveupdate.judging.judge"),
    ("transport.qmp", "liveupdate.target.qemu.host"),
    ("run.runner", "liveupdate.cli.view"),
    ("images.kit", "liveupdate.agent.base.framing"),
    ("agent.base.framing", "liveupdate.core.units"),
    ("run.bringup", "liveupdate.target.fake.host"),
    ("agent.base.framing", "liveupdate.agent.link.port"),
    ("agent.device.edu", "liveupdate.agent.guest.spec"),
    ("target.qemu.host", "subprocess"),
    ("target.ssh.host", "paramiko"),
    ("transport.monitor", "qemu"),
    ("run.runner", "rich"),
    ("cli.results", "junitparser"),
    ("cli.results", "jinja2"),
    ("target.libvirt.host", "libvirt"),
    ("target.labgrid", "grpc"),
]


def lint(directory: Path) -> tuple[int, str]:
    """Run lint-imports on the package in ``directory``; return its status and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--no-logo"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    # lines are wrapped for a terminal
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A directory with the package and its contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "liveupdate", tmp_path / "liveupdate", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def test_package_imports_only_what_it_may() -> None:
    status, said = lint(ROOT)
    assert status == 0, said


def test_forbidden_imports_are_found(copy: Path) -> None:
    for name, target in PLANTED:
        path = copy / "liveupdate" / f"{name.replace('.', '/')}.py"
        path.write_text(f"{path.read_text()}\n\nimport {target}\n")
    status, said = lint(copy)
    assert status == 1
    missed = [each for each in PLANTED if f"liveupdate.{each[0]} -> {each[1]} (l." not in said]
    assert missed == []


def test_room_that_no_contract_names_is_found(copy: Path) -> None:
    (copy / "liveupdate" / "attic").mkdir()
    (copy / "liveupdate" / "attic" / "__init__.py").write_text("")
    status, said = lint(copy)
    assert status == 1
    assert "attic" in said


def imported(source: str) -> Iterator[str]:
    """Name the top-level modules that an agent's module imports; its own are relative."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def test_agent_uses_the_standard_library_only() -> None:
    wrong = {
        path.relative_to(AGENT).as_posix(): others
        for path in AGENT.rglob("*.py")
        if (others := set(imported(path.read_text())) - sys.stdlib_module_names)
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "source",
    ["import click", "from liveupdate.core import units", "def f():\n    import yaml.nodes"],
)
def test_import_that_the_agent_may_not_have_is_found(source: str) -> None:
    assert set(imported(source)) - sys.stdlib_module_names

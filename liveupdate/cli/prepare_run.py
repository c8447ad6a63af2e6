# SPDX-License-Identifier: Apache-2.0
"""From the command line to a plan: reads scenario, images and this machine.

It builds images that are missing, unless only the plan is wanted. It starts nothing, except the
probe guest that tests the accelerator. That comes last, when everything else is known to be right.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import UNSET, structs

from liveupdate.cli.app import App
from liveupdate.cli.options import ScenarioArgs
from liveupdate.cli.output import check_report, log
from liveupdate.cli.view import show_steps
from liveupdate.core.errors import BuildError, PlanError, ScenarioError
from liveupdate.core.paths import guest_images_dir, results_dir, scenarios_dir
from liveupdate.core.suggest import suggest_or_list
from liveupdate.core.units import KIB
from liveupdate.faults.base import DEFAULT
from liveupdate.faults.table import FAULTS
from liveupdate.formats import kconfig
from liveupdate.images import catalogue
from liveupdate.images.usertree import TreeBuilder
from liveupdate.model.plan import ImageSet, Plan
from liveupdate.model.scenario import Scenario
from liveupdate.model.targets import parse_target
from liveupdate.planning.planner import MachineFacts, check_scenario, make_plan
from liveupdate.scenario.load import load_scenario
from liveupdate.target import accel
from liveupdate.target.base import find_entry
from liveupdate.target.blackouts import longest_shown_s

QCOW2_MAGIC = b"QFI\xfb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that a run needs; ``results`` exists and is writable."""

    scenario: Scenario
    plan: Plan
    results: Path
    accel_reason: str


def prepare(
    app: App,
    scenario_args: ScenarioArgs,
    results: Path | None,
    *,
    reports: Sequence[Path | None] = (),
    dry: bool = False,
) -> Prepared:
    """Load, check, build the images that are missing, and plan.

    :param reports: files that will be written at the end, if any.
    :param dry: neither make the results directory nor build.
    :raises ScenarioError, PlanError: one line each, before anything is started.
    :raises BuildError: an image is missing and cannot be built.
    """
    scenario = load(scenario_args)
    directory = results_dir(results)
    if not dry:
        check_results(directory)
    for report in reports:
        if report is not None:
            check_report(report)
    machine = machine_facts(scenario, directory)
    # a build takes minutes: errors that need no image are reported before it
    check_scenario(scenario)
    images = find_images(with_trees(scenario, app, may_build=not dry), None if dry else app)
    # all that can be refused is refused before the probe guest is started
    make_plan(scenario, images, machine)
    machine = find_target(scenario, machine)
    if machine.append is None:
        chosen, reason = choose_accel(scenario.accel, images)
    else:
        chosen, reason = "remote", "a lab machine: nothing is emulated here"
    machine = replace(machine, accel=chosen, blackout_s=longest_shown_s(chosen))
    return Prepared(
        scenario=scenario,
        plan=make_plan(scenario, images, machine),
        results=directory,
        accel_reason=reason,
    )


def load(scenario_args: ScenarioArgs) -> Scenario:
    """Read the scenario; a name without a file is a shipped scenario.

    A fault without a scenario gets the scenario that the fault needs.
    """
    name = scenario_args.scenario or scenario_of_fault(scenario_args)
    path = None if name is None else find_scenario(name)
    return load_scenario(path, scenario_args.overrides)


def scenario_of_fault(scenario_args: ScenarioArgs) -> str | None:
    """Return the shipped scenario that the wished fault needs; None: the default will do."""
    for key, value, _ in scenario_args.overrides:
        # the planner refuses a fault that does not exist, and knows where its name came from
        if key == "fault" and value in FAULTS and FAULTS[value].scenario != DEFAULT:
            return FAULTS[value].scenario
    return None


def find_scenario(name: str) -> Path:
    """Find a scenario: a file, or the name of a shipped one."""
    path = Path(name)
    if path.exists() or path.suffix == ".toml" or path.parent != Path():
        return path
    shipped = {item.stem: item for item in scenarios_dir().glob("*.toml")}
    if name in shipped:
        return shipped[name]
    raise ScenarioError(
        f"neither a file nor a shipped scenario: '{name}'",
        where="SCENARIO",
        hint=suggest_or_list(name, shipped, "shipped"),
    )


def check_results(directory: Path) -> None:
    """Create the results directory and test that it can be written; earlier runs in it are not
    touched.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            # a full disk, or a quota, often still lets an empty file be made
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        raise ScenarioError(
            f"'{directory}' cannot be written to: {error.strerror or error}",
            where="--results",
            hint="choose another directory with --results",
        ) from error


def machine_facts(scenario: Scenario, directory: Path) -> MachineFacts:
    """Collect the free memory and disk space of this machine; ``accel`` is still as requested."""
    return MachineFacts(
        accel=scenario.accel,
        ram_available_bytes=available_memory(),
        run_free_bytes=shutil.disk_usage(find_existing(directory)).free,
        image_bytes={
            guest.image: image_size(Path(guest.image), scenario.origins.get(
                f"guest.{guest.name}.image", guest.image))
            for guest in scenario.guests
            if guest.image is not None
        },
    )  # fmt: skip


def find_existing(path: Path) -> Path:
    """Return the directory, or the nearest of its parents that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def find_target(scenario: Scenario, machine: MachineFacts) -> MachineFacts:
    """Add where the target is, and check that it answers.

    :raises PlanError: the target does not answer, or a package that is needed to ask it is missing.
    :raises ScenarioError: the description of a lab machine is missing or wrong.
    """
    target = parse_target(scenario.target)
    found = find_entry(target.kind).locate(target.place)
    return replace(machine, place=found.place, append=found.append, guest_disks=found.guest_disks)


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes that may still be used: MemAvailable, or what the control group (v2) leaves."""
    available = 0
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * KIB
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        # what the group holds in clean page cache counts as used, and can be had back
        stat = (cgroup / "memory.stat").read_text(encoding="ascii").split()
        cache = int(stat[stat.index("inactive_file") + 1])
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - used + cache))


def image_size(path: Path, where: str) -> int:
    """Return the virtual size in bytes of a user's own disk image, qcow2 or raw.

    :raises ScenarioError: the image cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(32)
            size = path.stat().st_size
    except OSError as error:
        raise ScenarioError(f"image '{path}': {error.strerror or error}", where=where) from error
    if head[:4] == QCOW2_MAGIC and len(head) == 32:
        # docs/interop/qcow2.rst of QEMU: bytes 24 to 31, big-endian
        size = int.from_bytes(head[24:32], "big")
    if size == 0:
        raise ScenarioError(f"image '{path}' is empty", where=where)
    return size


def with_trees(scenario: Scenario, app: App, *, may_build: bool) -> Scenario:
    """Put the bzImages of the trees that the scenario names in its ``kernel`` and ``next_kernel``.

    :raises ScenarioError: a kernel has both an image and a tree, or the fragment is no fragment.
    :raises BuildError: as :meth:`liveupdate.images.usertree.TreeBuilder.find`.
    """
    trees = {"kernel": scenario.kernel_tree, "next_kernel": scenario.next_kernel_tree}
    for key, tree in trees.items():
        if tree is not None and getattr(scenario, key) is not None:
            place = scenario.origins.get(f"{key}_tree", f"{key}_tree")
            raise ScenarioError(f"'{key}' names a kernel already", where=place)
    if scenario.next_kernel is None:
        trees["next_kernel"] = trees["next_kernel"] or trees["kernel"]
    path = scenario.kernel_config
    if not any(trees.values()):
        if path is not None:
            place = scenario.origins.get("kernel_config", "kernel_config")
            raise ScenarioError("configures a tree, and no kernel_tree is named", where=place)
        return scenario
    try:
        extra = kconfig.parse_config(Path(path).read_text() if path else "", path or "")
    except (OSError, kconfig.KconfigError) as error:
        place = scenario.origins.get("kernel_config", "kernel_config")
        raise ScenarioError(f"cannot be used: {error}", where=place) from error
    with show_steps(app) as steps:
        builder = TreeBuilder(catalogue.open_cache(), guest_images_dir() / "kernel", steps)
        found = {
            tree: builder.find(Path(tree), extra, may_build=may_build)
            for tree in dict.fromkeys(trees.values())
            if tree is not None
        }
    named = {key: str(found[tree]) for key, tree in trees.items() if tree is not None}
    return structs.replace(scenario, **named)


def find_images(scenario: Scenario, app: App | None = None) -> ImageSet:
    """Find the built images, with the user's own kernels in their place.

    :param app: builds images that are missing, and shows it; None: they are an error.
    :raises PlanError: images have not been built, or a kernel of the user is not a kernel. This is
        no error of the scenario: while bisecting, a commit whose kernel did not build must be
        skipped.
    :raises BuildError: what is missing cannot be built.
    """
    own = {"kernel": scenario.kernel, "next_kernel": scenario.next_kernel}
    paths = {key: None if path is None else Path(path) for key, path in own.items()}
    for key, path in paths.items():
        if path is not None:
            try:
                catalogue.read_kernel(path)
            except PlanError as error:
                place = scenario.origins.get(key, key)
                raise PlanError(f"{place}: {error.message}", hint=error.hint) from error
    swapped = fault_kernels(scenario)
    if app is not None:
        build_missing(app, "a run", catalogue.needed(paths["kernel"], paths["next_kernel"]))
        if swapped:
            build_missing(app, f"fault '{scenario.fault}'", tuple(dict.fromkeys(swapped.values())))
    images = catalogue.resolve(paths["kernel"], paths["next_kernel"])
    kernels = {side: catalogue.find_kernel(name) for side, name in swapped.items()}
    return structs.replace(
        images,
        outgoing=kernels.get("outgoing", images.outgoing),
        incoming=kernels.get("incoming", images.incoming),
        replaced={side: getattr(images, side) for side in kernels} or UNSET,
    )


def fault_kernels(scenario: Scenario) -> Mapping[str, str]:
    """Return the kernels that the fault needs; none where the user has named a kernel for it."""
    fault = FAULTS.get(scenario.fault or "")
    kernels = {} if fault is None or fault.change is None else fault.change.kernels
    own = {"outgoing": scenario.kernel, "incoming": scenario.next_kernel}
    return {} if any(own[side] is not None for side in kernels) else kernels


def build_missing(app: App, purpose: str, names: Sequence[str]) -> None:
    """Build images and show it on stderr.

    :param purpose: what needs them, for people.
    :param names: images; those that are in the cache are left as they are.
    :raises BuildError: they cannot be built here.
    """
    missing = catalogue.find_missing(names)
    if not missing:
        return
    listed = ", ".join(missing)
    try:
        catalogue.need_compiler()
    except BuildError as error:
        raise BuildError(
            f"{purpose} needs {listed}, not built yet: {error.message}", hint=error.hint
        ) from error
    if app.verbosity >= 0:
        log(f"liveupdate: {purpose} needs {listed}, not built yet: building now")
    with show_steps(app) as steps:
        catalogue.build(missing, steps=steps)


def choose_accel(requested: str, images: ImageSet, *, use_cache: bool = True) -> tuple[str, str]:
    """Choose the accelerator by a probe guest, and return it with the reason; ``kvm`` never falls
    back.

    :param use_cache: use the result of an earlier probe since this machine was booted.
    :raises PlanError: KVM was requested and does not work.
    """
    return accel.choose(
        requested,
        kernel=Path(images.guest_kernel),
        initrd=Path(images.guest_initrd),
        use_cache=use_cache,
    )

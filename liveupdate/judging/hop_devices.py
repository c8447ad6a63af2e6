# SPDX-License-Identifier: Apache-2.0
"""What the checks of devices and of their translation share: which devices, over which time.

Two tiers, with different promises. Of a device that is ``continuous`` nothing may stop, not for
one sample. One that is ``quiesce`` is stopped on purpose: promised is how it stands before and
after, and that it could do no DMA while nothing translated it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from liveupdate.core.units import format_ns
from liveupdate.formats.pci_config import ConfigSpace, decode_config
from liveupdate.judging.context import Context, Finding, skipped, unknown
from liveupdate.judging.guest_share import GuestShare
from liveupdate.model import layout
from liveupdate.model.evidence import IommuEvidence, IommuWatch, WatchedDevice
from liveupdate.model.plan import Hop

CONTINUOUS, QUIESCE = "continuous", "quiesce"
NO_DEVICE = "no device of the scenario is kept or quiesced"
#: with a longer hole in the sampling nothing is claimed about what can only be sampled: what a
#: short one hides would have to come and go within it. QEMU's trace has no holes
MAX_HOLE_NS = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A device of the plan as it was found in one hop."""

    name: str
    kind: str
    tier: str
    found: WatchedDevice
    #: the guest that has it, and where its memory lay before and after; None: no guest has it
    share: GuestShare | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All that was seen of the devices in one hop; times are of the blackout."""

    hop: int
    evidence: IommuEvidence
    watch: IommuWatch
    devices: tuple[Kept, ...]
    paused_ns: int
    resumed_ns: int

    @property
    def is_continuous(self) -> bool:
        """Whether any device is to go on with DMA."""
        return any(each.tier == CONTINUOUS for each in self.devices)

    def since_pause(self, at_ns: int) -> str:
        """Say a time as people want to read it."""
        return f"{(at_ns - self.paused_ns) / 1e6:+.0f} ms from the pause"


JudgeScene = Callable[[Scene], list[Finding]]


def judge_scenes(context: Context, judge: JudgeScene) -> list[Finding]:
    """Judge every hop in which the devices were seen; say why the others were not."""
    if not context.plan.devices:
        return [unknown("expected by the plan, which has no device")]
    if not any(device.tier in (CONTINUOUS, QUIESCE) for device in context.plan.devices):
        return [skipped(NO_DEVICE)]
    findings: list[Finding] = []
    for hop in context.plan.hops:
        if context.rolled_back(hop.number):
            findings.append(skipped(f"hop {hop.number}: rolled back, the kernel was not replaced"))
            continue
        scene = _find_scene(context, hop)
        findings += [scene] if isinstance(scene, Finding) else judge(scene)
    return findings


def _find_scene(context: Context, hop: Hop) -> Scene | Finding:
    number = hop.number
    facts = context.hop(number)
    watch_file = layout.iommu_file(number, "watch.json")
    if facts is None or facts.iommu is None or facts.iommu.watch is None:
        return context.missing("the devices seen from outside", number, paths=(watch_file,))
    if not facts.paused_ns:
        marks = layout.hop_file(number, "marks.jsonl")
        return context.missing("the moment of the pause", number, paths=(marks,))
    found = {each.name: each for each in facts.iommu.devices}
    devices: list[Kept] = []
    for spec in context.plan.devices:
        if spec.tier not in (CONTINUOUS, QUIESCE):
            continue
        device = found.get(spec.name)
        if device is None:
            path = layout.iommu_file(number, "devices.json")
            return context.missing(f"device '{spec.name}'", number, paths=(path,))
        if spec.bdf is not None and spec.bdf != device.function:
            return unknown(
                f"hop {number}: device '{spec.name}' was watched at {device.function}, "
                f"planned was {spec.bdf}"
            )
        share = None
        if spec.guest is not None:
            memory = context.memory(number, spec.guest)
            if memory is None or memory.pfns_before is None or memory.pfns_after is None:
                files = tuple(layout.pfns(number, spec.guest, when) for when in ("before", "after"))
                return context.missing("where its memory lies", number, spec.guest, files)
            share = GuestShare.of(spec.guest, memory.pfns_before, memory.pfns_after)
        devices.append(
            Kept(name=spec.name, kind=spec.kind, tier=spec.tier, found=device, share=share)
        )
    return Scene(
        hop=number,
        evidence=facts.iommu,
        watch=facts.iommu.watch,
        devices=tuple(devices),
        paused_ns=min(facts.paused_ns.values()),
        # guests that never went on are judged elsewhere; devices are, for as long as was looked
        resumed_ns=max(facts.resumed_ns.values(), default=facts.iommu.watch.ended_ns),
    )


def find_blindness(scene: Scene, *, is_sampled: bool) -> Finding | None:
    """Say why sampling and trace are not enough to claim that something never happened.

    :param is_sampled: what is claimed rests on the samples, and not on the trace alone.
    """
    where, watch = f"hop {scene.hop}", scene.watch
    path = layout.iommu_file(scene.hop, "watch.json")
    if watch.began_ns > scene.paused_ns or watch.ended_ns < scene.resumed_ns:
        return unknown(
            f"{where}: the sampling did not cover the blackout from pause to resume",
            evidence=(path,),
        )
    if is_sampled and watch.longest_hole_ns > MAX_HOLE_NS:
        return unknown(
            f"{where}: nobody looked for {format_ns(watch.longest_hole_ns)}",
            observed=format_ns(watch.longest_hole_ns),
            evidence=(path,),
        )
    if not watch.trace_lines:
        return unknown(
            f"{where}: QEMU's trace stayed empty, so what happens between samples goes unseen",
            evidence=(path,),
        )
    return None


def say_rate(scene: Scene) -> str:
    """Say how well the blackout was covered, as measured."""
    samples = scene.evidence.samples
    inside = [each for each in samples if scene.paused_ns <= each.host_ns <= scene.resumed_ns]
    rate = len(inside) / (max(1, scene.resumed_ns - scene.paused_ns) / 1e9)
    hole = format_ns(scene.watch.longest_hole_ns)
    return (
        f"{len(samples)} samples, {len(inside)} of them in the blackout "
        f"({rate:.0f} Hz, longest hole {hole})"
    )


def find_spaces(scene: Scene, function: str) -> tuple[ConfigSpace, ConfigSpace] | str:
    """Find a function's configuration space before and after, or say what is wrong with it."""
    found: list[ConfigSpace] = []
    for moment in ("before", "after"):
        facts = next(
            (
                each
                for each in scene.evidence.configs
                if each.function == function and each.moment == moment
            ),
            None,
        )
        if facts is None:
            return f"its configuration space was not seen {moment} the update"
        try:
            found.append(decode_config(bytes.fromhex(facts.data)))
        except ValueError as error:
            return f"its configuration space {moment} the update cannot be used: {error}"
    return found[0], found[1]

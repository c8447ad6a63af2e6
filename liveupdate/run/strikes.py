# SPDX-License-Identifier: Apache-2.0
"""The planned fault of a hop: strikes when its moment has come, and stores what it changed.

A fault that changes the plan strikes with the plan; what was observed of both kernels proves it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from liveupdate.core.errors import LiveUpdateError
from liveupdate.core.steps import Steps
from liveupdate.faults.base import REGION_WORDS, Fault, HopChange, Later, Moment, struck
from liveupdate.faults.table import FAULTS
from liveupdate.model.evidence import Incident, KernelFacts, Struck
from liveupdate.model.plan import KernelImage
from liveupdate.run.testbed import Testbed
from liveupdate.transport.console import ConsoleLine

#: linux_banner, and what start_kernel() prints (init/version-timestamp.c, init/main.c)
_RELEASE = re.compile(r"Linux version (\S+)")
_CMDLINE = re.compile(r"Kernel command line: (.*)")


class Strikes:
    """The fault of one hop, or none; :meth:`store` is called at its end, however it ended."""

    def __init__(self, bed: Testbed, hop: int, steps: Steps) -> None:
        self._bed = bed
        self._hop = hop
        self._steps = steps
        self._later: Later | None = None
        self._fault: Fault | None = None
        planned = bed.plan.fault
        if planned is not None and hop == bed.plan.hops[0].number:
            self._fault = FAULTS[planned.name]
        #: what both kernels said of themselves
        self.before: KernelFacts | None = None
        self.after: KernelFacts | None = None
        #: what the agent answered when it had loaded the incoming kernel
        self.loaded: Mapping[str, object] = {}
        self._console_mark = 0

    def strike(self, moment: Moment) -> bool:
        """Carry out the fault if this is its moment; return whether it was."""
        fault = self._fault
        if fault is not None and moment is Moment.JUMP:
            self._console_mark = self._bed.host.console.mark()
        if fault is None or fault.at is not moment or fault.strike is None:
            return False
        self._steps.note("fault", fault=fault.name)
        incident = Incident(kind="fault", hop=self._hop, text=fault.name)
        self._bed.record.add_incident(incident)
        done = fault.strike(self._bed)
        if isinstance(done, Struck):
            self._put(fault, done)
        else:
            self._later = done
        return True

    def store(self) -> None:
        """Store what is known only at the end of the hop."""
        fault = self._fault
        if fault is None:
            return
        try:
            done = self._later() if self._later is not None else None
            if fault.change is not None:
                done = self._prove(fault.change)
        except LiveUpdateError as error:
            text = f"what fault '{fault.name}' changed cannot be read: {error}"
            self._bed.record.add_incident(Incident(kind="harness", hop=self._hop, text=text))
            return
        if done is not None:
            self._put(fault, done)

    def _put(self, fault: Fault, done: Struck) -> None:
        self._steps.note("struck", fault=fault.name, what=done.what, where=done.where)
        self._bed.record.add_struck(replace(done, fault=fault.name), self._hop)

    def _prove(self, change: HopChange) -> Struck | None:
        lines = self._bed.host.console.lines(self._console_mark)
        if change.kernels:
            replaced = self._bed.plan.images.replaced or {}
            release = find_said(lines, _RELEASE)
            return compare_kernels(change, replaced, self.before, self.after, release)
        if change.loader != HopChange().loader:
            return compare_loading(self.loaded)
        cmdline = self.after.cmdline if self.after is not None else find_said(lines, _CMDLINE)
        return compare_words(change, self.before.cmdline if self.before else None, cmdline)


def find_said(lines: Iterable[ConsoleLine], pattern: re.Pattern[str]) -> str | None:
    """Find what a kernel says while it boots; None: it has not come to that."""
    matches = (pattern.search(line.text) for line in lines)
    return next((match[1] for match in matches if match), None)


def compare_words(change: HopChange, before: str | None, after: str | None) -> Struck | None:
    """Compare what a fault changes of two command lines with which kernels have booted.

    :param before: of the outgoing kernel; :param after: of the incoming one.
    :return: None: one of them is not known.
    """
    if before is None or after is None:
        return None
    names = {*change.drop, *(word.partition("=")[0] for word in change.add.split())}
    if change.shrink:
        names |= set(REGION_WORDS)
    said = [
        " ".join(word for word in line.split() if word.partition("=")[0] in names) or "none of them"
        for line in (before, after)
    ]
    where = "command lines of the outgoing and the incoming kernel, as they booted"
    return struck(f"parameters {', '.join(sorted(names))}", where, *said, view="inside")


def compare_kernels(
    change: HopChange,
    replaced: Mapping[str, KernelImage],
    before: KernelFacts | None,
    after: KernelFacts | None,
    release: str | None,
) -> Struck | None:
    """Compare the kernels that ran with those that they replace: by their build ids, or by their
    releases when the incoming one has not lived to be asked.

    :param replaced: by "outgoing" and "incoming"; what is not there is a kernel of the user's own,
        which is compared with the outgoing one.
    :param release: of the incoming kernel, as it printed it.
    :return: None: not all of them are known.
    """
    of = "release" if after is None else "build_id"
    seen = {"outgoing": before, "incoming": after}
    ran = {side: getattr(facts, of) for side, facts in seen.items() if facts is not None}
    if after is None:
        ran["incoming"] = release
    instead = {"incoming": ran.get("outgoing")}
    instead |= {side: getattr(image, of) for side, image in replaced.items()}
    sides = sorted(change.kernels)
    texts = [[names.get(side) or "" for side in sides] for names in (instead, ran)]
    if "" in (*texts[0], *texts[1]):
        return None
    what = f"{of.replace('_', ' ')} of the kernel that ran"
    was, is_ = map(", ".join, texts)
    return struck(what, " and ".join(sides), was, is_, view="inside")


def compare_loading(loaded: Mapping[str, object]) -> Struck | None:
    """Say how the incoming kernel was loaded, as the agent told; None: it did not."""
    before, after, command = (loaded.get(key) for key in ("was_loaded", "is_loaded", "command"))
    if not isinstance(command, str) or None in (before, after):
        return None
    where = "/sys/kernel/kexec_loaded"
    return struck("the loaded kernel", where, str(before), f"{after}, by {command}", view="inside")

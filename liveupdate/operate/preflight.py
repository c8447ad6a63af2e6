# SPDX-License-Identifier: Apache-2.0
"""Decides whether this host may be updated now, from its agent's survey and the incoming kernel.
Pure.

A survey can only make this tool refuse, or report what the host says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from liveupdate.core.units import MIB, PAGE_BYTES, format_size
from liveupdate.model.mechanism import Requirements
from liveupdate.model.plan import KernelImage
from liveupdate.operate.survey import GuestFacts, Survey

#: a VMM's own memory while it saves its state, and what the agent needs beside it
STATE_BYTES_PER_GUEST = 16 * MIB
#: the unpacked kernel, its boot parameters, and page tables, as multiples of the image
IMAGE_FACTOR = 4
#: what must be left to the host
SPARE_BYTES = 64 * MIB
#: KHO's and LUO's bookkeeping for each preserved page, and digests of it twice over
BYTES_PER_PAGE = 16
#: of a run directory without page frame numbers and digests
RUN_BYTES = 32 * MIB
EVIDENCE_PER_PAGE = 64


class Level(Enum):
    """REFUSE: nothing is started; WARN: the update may continue, and the finding is shown."""

    OK = "ok"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check of the preflight. ``subject`` is "" or the guest or device that it is about."""

    id: str
    level: Level
    text: str
    subject: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What the control host knows. ``console``: why there is none, "" if there is."""

    incoming: KernelImage
    incoming_bytes: int
    #: kernel symbols of the incoming image; None: unknown
    incoming_options: Mapping[str, str] | None = None
    #: the running kernel's image, when one was named
    outgoing: KernelImage | None = None
    run_free_bytes: int = 0
    console: str = ""
    #: id of this update, when it holds the host already
    own: str = ""
    digests: bool = True
    mechanism: Requirements = field(kw_only=True)


def check(survey: Survey, local: Local) -> tuple[Finding, ...]:
    """Check everything; the findings are in the order in which people want to read them."""
    checks = (
        _agent(survey, local),
        _kernel(survey, local),
        _abi(survey, local),
        _guests(survey),
        _strangers(survey),
        _devices(survey),
        _memory(survey, local),
        _places(survey, local),
    )
    return tuple(finding for findings in checks for finding in findings)


def refusals(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that refuse the update."""
    return [finding for finding in findings if finding.level is Level.REFUSE]


def _ok(id_: str, text: str, subject: str = "") -> Finding:
    return Finding(id=id_, level=Level.OK, text=text, subject=subject)


def _warn(id_: str, text: str, subject: str = "", hint: str = "") -> Finding:
    return Finding(id=id_, level=Level.WARN, text=text, subject=subject, hint=hint)


def _refuse(id_: str, text: str, subject: str = "", hint: str = "") -> Finding:
    return Finding(id=id_, level=Level.REFUSE, text=text, subject=subject, hint=hint)


# --- agent


def _agent(survey: Survey, local: Local) -> Iterator[Finding]:
    agent = survey.agent
    held = agent.update
    if held is not None and held.get("id") != local.own:
        yield _refuse(
            "lock",
            f"update '{held.get('id')}' of {held.get('owner')} holds the host",
            hint="wait for it, or have its operator abort it",
        )
    elif agent.handover != "idle" and not local.own:
        yield _refuse(
            "lock",
            f"the agent is busy: its state is '{agent.handover}'",
            hint="another program uses the agent on this host",
        )
    else:
        yield _ok("lock", "no other update holds this host")
    others = [each for each in survey.owners if each.pid != agent.pid]
    if others:
        names = ", ".join(f"{each.name} ({each.pid})" for each in others)
        hint = ""
        if any(each.pid == 1 for each in others):
            hint = "systemd from version 261 on opens it for its own FD store"
        yield _refuse("owner", f"/dev/liveupdate is open in {names}", hint=hint)
    elif not survey.owners:
        yield _warn("owner", "/dev/liveupdate is not open; the agent will open it")
    else:
        yield _ok("owner", f"/dev/liveupdate is the agent's ({agent.pid})")
    if not agent.unit:
        yield _warn(
            "unit",
            "the agent was not started by systemd: it is not restarted when it ends",
            hint="see docs/apply.md",
        )


# --- kernels


def _kernel(survey: Survey, local: Local) -> Iterator[Finding]:
    facts, kexec = survey.facts, survey.kexec
    yield _ok("kernel.running", f"{facts.release} (build id {facts.build_id[:12] or 'none'})")
    incoming = local.incoming
    yield _ok(
        "kernel.incoming", f"{incoming.release} (build id {incoming.build_id[:12] or 'none'})"
    )
    if incoming.build_id and incoming.build_id == facts.build_id:
        yield _warn("kernel.same", "the host runs this very build already")
    if not facts.liveupdate:
        yield _refuse(
            "kernel.liveupdate",
            "the running kernel has no /dev/liveupdate",
            hint="boot it with 'kho=on liveupdate=on', and with CONFIG_LIVEUPDATE=y",
        )
    for place, options in (("running", survey.options), ("incoming", local.incoming_options)):
        yield from _options(place, options, local.mechanism)
    if not kexec.program:
        yield _refuse("kexec", "there is no kexec on the host", hint="install kexec-tools")
    elif kexec.disabled:
        yield _refuse(
            "kexec",
            "kernel.kexec_load_disabled is 1: this kernel loads no other any more",
            hint="only a reboot undoes it",
        )
    elif kexec.loaded is None:
        yield _refuse("kexec", "the running kernel has no kexec (CONFIG_KEXEC_FILE)")
    else:
        more = "; one that is loaded will be replaced" if kexec.loaded else ""
        yield _ok("kexec", f"kernels can be loaded{more}")


def _options(
    place: str, options: Mapping[str, str] | None, mechanism: Requirements
) -> Iterator[Finding]:
    id_ = f"kernel.{place}.config"
    if options is None:
        yield _warn(id_, f"the {place} kernel does not show its configuration (IKCONFIG)")
        return
    missing = [name for name in mechanism.kconfig if options.get(name, "n") not in ("y", "m")]
    if missing:
        names = " ".join(f"CONFIG_{name}" for name in missing)
        yield _refuse(id_, f"the {place} kernel lacks {names}")
    else:
        yield _ok(id_, f"the {place} kernel has all that {mechanism.name} needs")


def _abi(survey: Survey, local: Local) -> Iterator[Finding]:
    outgoing, said = list(survey.abi), "the running kernel's debugfs"
    if local.outgoing is not None:
        if local.outgoing.build_id != survey.facts.build_id:
            yield _refuse(
                "abi",
                f"'{local.outgoing.path}' is not the running kernel: its build id is"
                f" {local.outgoing.build_id[:12]}, that of the host {survey.facts.build_id[:12]}",
            )
            return
        outgoing, said = list(local.outgoing.abi), "its image"
    for prefix in local.mechanism.abi_prefixes:
        ours = [each for each in outgoing if each.startswith(prefix)]
        theirs = [each for each in local.incoming.abi if each.startswith(prefix)]
        name = prefix.removesuffix("-v")
        if not theirs:
            yield _refuse("abi", f"the incoming kernel has no '{name}'", name)
        elif not ours:
            yield _warn(
                "abi",
                f"{said} does not say which '{name}' the running kernel has; the incoming one has"
                f" {theirs[0]}",
                name,
                hint="name the running kernel's image with --kernel",
            )
        elif ours[0] != theirs[0]:
            yield _refuse(
                "abi",
                f"the running kernel hands over {ours[0]}, the incoming one reads {theirs[0]}",
                name,
                hint="the incoming kernel could not read what is left for it",
            )
        else:
            yield _ok("abi", f"both kernels: {ours[0]} ({said})", name)


# --- guests and devices


def _guests(survey: Survey) -> Iterator[Finding]:
    if not survey.guests:
        yield _refuse(
            "guest",
            "the agent runs no guest",
            hint="without guests this host needs no live update: reboot it",
        )
    for name, guest in sorted(survey.guests.items()):
        why = why_not(guest)
        size = format_size(guest.spec.memory_bytes)
        if why:
            yield _refuse("guest", why, name, hint="see docs/apply.md")
        else:
            seen = _seen_by(guest)
            level = _ok if seen else _warn
            yield level(
                "guest",
                f"{size}, {guest.spec.vcpus} vCPU: can be preserved; "
                + (f"watched by {seen}" if seen else "there is no way to see whether it lives"),
                name,
            )
            if not seen:
                yield _refuse(
                    "guest.liveness",
                    "it has neither the shipped payload nor a guest agent (qga), so nothing could"
                    " show that it survived",
                    name,
                )


def why_not(guest: GuestFacts) -> str:
    """Return why a guest cannot be preserved; "": it can."""
    if guest.error:
        return f"cannot be preserved: {guest.error}"
    if guest.status != "running":
        return f"cannot be preserved: its VMM says '{guest.status}', not 'running'"
    if guest.adapter is None:
        return "cannot be preserved: its VMM has no migration mode that fits"
    if guest.ram_bytes != guest.spec.memory_bytes:
        return "cannot be preserved: the agent does not hold all of its memory"
    if guest.disk is None:
        return f"cannot be preserved: its disk '{guest.spec.disk}' is not there"
    return ""


def _seen_by(guest: GuestFacts) -> str:
    if not guest.spec.image:
        return "its payload's ticks"
    return "its guest agent" if guest.spec.qga else ""


def _strangers(survey: Survey) -> Iterator[Finding]:
    if not survey.strangers:
        yield _ok("stranger", "the agent runs all virtual machines of this host")
        return
    names = ", ".join(
        f"{each.guest or 'unnamed'} ({each.name} {each.pid}{', of libvirt' * each.libvirt})"
        for each in survey.strangers
    )
    yield _refuse(
        "stranger",
        f"the agent does not run these virtual machines, and a kexec ends them: {names}",
        hint="shut them down, or move them to another host",
    )


def _devices(survey: Survey) -> Iterator[Finding]:
    own = {str(each.get("bdf")): name for name, each in survey.devices.items()}
    for each in survey.vfio:
        if each.bdf not in own:
            yield _refuse(
                "device",
                "passed through (vfio-pci), but not by the agent: its DMA ends with the kexec",
                each.bdf,
                hint="give it back before",
            )
        elif each.keep is None:
            yield _warn("device", "the running kernel cannot keep its DMA running", each.bdf)
        else:
            yield _ok("device", f"'{own[each.bdf]}': its DMA can be kept", each.bdf)
    if not survey.vfio:
        yield _ok("device", "no device is passed through")


# --- room


def _memory(survey: Survey, local: Local) -> Iterator[Finding]:
    guests = [guest.spec.memory_bytes for guest in survey.guests.values()]
    pages = sum(guests) // PAGE_BYTES
    needed = len(guests) * STATE_BYTES_PER_GUEST + pages * BYTES_PER_PAGE + SPARE_BYTES
    needed += IMAGE_FACTOR * local.incoming_bytes
    available = survey.memory.get("MemAvailable")
    if available is None:
        yield _warn("memory", "the host does not say how much memory is available")
    elif available < needed:
        yield _refuse(
            "memory",
            f"{format_size(available)} available, {format_size(needed)} needed beside what the"
            " guests have",
        )
    else:
        yield _ok("memory", f"{format_size(available)} available, {format_size(needed)} needed")
    scratch = survey.facts.scratch_bytes
    if scratch is None:
        yield _warn("scratch", "the size of KHO's scratch areas is not known (no debugfs)")
    elif scratch < 2 * local.incoming_bytes:
        yield _refuse(
            "scratch",
            f"KHO's scratch areas have {format_size(scratch)}, too little to boot an image of"
            f" {format_size(local.incoming_bytes)}",
            hint="boot with a larger 'kho_scratch=', which 7.4 calls 'kho_bootmem='",
        )
    else:
        yield _ok("scratch", f"KHO's scratch areas have {format_size(scratch)}")


def _places(survey: Survey, local: Local) -> Iterator[Finding]:
    if survey.run_free_bytes < local.incoming_bytes + 4 * MIB:
        yield _refuse(
            "disk.host",
            f"{format_size(survey.run_free_bytes)} free in the host's /run, the image needs"
            f" {format_size(local.incoming_bytes)}",
        )
    else:
        yield _ok("disk.host", f"{format_size(survey.run_free_bytes)} free in the host's /run")
    pages = sum(guest.spec.memory_bytes for guest in survey.guests.values()) // PAGE_BYTES
    needed = RUN_BYTES + pages * EVIDENCE_PER_PAGE
    if local.run_free_bytes < needed:
        yield _refuse(
            "disk.control",
            f"{format_size(local.run_free_bytes)} free for the run directory here,"
            f" {format_size(needed)} needed",
        )
    else:
        yield _ok("disk.control", f"{format_size(local.run_free_bytes)} free here")
    if local.console:
        yield _warn(
            "console",
            f"the console cannot be read: {local.console}; a panic would be seen as a host that"
            " does not come back",
        )
    else:
        yield _ok("console", "the console can be read")

# SPDX-License-Identifier: Apache-2.0
"""What a host and its guests are asked before and after a hop; each answer is stored at once."""

from __future__ import annotations

from pathlib import Path

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import (
    DeadlineExceeded,
    EvidenceError,
    LiveUpdateError,
    LostMachine,
    RemoteError,
)
from liveupdate.core.steps import Steps
from liveupdate.formats import payload
from liveupdate.formats.journal import JournalError
from liveupdate.model import codec, slots
from liveupdate.model.evidence import Incident, KernelFacts, SshFacts, VmmStatus
from liveupdate.model.guest_device_use import JournalFacts
from liveupdate.probes.liveness import scan_disk
from liveupdate.run.testbed import GuestHandle, Testbed, field_of

#: reading a page back for the first time after a resume is a nested fault; under TCG, 4.3 ms were
#: seen with two guests on one CPU
_VERIFY_PAGE_S = 0.02


def ask_facts(bed: Testbed) -> KernelFacts:
    """Ask the running kernel what it is."""
    return codec.decode(KernelFacts, dict(bed.call("facts")), "facts")


def record_vmm(bed: Testbed, hop: int, name: str, status: object) -> None:
    """Store the answer of ``guest_status`` for one guest."""
    fields = status if isinstance(status, dict) else {}
    error = fields.get("error")
    said = VmmStatus(status=field_of(fields, "status", str))
    bed.record.put(slots.VMM, said, hop, name)
    if error:
        bed.record.add_incident(Incident(kind="vmm-lost", hop=hop, guest=name, text=str(error)))


def verify_pattern(bed: Testbed, hop: int, guest: GuestHandle, steps: Steps) -> None:
    """Let the payload read its own pattern back; a dead guest gives no answer."""
    try:
        mark = bed.command(guest, payload.VERIFY)
        pages = guest.ready.pattern_pages if guest.ready is not None else 0
        timeout_s = bed.plan.timeouts.restore_s + pages * _VERIFY_PAGE_S
        deadline = Deadline.after(timeout_s, "the pattern check")
        line = bed.wait_payload(guest, payload.Verified, deadline, since=mark)
    except (RemoteError, DeadlineExceeded, EvidenceError, LostMachine) as error:
        steps.note("pattern-not-verified", guest=guest.spec.name, error=str(error))
        return
    bed.record.put(slots.PATTERN, line.to_facts(), hop, guest.spec.name)


def scan_journal(
    path: Path, ready: payload.Ready | None, steps: Steps, **owner: str
) -> JournalFacts | None:
    """Read the journal that a guest keeps on a disk; None: there is none that can be read.

    :param ready: what the payload said of itself.
    :param owner: what a note of a journal that cannot be read names.
    """
    if ready is None:
        return None
    try:
        return scan_disk(path, boot=ready.boot)
    except (OSError, JournalError) as error:
        steps.note("journal-unreadable", **owner, error=str(error))
        return None


def read_over_ssh(bed: Testbed, hop: int) -> None:
    """Read boot_id and nonce through the second way in."""
    deadline = Deadline.after(bed.plan.timeouts.incoming_s / 2, "SSH to the incoming kernel")
    try:
        answer = bed.ssh(deadline).run(
            ("cat", "/proc/sys/kernel/random/boot_id", "/run/liveupdate/nonce"), deadline
        )
    except LiveUpdateError as error:
        bed.record.add_incident(Incident(kind="lost-ssh", hop=hop, text=str(error)))
        return
    boot_id, _, nonce = answer.stdout.decode(errors="replace").strip().partition("\n")
    facts = SshFacts(boot_id=boot_id, nonce_ok=nonce.strip() == bed.nonce)
    bed.record.put(slots.SSH, facts, hop)

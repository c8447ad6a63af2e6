# SPDX-License-Identifier: Apache-2.0
"""Faults of the way from one kernel to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liveupdate.core.deadline import Deadline
from liveupdate.faults.base import (
    CALL_S,
    HopChange,
    Later,
    Moment,
    ask_agent,
    errs,
    fails,
    fault,
    planned_fault,
    struck,
)
from liveupdate.model.evidence import Struck
from liveupdate.model.mechanism import Offer
from liveupdate.model.targets import Capability

if TYPE_CHECKING:
    from liveupdate.run.testbed import Testbed

kho_off = planned_fault(
    "kho-off",
    "the incoming kernel gets kho=off",
    HopChange(drop=("kho",), add="kho=off"),
    needs={Offer.KHO_SWITCH},
    expect=fails("handover.session"),
)

liveupdate_off = planned_fault(
    "liveupdate-off",
    "the incoming kernel gets liveupdate=off",
    HopChange(drop=("liveupdate",), add="liveupdate=off"),
    needs={Offer.LUO},
    expect=fails("handover.session"),
)

kexec_load = planned_fault(
    "kexec-load",
    "the kernel is loaded by kexec_load (no -s), which carries no KHO",
    HopChange(loader="legacy"),
    needs={Offer.KHO},
    expect=fails("handover.kho"),
)

kernel_without_kho = planned_fault(
    "kernel-without-kho",
    "the incoming kernel is built without KEXEC_HANDOVER",
    HopChange(kernels={"incoming": "kernel-nokho"}, abi="none"),
    needs={Offer.KHO, Offer.ANY_KERNEL},
    expect=fails("handover.kho"),
)

luo_abi_skew = planned_fault(
    "luo-abi-skew",
    "the incoming kernel has another LUO ABI string",
    HopChange(kernels={"incoming": "kernel-skew"}, abi="other"),
    needs={Offer.LUO, Offer.ANY_KERNEL},
    expect=fails("handover.kho"),
)

panic_incoming = planned_fault(
    "panic-incoming",
    "the incoming kernel panics while it boots",
    # a missing init that was asked for by name is a panic, after everything else has come up
    HopChange(drop=("init",), add="init=/liveupdate-no-such-init"),
    expect=fails("handover.kho"),
)

hang_incoming = planned_fault(
    "hang-incoming",
    "the incoming kernel never gets to its agent",
    # a missing root disk with rootwait is waited for without end
    HopChange(drop=("root",), add="root=/dev/liveupdate-never rootwait"),
    expect=errs("handover.kho", 124),
)


@fault(
    "close-session",
    "the guest's LUO session is closed before the jump",
    at=Moment.BROWNOUT,
    expect=fails("handover.session"),
)
def close_session(bed: Testbed) -> Later:
    """Let the agent close the guest's session before the jump."""
    return ask_agent(bed, "close-session", guest=bed.first_guest.spec.name)


@fault(
    "freeze-refused",
    "the kernel refuses to preserve the VM state",
    at=Moment.BROWNOUT,
    expect=fails("handover.session", 5),
)
def freeze_refused(bed: Testbed) -> Later:
    """Let the agent's freeze fail."""
    return ask_agent(bed, "refuse-state", guest=bed.first_guest.spec.name)


@fault(
    "hang-outgoing",
    "the outgoing kernel hangs after the freeze and never jumps",
    at=Moment.BROWNOUT,
    expect=errs("handover.kho", 124),
)
def hang_outgoing(bed: Testbed) -> Later:
    """Let the agent hang the outgoing kernel after the freeze."""
    return ask_agent(bed, "spin-at-jump")


@fault(
    "cold-reset",
    "the machine is reset instead of kexec'ed",
    at=Moment.JUMP,
    needs={Capability.MONITOR},
    expect=fails("handover.kho"),
)
def cold_reset(bed: Testbed) -> Later:
    """Reset the machine in place of the jump."""
    deadline = Deadline.after(CALL_S, "the machine to be reset")
    qmp = bed.own_machine.qmp
    status = qmp.execute("query-status", {}, deadline)
    before = str(status.get("status")) if isinstance(status, dict) else "unknown"
    qmp.execute("system_reset", {}, deadline)

    def find_end() -> Struck | None:
        # -no-reboot turns any reset into the end
        for event in qmp.events():
            if event.name == "SHUTDOWN":
                after = f"SHUTDOWN, {event.data.get('reason')}"
                return struck("the machine", "its monitor", before, after, at_ns=event.at_ns)
        return None

    return find_end

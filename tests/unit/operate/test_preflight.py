# SPDX-License-Identifier: Apache-2.0
"""The preflight: a host that may be updated has no finding, and every finding can be had."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from liveupdate.core.units import GIB, MIB
from liveupdate.model import codec
from liveupdate.model.evidence import KernelFacts
from liveupdate.model.plan import KernelImage
from liveupdate.operate import preflight
from liveupdate.operate.preflight import Finding, Level, Local, check, refusals
from liveupdate.operate.survey import (
    AgentFacts,
    GuestFacts,
    GuestSpecFacts,
    KexecFacts,
    Opener,
    Stranger,
    Survey,
    VfioFacts,
    read_survey,
)
from liveupdate.planning.mechanisms import MECHANISMS

ABI = ("kho-v4", "luo-v5", "memfd-v2")
OPTIONS = {"KEXEC_HANDOVER": "y", "LIVEUPDATE": "y", "LIVEUPDATE_MEMFD": "y"}
BDF = "0000:01:00.0"
OK, WARN, REFUSE = Level.OK, Level.WARN, Level.REFUSE
Change = Callable[[Survey, Local], tuple[Survey, Local]]

FACTS = KernelFacts(
    boot_id="b",
    release="7.3-a",
    build_id="aaaa",
    cmdline="",
    tsc_khz=1000,
    kho_found=False,
    generation=0,
    luo_number=None,
    liveupdate=True,
    mem_free_bytes=GIB,
    preserved_bytes=0,
    scratch_bytes=256 * MIB,
)
GUEST = GuestFacts(
    spec=GuestSpecFacts(
        name="vm0",
        memory_bytes=128 * MIB,
        vcpus=1,
        pattern_bytes=4 * MIB,
        disk="d0",
        image="",
        qga=False,
    ),
    pid=100,
    status="running",
    adapter="cpr-reboot",
    disk="/dev/vdc",
    ram_bytes=128 * MIB,
    error=None,
)
SURVEY = Survey(
    facts=FACTS,
    abi=ABI,
    options=OPTIONS,
    kexec=KexecFacts(program=True, loaded=False, disabled=False),
    owners=(Opener(pid=7, name="python3"),),
    memory={"MemAvailable": 2 * GIB},
    run_free_bytes=GIB,
    guests={"vm0": GUEST},
    strangers=(),
    devices={},
    vfio=(),
    agent=AgentFacts(pid=7, handover="idle", update=None, unit=True),
)
RUNNING = KernelImage(path="/a", sha256="", release="7.3-a", build_id="aaaa", abi=ABI)
LOCAL = Local(
    incoming=KernelImage(path="/b", sha256="", release="7.3-b", build_id="bbbb", abi=ABI),
    incoming_bytes=8 * MIB,
    incoming_options=OPTIONS,
    outgoing=RUNNING,
    run_free_bytes=GIB,
    mechanism=MECHANISMS["luo-memfd"],
)


def found(survey: Survey, local: Local) -> list[Finding]:
    return [each for each in check(survey, local) if each.level is not OK]


def survey(**changes: Any) -> Change:
    return lambda survey, local: (replace(survey, **changes), local)


def part(name: str, **changes: Any) -> Change:
    """Change some of one part of the survey."""
    return survey(**{name: replace(getattr(SURVEY, name), **changes)})


def guest(**changes: Any) -> Change:
    return survey(guests={"vm0": replace(GUEST, **changes)})


def spec(**changes: Any) -> Change:
    return guest(spec=replace(GUEST.spec, **changes))


def local(**changes: Any) -> Change:
    return lambda survey, local: (survey, dataclasses.replace(local, **changes))


def incoming(**changes: Any) -> Change:
    return local(incoming=replace(LOCAL.incoming, **changes))


def all_of(*changes: Change) -> Change:
    def change(survey: Survey, local: Local) -> tuple[Survey, Local]:
        for each in changes:
            survey, local = each(survey, local)
        return survey, local

    return change


UNSAID = local(outgoing=None)
CASES: list[tuple[str, Level, str, Change]] = [
    (
        "lock", REFUSE, "update 'u2' of eve@there holds the host",
        part("agent", update={"id": "u2", "owner": "eve@there"}),
    ),
    ("lock", REFUSE, "its state is 'prepared'", part("agent", handover="prepared")),
    (
        "owner", REFUSE, "/dev/liveupdate is open in luod (9)",
        survey(owners=(Opener(pid=7, name="python3"), Opener(pid=9, name="luod"))),
    ),
    (
        "owner", REFUSE, "systemd from version 261 on",
        survey(owners=(Opener(pid=1, name="systemd"),)),
    ),
    ("owner", WARN, "/dev/liveupdate is not open", survey(owners=())),
    ("unit", WARN, "not started by systemd", part("agent", unit=False)),
    ("kernel.same", WARN, "runs this very build already", incoming(build_id="aaaa")),
    (
        "kernel.liveupdate", REFUSE, "boot it with 'kho=on liveupdate=on'",
        part("facts", liveupdate=False),
    ),
    ("kexec", REFUSE, "install kexec-tools", part("kexec", program=False)),
    ("kexec", REFUSE, "kexec_load_disabled is 1", part("kexec", disabled=True)),
    ("kexec", REFUSE, "has no kexec (CONFIG_KEXEC_FILE)", part("kexec", loaded=None)),
    (
        "kernel.running.config", WARN, "the running kernel does not show its configuration",
        survey(options=None),
    ),
    (
        "kernel.running.config", REFUSE, "the running kernel lacks CONFIG_LIVEUPDATE_MEMFD",
        survey(options={**OPTIONS, "LIVEUPDATE_MEMFD": "n"}),
    ),
    (
        "kernel.incoming.config", WARN, "the incoming kernel does not show its configuration",
        local(incoming_options=None),
    ),
    (
        "kernel.incoming.config", REFUSE, "CONFIG_LIVEUPDATE CONFIG_LIVEUPDATE_MEMFD",
        local(incoming_options={"KEXEC_HANDOVER": "y"}),
    ),
    (
        "abi", REFUSE, "'/a' is not the running kernel",
        local(outgoing=replace(RUNNING, build_id="cccc")),
    ),
    ("abi", REFUSE, "the incoming kernel has no 'memfd'", incoming(abi=ABI[:2])),
    (
        "abi", REFUSE, "hands over luo-v5, the incoming one reads luo-v6",
        incoming(abi=("kho-v4", "luo-v6", "memfd-v2")),
    ),
    (
        "abi", WARN, "debugfs does not say which 'memfd'",
        all_of(UNSAID, survey(abi=ABI[:2])),
    ),
    (
        "abi", REFUSE, "hands over kho-v3, the incoming one reads kho-v4",
        all_of(UNSAID, survey(abi=("kho-v3", *ABI[1:]))),
    ),
    ("guest", REFUSE, "the agent runs no guest", survey(guests={})),
    ("guest", REFUSE, "VMM ended with status 1", guest(error="VMM ended with status 1")),
    ("guest", REFUSE, "says 'paused', not 'running'", guest(status="paused")),
    ("guest", REFUSE, "no migration mode that fits", guest(adapter=None)),
    ("guest", REFUSE, "does not hold all of its memory", guest(ram_bytes=64 * MIB)),
    ("guest", REFUSE, "does not hold all of its memory", guest(ram_bytes=None)),
    ("guest", REFUSE, "its disk 'd0' is not there", guest(disk=None)),
    ("guest", WARN, "there is no way to see whether it lives", spec(image="debian")),
    ("guest.liveness", REFUSE, "neither the shipped payload nor", spec(image="debian")),
    (
        "stranger", REFUSE, "web (qemu-system-x86 55, of libvirt), unnamed (crosvm 56)",
        survey(strangers=(
            Stranger(pid=55, name="qemu-system-x86", guest="web", libvirt=True),
            Stranger(pid=56, name="crosvm", guest="", libvirt=False),
        )),
    ),
    (
        "device", REFUSE, "but not by the agent",
        survey(vfio=(VfioFacts(bdf=BDF, keep="ready"),)),
    ),
    (
        "device", WARN, "cannot keep its DMA running",
        survey(vfio=(VfioFacts(bdf=BDF, keep=None),), devices={"nic0": {"bdf": BDF}}),
    ),
    ("memory", REFUSE, "100 MiB available", survey(memory={"MemAvailable": 100 * MIB})),
    ("memory", WARN, "does not say how much memory is available", survey(memory={})),
    ("scratch", REFUSE, "too little to boot", part("facts", scratch_bytes=8 * MIB)),
    ("scratch", WARN, "is not known (no debugfs)", part("facts", scratch_bytes=None)),
    ("disk.host", REFUSE, "free in the host's /run", survey(run_free_bytes=8 * MIB)),
    ("disk.control", REFUSE, "free for the run directory here", local(run_free_bytes=8 * MIB)),
    ("console", WARN, "cannot be read: no such file", local(console="no such file")),
]  # fmt: skip


def test_a_host_that_may_be_updated_has_no_finding() -> None:
    assert found(SURVEY, LOCAL) == []
    assert not refusals(check(SURVEY, LOCAL))


@pytest.mark.parametrize(
    ("id_", "level", "text", "change"),
    CASES,
    ids=[f"{id_}-{level.value}-{number}" for number, (id_, level, _, _) in enumerate(CASES)],
)
def test_each_finding_is_made_when_it_has_to_be(
    id_: str, level: Level, text: str, change: Change
) -> None:
    findings = found(*change(SURVEY, LOCAL))
    said = [each for each in findings if (each.id, each.level) == (id_, level)]
    assert said, findings
    assert any(text in f"{each.text} {each.hint}" for each in said), said
    assert bool(refusals(said)) == (level is REFUSE)


def test_no_finding_is_left_out_here() -> None:
    source = inspect.getsource(preflight)
    made = set(re.findall(r'_(warn|refuse)\(\s*"([a-z.]+)"', source))
    # that of the kernels' configurations is put together
    assert source.count("_warn(id_,") == source.count("_refuse(id_,") == 1
    for place in ("running", "incoming"):
        made |= {("warn", f"kernel.{place}.config"), ("refuse", f"kernel.{place}.config")}
    made |= {("warn", "guest")}  # ok or warn, as the guest can be seen
    assert made == {(level.value, id_) for id_, level, _, _ in CASES}


def test_an_update_of_our_own_is_no_obstacle() -> None:
    survey = replace(
        SURVEY, agent=replace(SURVEY.agent, handover="prepared", update={"id": "u1", "owner": "me"})
    )
    assert refusals(check(survey, LOCAL))
    assert found(survey, dataclasses.replace(LOCAL, own="u1")) == []


def test_a_guest_with_an_agent_of_its_own_can_be_seen() -> None:
    spec = replace(GUEST.spec, image="debian", qga=True)
    survey = replace(SURVEY, guests={"vm0": replace(GUEST, spec=spec)})
    assert found(survey, LOCAL) == []


def test_a_stranger_refusals_once_and_nothing_is_promised() -> None:
    strangers = tuple(
        Stranger(pid=number, name="qemu", guest=f"g{number}", libvirt=True) for number in (3, 4)
    )
    (refusal,) = found(replace(SURVEY, strangers=strangers), LOCAL)
    assert refusal.level is REFUSE
    assert "managedsave" not in refusal.hint


def test_an_answer_of_another_protocol_is_none() -> None:
    with pytest.raises(codec.CodecError):
        read_survey({"facts": {}})

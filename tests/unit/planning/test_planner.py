# SPDX-License-Identifier: Apache-2.0
"""Scenario to plan: what is resolved, and what is refused before anything is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from liveupdate.core.errors import PlanError, ScenarioError
from liveupdate.core.units import GIB, MIB
from liveupdate.faults.base import Part
from liveupdate.faults.table import FAULTS
from liveupdate.judging.table import CHECK_IDS
from liveupdate.model.plan import TSC_KHZ, ImageSet, Plan, Region
from liveupdate.model.scenario import (
    DeviceSpec,
    GuestSpec,
    HostSpec,
    IommuSpec,
    Observation,
    Scenario,
)
from liveupdate.model.targets import TARGETS, Capability
from liveupdate.planning.faults import not_of_mechanism
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.planning.planner import (
    MachineFacts,
    fill_append,
    host_memory,
    make_plan,
)
from tests.support.planner_inputs import IMAGES, MACHINE, kernel

NO_KHO = replace(IMAGES, incoming=kernel("b", ()))
SKEWED = replace(IMAGES, incoming=kernel("b", ("kho-v4", "luo-v6", "memfd-v2")))


def plan(scenario: Scenario | None = None, images: ImageSet = IMAGES) -> Plan:
    return make_plan(scenario or Scenario(), images, MACHINE)


def guests(*sizes_mib: int) -> tuple[GuestSpec, ...]:
    return tuple(
        GuestSpec(name=f"vm{index}", memory_bytes=size * MIB)
        for index, size in enumerate(sizes_mib)
    )


def test_default_plan_says_all_that_a_run_needs() -> None:
    made = plan()
    assert made.machine.memory_bytes == 2 * GIB
    assert made.machine.disks == (("vm0", 16 * MIB),)
    assert made.boot_append == (
        "console=ttyS0 root=/dev/vda ro init=/liveupdate-init net.ifnames=0 panic=-1 loglevel=6 "
        "no_timer_check tsc=reliable setcpuid=constant_tsc,nonstop_tsc kvm_amd.exit_on_inject=1 "
        "kho=on liveupdate=on intel_iommu=on"
    )
    (hop,) = made.hops
    # the kernel reads only the last setcpuid=
    assert hop.append == (
        "console=ttyS0 root=/dev/vda ro init=/liveupdate-init net.ifnames=0 panic=-1 loglevel=6 "
        "no_timer_check tsc=reliable kvm_amd.exit_on_inject=1 kho=on liveupdate=on intel_iommu=on "
        f"tsc_early_khz={TSC_KHZ} setcpuid=constant_tsc,nonstop_tsc,tsc_known_freq"
    )
    assert (hop.number, hop.incoming, hop.loader) == (1, IMAGES.incoming, "file")
    assert made.fault is None
    assert made.state_digests is True


def test_a_seed_of_the_fault_is_planned_and_otherwise_left_to_the_run() -> None:
    for seed, planned in ((7, 7), (0, 0), (None, UNSET)):
        made = plan(Scenario(fault="flip-state", fault_seed=seed))
        assert made.fault is not None and made.fault.seed == planned


def test_hops_alternate_between_the_two_kernels() -> None:
    made = plan(Scenario(hops=4))
    assert [hop.incoming.build_id for hop in made.hops] == ["b", "a", "b", "a"]
    assert [hop.number for hop in made.hops] == [1, 2, 3, 4]


def test_users_words_reach_the_kernels_they_are_meant_for() -> None:
    made = plan(Scenario(host=HostSpec(append="both=1", next_append="next=1")))
    assert made.boot_append.endswith(" both=1")
    assert "next=1" not in made.boot_append
    assert {"both=1", "next=1"} < set(made.hops[0].append.split())


def test_calibration_is_filled_in_or_left_out() -> None:
    append = plan().hops[0].append
    assert fill_append(append, 2596115).endswith(
        " tsc_early_khz=2596115 setcpuid=constant_tsc,nonstop_tsc,tsc_known_freq"
    )
    left_out = fill_append(append, None).split()
    assert sorted(left_out) == sorted(plan().boot_append.split())
    assert fill_append(f"a tsc_early_khz={TSC_KHZ} setcpuid=tsc_known_freq", None) == "a"
    assert fill_append("setcpuid=x", None) == "setcpuid=x"
    uncalibrated = plan(Scenario(calibration=False)).hops[0].append
    assert "tsc_early_khz" not in uncalibrated
    assert "tsc_known_freq" not in uncalibrated


def test_users_cpu_flags_are_not_lost_behind_ours() -> None:
    made = plan(Scenario(host=HostSpec(append="setcpuid=a", next_append="setcpuid=b,a")))
    flags = "constant_tsc,nonstop_tsc,a"
    assert [w for w in made.boot_append.split() if "setcpuid" in w] == [f"setcpuid={flags}"]
    words = [w for w in made.hops[0].append.split() if "setcpuid" in w]
    assert words == ["setcpuid=constant_tsc,nonstop_tsc,a,tsc_known_freq,b"]


def test_every_fault_of_the_plan_changes_it_and_no_other_does() -> None:
    planned = {name for name, fault in FAULTS.items() if fault.where == "plan"}
    devices = {
        name: (NIC,) if Part.DEVICE in fault.needs else (OWN,)
        for name, fault in FAULTS.items()
        if fault.needs & {Part.DEVICE, Part.GUEST_CARD}
    }
    special = {"kernel-without-kho": NO_KHO, "luo-abi-skew": SKEWED}
    for mechanism in MECHANISMS.values():
        plain = plan(Scenario(mechanism=mechanism.name)).hops
        for name, fault in FAULTS.items():
            if not_of_mechanism(fault, mechanism) is not None:
                continue
            if name in devices and mechanism.name != "luo-memfd":
                continue  # devices go with that one only
            # what is changed for this one is its kernels
            images = replace(IMAGES, incoming=kernel("s")) if name == "stock-kernel" else IMAGES
            scenario = Scenario(
                fault=name,
                mechanism=mechanism.name,
                devices=devices.get(name, ()),
            )
            made = plan(scenario, special.get(name, images))
            assert made.fault is not None
            assert made.fault.expected == fault.expected
            assert (made.hops != plain) == (name in planned)


def test_every_fault_says_something_about_some_mechanism() -> None:
    for fault in FAULTS.values():
        reasons = [not_of_mechanism(fault, mechanism) for mechanism in MECHANISMS.values()]
        assert None in reasons
        assert all(reason is None or reason for reason in reasons)


def faults_of(mechanism: str) -> set[str]:
    """Return the faults that apply to a mechanism only now and then, and do to this one."""
    all_over = {
        name
        for name, fault in FAULTS.items()
        if not any(not_of_mechanism(fault, each) for each in MECHANISMS.values())
    }
    applies = {
        name for name, fault in FAULTS.items() if not not_of_mechanism(fault, MECHANISMS[mechanism])
    }
    return applies - all_over


SWITCHES = {"kho-off", "liveupdate-off", "kexec-load", "kernel-without-kho", "luo-abi-skew"}
SET_ASIDE = {"region-missing", "region-size"}
DESCRIBED = {"region-corrupt", "region-version", "region-full"}


@pytest.mark.parametrize(
    ("mechanism", "faults"),
    [
        ("luo-memfd", {"move-page", *SWITCHES}),
        ("breadcrumb", {"wrong-pointer", *SET_ASIDE, *DESCRIBED}),
        ("pkernfs", SET_ASIDE | DESCRIBED),
        ("pkram", {"kexec-load", *DESCRIBED}),
        ("pool", SET_ASIDE | DESCRIBED),
        ("prmem", {"kexec-load", "kho-off", *DESCRIBED}),
        ("reserve-mem", {"kexec-load", *SET_ASIDE, *DESCRIBED}),
        ("reserved-dax", SET_ASIDE | DESCRIBED),
    ],
)
def test_faults_of_a_mechanism_follow_from_what_it_offers(mechanism: str, faults: set[str]) -> None:
    assert faults_of(mechanism) == faults


def test_fault_that_says_nothing_about_the_mechanism_is_refused_with_the_reason() -> None:
    scenario = Scenario(mechanism="reserved-dax", fault="kho-off", origins={"fault": "--fault"})
    with pytest.raises(ScenarioError, match="--fault: .*'kho-off'.*'reserved-dax'.*without KHO"):
        plan(scenario)


def test_region_is_on_every_command_line_and_does_not_need_kho() -> None:
    made = plan(Scenario(mechanism="reserved-dax", hops=2), images=NO_KHO)
    assert made.region == Region(start=1536 * MIB, size_bytes=384 * MIB)
    assert made.machine.memory_bytes == 2 * GIB
    for append in (made.boot_append, *(hop.append for hop in made.hops)):
        assert {"memmap=0x18000000!0x60000000", "kho=off"} <= set(append.split())
    assert made.witnesses == ()
    assert "does without KHO" in dict(made.skips)["handover.generation"]


def test_region_of_another_size_is_for_the_first_hop_only() -> None:
    made = plan(Scenario(mechanism="reserved-dax", hops=2, fault="region-size"))
    assert "memmap=0x10000000!0x60000000" in made.hops[0].append.split()
    assert "memmap=0x18000000!0x60000000" in made.hops[1].append.split()
    gone = plan(Scenario(mechanism="reserved-dax", fault="region-missing")).hops[0].append
    assert "memmap" not in gone


def test_region_that_the_kernel_places_has_a_size_only() -> None:
    made = plan(Scenario(mechanism="reserve-mem", hops=2, fault="region-size"))
    assert made.region == Region(start=None, size_bytes=384 * MIB)
    assert "reserve_mem=0x18000000:2M:liveupdate" in made.boot_append.split()
    assert "reserve_mem=0x10000000:2M:liveupdate" in made.hops[0].append.split()
    assert "reserve_mem=0x18000000:2M:liveupdate" in made.hops[1].append.split()
    gone = plan(Scenario(mechanism="reserve-mem", fault="region-missing")).hops[0].append
    assert "reserve_mem" not in gone
    assert made.witnesses == ("kho",)
    assert "handover.generation" not in dict(made.skips)


def test_region_that_the_kernel_places_has_room_beside_early_allocations() -> None:
    made = plan(Scenario(mechanism="reserve-mem", guests=guests(1024, 1024)))
    fixed = plan(Scenario(mechanism="pool", guests=guests(1024, 1024)))
    assert made.region is not None
    assert fixed.machine.memory_bytes - 2 * GIB == made.region.size_bytes  # all above the hole
    # 64 bytes for each page of 4 KiB, and what is allocated before
    rest = made.machine.memory_bytes - 2 * GIB - made.region.size_bytes
    assert rest >= made.machine.memory_bytes // 64 + 64 * MIB


def test_region_that_has_no_place_is_refused() -> None:
    host = HostSpec(memory_bytes=1088 * MIB)
    scenario = Scenario(mechanism="reserved-dax", host=host, guests=guests(512))
    with pytest.raises(ScenarioError, match="has no place for a region of 640 MiB"):
        plan(scenario)


@pytest.mark.parametrize(
    ("fault", "has", "lacks"),
    [
        ("kho-off", "kho=off", "kho=on"),
        ("liveupdate-off", "liveupdate=off", "liveupdate=on"),
        ("panic-incoming", "init=/liveupdate-no-such-init", "init=/liveupdate-init"),
        ("hang-incoming", "rootwait", "root=/dev/vda"),
        ("tsc-skew", "tsc_early_khz={tsc_khz_skewed}", "tsc_early_khz={tsc_khz}"),
    ],
)
def test_fault_changes_words_of_the_first_hop_only(fault: str, has: str, lacks: str) -> None:
    made = plan(Scenario(fault=fault, hops=2))
    words = made.hops[0].append.split()
    assert has in words
    assert lacks not in words
    assert has not in made.boot_append.split()
    assert has not in made.hops[1].append.split()


def test_skewed_calibration_is_three_percent_off() -> None:
    append = plan(Scenario(fault="tsc-skew")).hops[0].append
    assert "tsc_early_khz=2060000" in fill_append(append, 2000000)
    assert not plan(Scenario(fault="tsc-skew")).calibration


def test_kexec_load_is_the_legacy_loader() -> None:
    assert plan(Scenario(fault="kexec-load")).hops[0].loader == "legacy"


def test_fault_is_planned_to_leave_a_record() -> None:
    planned = plan(Scenario(fault="flip-bit")).fault
    assert planned is not None and planned.proves is True


def test_kernels_without_what_the_mechanism_needs_are_refused() -> None:
    with pytest.raises(PlanError, match=r"outgoing kernel: with '/k/a' .* 'refused': .* no KHO"):
        plan(images=replace(IMAGES, outgoing=kernel("a", ())))
    with pytest.raises(
        PlanError, match=r"incoming kernel: with '/k/b' .* 'memory lost': .* no KHO"
    ):
        plan(images=NO_KHO)
    with pytest.raises(PlanError, match="has no LUO"):
        plan(images=replace(IMAGES, incoming=kernel("b", ("kho-v4",))))


def test_kernel_of_the_user_is_named_by_its_option() -> None:
    scenario = Scenario(next_kernel="/k/b", origins={"next_kernel": "--next-kernel"})
    with pytest.raises(PlanError, match="--next-kernel: with '/k/b' .*no KHO"):
        plan(scenario, NO_KHO)


def test_incoming_kernel_of_another_abi_is_refused() -> None:
    with pytest.raises(PlanError, match="'panic': luo-v5 -> luo-v6"):
        plan(images=SKEWED)


def test_parameters_have_the_names_that_each_kernel_knows() -> None:
    old = replace(IMAGES.outgoing, features=("kho_scratch=",))
    new = replace(IMAGES.incoming, features=("kho_bootmem=",))
    host = HostSpec(append="kho_scratch=64M,64M,64M")
    made = plan(Scenario(host=host), replace(IMAGES, outgoing=old, incoming=new))
    assert "kho_scratch=64M" in made.boot_append
    assert "kho_bootmem=64M" in made.hops[0].append and "scratch" not in made.hops[0].append
    host = HostSpec(append="kho_bootmem=64M,64M,64M")
    assert "kho_scratch=64M" in plan(Scenario(host=host), replace(IMAGES, outgoing=old)).boot_append
    # a kernel that says nothing gets what was asked for
    assert "kho_bootmem=64M" in plan(Scenario(host=host)).boot_append


def test_jump_anyway_and_faults_of_kernels_bypass_the_refusal() -> None:
    assert plan(Scenario(jump_anyway=True), SKEWED).hops
    assert plan(Scenario(fault="luo-abi-skew"), SKEWED).hops
    with pytest.raises(PlanError, match="luo-v5 -> luo-v6"):
        plan(Scenario(fault="flip-bit"), SKEWED)


def test_what_our_testbed_needs_is_not_asked_of_a_machine_that_boots_by_itself() -> None:
    images = replace(IMAGES, incoming=replace(IMAGES.incoming, lacks=("VIRTIO_BLK=m",)))
    with pytest.raises(PlanError, match="'panic': .*VIRTIO_BLK=m"):
        plan(images=images)
    assert make_plan(Scenario(target="ssh:box"), images, lab("scratch")).hops


def test_faults_of_kernels_need_such_kernels() -> None:
    with pytest.raises(PlanError, match="needs a kernel without KHO"):
        plan(Scenario(fault="kernel-without-kho"))
    with pytest.raises(PlanError, match="needs a kernel of another ABI"):
        plan(Scenario(fault="luo-abi-skew"))


def test_unknown_names_get_a_suggestion_and_their_origin() -> None:
    with pytest.raises(ScenarioError, match="--fault: unknown fault 'flip-bits'.*'flip-bit'"):
        plan(Scenario(fault="flip-bits", origins={"fault": "--fault"}))
    with pytest.raises(ScenarioError, match="s.toml:3: unknown mechanism.*'luo-memfd'"):
        plan(Scenario(mechanism="luo-memfs", origins={"mechanism": "s.toml:3"}))


def test_fault_that_nothing_could_see_is_refused() -> None:
    with pytest.raises(ScenarioError, match="observe.memory is false"):
        plan(Scenario(fault="flip-bit", observe=Observation(memory=False)))
    own = GuestSpec(name="vm0", image="/x", liveness="agent")
    with pytest.raises(ScenarioError, match="needs the shipped payload"):
        plan(Scenario(fault="clock-jump", guests=(own,)))


def test_too_little_room_is_refused() -> None:
    with pytest.raises(PlanError, match=r"2 guests with 1 GiB in all needs .* RAM"):
        make_plan(Scenario(guests=guests(512, 512)), IMAGES,
                  dataclasses.replace(MACHINE, ram_available_bytes=2 * GIB))  # fmt: skip
    with pytest.raises(PlanError, match="--results: .* needed"):
        make_plan(Scenario(), IMAGES, dataclasses.replace(MACHINE, run_free_bytes=1 * MIB))
    small = Scenario(
        host=HostSpec(memory_bytes=1 * GIB), guests=guests(1024), origins={"host.memory": "x:2"}
    )
    with pytest.raises(ScenarioError, match="x:2: host.memory 1 GiB does not hold 1 guest"):
        plan(small)


def test_command_line_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(ScenarioError, match="at most 2047"):
        plan(Scenario(host=HostSpec(append="a" * 2000)))


def test_size_of_own_image_is_the_size_of_its_disk() -> None:
    own = GuestSpec(name="vm0", image="/x", liveness="agent")
    made = make_plan(
        Scenario(guests=(own,)), IMAGES, dataclasses.replace(MACHINE, image_bytes={"/x": 3 * GIB})
    )
    assert made.machine.disks == (("vm0", 3 * GIB),)


def test_skips_name_known_checks_with_reasons() -> None:
    def skips(scenario: Scenario) -> dict[str, str]:
        return dict(plan(scenario).skips)

    default = skips(Scenario())
    assert set(default) == {
        check for check in CHECK_IDS if check.startswith(("iommu.", "device."))
    } | {"budget.blackout"}
    assert all(default.values())
    agent = GuestSpec(name="vm0", image="/x", liveness="agent")
    network = GuestSpec(name="vm1", image="/y", liveness="network", address="192.0.2.1")
    assert {"guest.storage", "guest.network"} <= set(skips(Scenario(guests=(agent,))))
    assert {"guest.storage", "guest.clock"} <= set(skips(Scenario(guests=(network,))))
    assert "guest.clock" not in skips(Scenario(guests=(agent, network)))
    assert "memory.content" in skips(Scenario(observe=Observation(memory=False)))


@given(st.lists(st.integers(48, 2048), min_size=1, max_size=8))
def test_host_always_holds_its_guests(halves: list[int]) -> None:
    scenario = Scenario(guests=guests(*(2 * size for size in halves)))
    total = sum(guest.memory_bytes for guest in scenario.guests)
    assert host_memory(scenario, MECHANISMS["luo-memfd"]) >= max(2 * GIB, total + 1280 * MIB)
    assert host_memory(scenario, MECHANISMS["luo-memfd"]) % (128 * MIB) == 0


def test_same_guests_have_the_same_seed() -> None:
    assert plan().seed == plan(Scenario(hops=3, fault="kho-off")).seed
    assert plan().seed != plan(Scenario(guests=guests(512))).seed
    assert 0 <= plan().seed < 1 << 64


def test_each_hop_has_its_time_unless_the_user_sets_that_of_the_run() -> None:
    assert plan().timeouts.total_s == 900.0
    assert plan(Scenario(hops=3)).timeouts.total_s == 1500.0
    told = Scenario(hops=3, origins={"timeouts.total": "--set"})
    assert plan(told).timeouts.total_s == 900.0


# --- devices and the IOMMU

NIC = DeviceSpec(name="nic0")
#: a guest's own
OWN = replace(NIC, guest="vm0", tier="quiesce")


@pytest.mark.parametrize(
    ("shown_s", "rate"),
    [(None, 227), (1.0, 1000), (4.0, 341), (60.0, 200)],
    ids=["none", "short", "long", "too-long"],
)
def test_a_ring_has_room_for_three_times_the_blackout_that_was_shown(
    shown_s: float | None, rate: int
) -> None:
    machine = dataclasses.replace(MACHINE, blackout_s=shown_s)
    fast = replace(NIC, rate=1000)
    (paced,) = make_plan(Scenario(devices=(fast,)), IMAGES, machine).devices
    assert paced == replace(NIC, rate=rate)
    slow = Scenario(devices=(replace(NIC, rate=50),))
    assert make_plan(slow, IMAGES, machine).devices == slow.devices


def test_continuous_device_is_planned_and_judged() -> None:
    made = plan(Scenario(devices=(NIC,)))
    assert made.devices == (NIC,)
    assert made.machine.devices == (("nic0", "igb"),)
    assert "device.dma-continuity" not in dict(made.skips)
    assert "device.dma-continuity" in dict(plan().skips)


@pytest.mark.parametrize(
    ("iommu", "word"),
    [
        (IommuSpec(), "intel_iommu=on"),
        (IommuSpec(scalable=True), "intel_iommu=on,sm_on"),
        (IommuSpec(kind="amd"), None),
        (IommuSpec(kind="none"), None),
    ],
    ids=str,
)
def test_iommu_of_both_kernels(iommu: IommuSpec, word: str | None) -> None:
    made = plan(Scenario(iommu=iommu))
    assert (made.machine.iommu, made.machine.scalable) == (iommu.kind, iommu.scalable)
    for append in (made.boot_append, made.hops[0].append):
        found = [each for each in append.split() if each.startswith("intel_iommu")]
        assert found == ([word] if word else [])


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        (Scenario(iommu=IommuSpec(kind="amd", scalable=True)), "no scalable mode"),
        (
            Scenario(devices=(NIC,), iommu=IommuSpec(kind="amd")),
            "keep the tables of an IOMMU of kind 'intel'",
        ),
        (Scenario(devices=(NIC,), iommu=IommuSpec(kind="none")), "without an IOMMU"),
        (Scenario(devices=(replace(NIC, kind="nvme", tier="quiesce"),)), "reads that were in"),
    ],
    ids=["scalable", "amd", "none", "nvme"],
)
def test_devices_that_cannot_be_kept_are_refused(scenario: Scenario, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        plan(scenario)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guest": "vm9"}, "there is no guest 'vm9'"),
        ({"tier": "continuous"}, "a guest's own device stops for the update"),
        ({"kind": "edu"}, "no guest has a driver for kind 'edu'"),
        ({"mapped_bytes": MIB}, "what is mapped for it is its guest's memory"),
    ],
    ids=["guest", "tier", "kind", "mapped"],
)
def test_guests_own_device_that_makes_no_sense_is_refused(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ScenarioError, match=said):
        plan(Scenario(devices=(replace(OWN, **changes),)))


def test_guests_own_device_needs_our_payload_one_journal_and_no_fault() -> None:
    user = GuestSpec(name="vm0", image="disk.raw", liveness="agent")
    with pytest.raises(ScenarioError, match="only the shipped payload sleeps"):
        plan(Scenario(guests=(user,), devices=(OWN,)))
    disks = tuple(replace(OWN, name=f"disk{number}", kind="nvme") for number in (0, 1))
    with pytest.raises(ScenarioError, match="keeps a journal on one"):
        plan(Scenario(devices=disks))
    mixed = (OWN, replace(OWN, name="nic1", access="cdev"))
    with pytest.raises(ScenarioError, match="one VMM opens all devices of 'vm0' in the same way"):
        plan(Scenario(devices=mixed))
    with pytest.raises(ScenarioError, match="strikes a device of the host's own driver"):
        plan(Scenario(devices=(OWN,), fault="reset-device"))
    for other in (NIC, replace(OWN, kind="nvme")):
        with pytest.raises(ScenarioError, match="a guest's own network card, and 'nic0' is none"):
            plan(Scenario(devices=(other,), fault="guest-link-cut"))


def test_guests_own_devices_are_watched_and_their_machine_is_booted_anew() -> None:
    made = plan(Scenario(devices=(OWN, replace(OWN, name="disk0", kind="nvme"))))
    assert made.cold
    assert made.machine.devices == (("nic0", "igb"), ("disk0", "nvme"))
    assert not [check for check, _ in made.skips if check.startswith(("iommu.", "device."))]


def test_device_that_is_let_go_is_watched_as_the_others_are() -> None:
    made = plan(Scenario(devices=(replace(NIC, tier="quiesce"),)))
    skipped = dict(made.skips)
    assert not [check for check in skipped if check.startswith(("iommu.", "device."))]


@pytest.mark.parametrize("kind", ["nvme", "edu"])
def test_what_qemu_cannot_save_is_booted_anew(kind: str) -> None:
    assert plan(Scenario(devices=(replace(NIC, kind=kind),))).cold
    assert not plan(Scenario(devices=(NIC,))).cold


def test_memory_that_is_mapped_for_a_device_is_part_of_the_hosts() -> None:
    large = replace(NIC, mapped_bytes=1024 * MIB)
    more = plan(Scenario(devices=(large,))).machine.memory_bytes
    assert more >= plan(Scenario(devices=(NIC,))).machine.memory_bytes + 512 * MIB


def test_frames_can_only_be_dropped_on_their_way_to_who_is_sent_any() -> None:
    reader = replace(NIC, kind="nvme")
    with pytest.raises(ScenarioError, match="none are sent to device 'nic0' of kind 'nvme'"):
        plan(Scenario(devices=(reader,), fault="drop-frames"))


def test_frames_need_room_in_the_run_directory() -> None:
    small = dataclasses.replace(MACHINE, run_free_bytes=100 * MIB)
    make_plan(Scenario(), IMAGES, small)
    with pytest.raises(PlanError, match="--results"):
        make_plan(Scenario(hops=20, devices=(replace(NIC, rate=5000),)), IMAGES, small)


def test_every_check_of_devices_is_expected_with_a_device_and_skipped_without() -> None:
    checks = {check for check in CHECK_IDS if check.startswith(("iommu.", "device."))}
    assert checks <= set(dict(plan().skips))
    assert not checks & set(dict(plan(Scenario(devices=(DeviceSpec(name="nic0"),))).skips))


def test_fault_of_a_device_needs_one() -> None:
    with pytest.raises(ScenarioError, match="strikes a device") as caught:
        plan(Scenario(fault="drop-frames"))
    assert "vfio-continuous" in str(caught.value.hint)
    made = plan(Scenario(fault="drop-frames", devices=(NIC,)))
    assert made.fault is not None
    assert made.fault.expected.check == "device.dma-continuity"


# --- targets


def test_the_plan_says_where_the_target_is() -> None:
    made = make_plan(
        Scenario(target="libvirt"), IMAGES, dataclasses.replace(MACHINE, place="qemu:///session")
    )
    assert (made.target, made.place) == ("libvirt", "qemu:///session")
    made = plan(Scenario(target="libvirt:qemu:///system"))
    assert (made.target, made.place) == ("libvirt", "qemu:///system")


def lab(*disks: str) -> MachineFacts:
    return dataclasses.replace(
        MACHINE, accel="remote", place="/etc/box.toml", append="console=ttyS1", guest_disks=disks
    )


def test_a_machine_of_a_lab_keeps_its_own_command_line_and_disks() -> None:
    made = make_plan(Scenario(target="ssh:box"), IMAGES, lab("scratch"))
    assert made.boot_append == "console=ttyS1 kho=on liveupdate=on"
    assert made.guest_disks == ("scratch",)
    assert made.cold is True


def test_what_is_not_seen_over_ssh_is_skipped_with_the_reason() -> None:
    made = make_plan(Scenario(target="ssh:box"), IMAGES, lab("scratch"))
    own = dict(plan().skips)
    more = {check: why for check, why in made.skips if check not in own}
    assert set(more) == {"guest.clock", "guest.network", "guest.storage"}
    assert all(why.startswith("target 'ssh': ") for why in more.values())


@pytest.mark.parametrize("target", ["libvirt", "ssh:box"])
def test_devices_are_for_our_own_machine_only(target: str) -> None:
    with pytest.raises(ScenarioError, match="cannot run a scenario with devices: "):
        make_plan(Scenario(target=target, devices=(NIC,)), IMAGES, lab("scratch"))


def test_more_guests_than_the_lab_has_disks_are_refused() -> None:
    with pytest.raises(PlanError, match="box.toml: 2 guests need 2 disks, 'disks' names 1"):
        make_plan(Scenario(target="ssh:box", guests=guests(256, 256)), IMAGES, lab("scratch"))


def test_only_our_own_qemu_is_started_from_a_saved_host() -> None:
    assert plan().cold is False
    assert plan(Scenario(target="libvirt")).cold is True


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_fault_that_the_target_cannot_inject_is_refused_with_the_reason(target: str) -> None:
    kind = TARGETS[target]
    text = target if kind.place != "required" else f"{target}:there"
    refused = set()
    for name, fault in FAULTS.items():
        if not fault.needs & set(Capability):
            continue
        mechanism = next(m.name for m in MECHANISMS.values() if not not_of_mechanism(fault, m))
        scenario = Scenario(
            target=text, fault=name, mechanism=mechanism, origins={"fault": "--fault"}
        )
        missing = (fault.needs & set(Capability)) - kind.capabilities
        if not missing:
            made = plan(scenario)
            assert made.fault is not None and made.fault.name == name
            continue
        refused.add(name)
        with pytest.raises(ScenarioError, match=f"--fault: target '{target}' cannot") as caught:
            plan(scenario)
        assert any(kind.lacks[Capability(need)] in str(caught.value) for need in missing)
    assert refused == REFUSED[target]


REFUSED: dict[str, set[str]] = {
    "qemu": set(),
    "libvirt": {"qmp-drop"},
    "ssh": {
        "flip-bit", "flip-state", "region-corrupt", "region-version", "clock-jump", "tsc-skew",
        "cold-reset", "guest-disk-lost", "ssh-drop", "qmp-drop", "qemu-killed",
    },
}  # fmt: skip


_LAB = {Capability.POWER, Capability.CONSOLE, Capability.AGENT, Capability.SSH}
_EMULATED = _LAB | {
    Capability.PHYSICAL_MEMORY,
    Capability.MONITOR,
    Capability.WIRE,
    Capability.CLOCK,
    Capability.MADE,
    Capability.PROCESS,
}
_SHIPPED = {Capability.MONITOR_CUT, Capability.DEVICES, Capability.SAVE}
CAPABILITIES = {"qemu": _EMULATED | _SHIPPED, "libvirt": _EMULATED, "ssh": _LAB}


def test_a_target_has_a_capability_or_says_why_not() -> None:
    for kind in TARGETS.values():
        # whatever is not there has a reason, for a SKIP or a refusal to name
        assert kind.capabilities == CAPABILITIES[kind.name]
        assert all(kind.lacks.values())


def test_the_default_mechanism_is_the_first_that_is_listed() -> None:
    assert next(iter(MECHANISMS)) == Scenario().mechanism


def test_every_fault_takes_a_scenario_that_is_shipped() -> None:
    shipped = {path.stem for path in (Path(__file__).parents[3] / "scenarios").glob("*.toml")}
    assert {fault.scenario for fault in FAULTS.values()} <= shipped


def test_clocks_of_a_guest_that_sleeps_cannot_go_on() -> None:
    card = DeviceSpec(name="nic0", kind="igb", tier="quiesce", guest="vm0")
    with pytest.raises(ScenarioError, match="wakes up sets its clocks by itself"):
        plan(Scenario(clock="continuous", devices=(card,)))
    assert plan(Scenario(clock="continuous")).clock == "continuous"
    assert plan(Scenario()).clock == "stopped"

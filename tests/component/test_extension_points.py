# SPDX-License-Identifier: Apache-2.0
"""What people add is added to a copy of the package, in as few files as docs/writing says.

Each test writes what a contributor would write, counts the files, and uses the result through the
command line or through what the runner calls.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "liveupdate"


class Copy:
    """A copy of the package that can be added to, and run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.touched: set[str] = set()
        shutil.copytree(PACKAGE, root / "liveupdate", ignore=shutil.ignore_patterns("*.so"))

    def write(self, path: str, text: str) -> None:
        """Add a file, or text at the end of one."""
        self.touched.add(path)
        with (self.root / "liveupdate" / path).open("a", encoding="utf-8") as file:
            file.write(text)

    def replace(self, path: str, old: str, new: str) -> None:
        """Change the one place in a file where ``old`` stands."""
        self.touched.add(path)
        file = self.root / "liveupdate" / path
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
        file.write_text(text.replace(old, new), encoding="utf-8")

    def python(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *args], cwd=self.root, capture_output=True, text=True, check=False
        )

    def script(self, text: str) -> str:
        """Run a script that must end well; return what it wrote."""
        done = self.python("-c", text)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


# --- a fault

FAULT = """

@fault(
    "guest-nmi",
    "the guest gets a non-maskable interrupt after it was resumed",
    at=Moment.RESUMED,
    needs={Capability.MONITOR, Part.PAYLOAD},
    expect=fails("guest.liveness"),
)
def guest_nmi(bed: Testbed) -> Struck:
    _command(bed, cmd="nmi")
    return struck("the guest", "its VMM", "running", "interrupted")
"""


def test_a_fault_is_one_function_in_one_file(copy: Copy) -> None:
    copy.write("faults/guest.py", FAULT)
    assert len(copy.touched) == 1
    listed = copy.python("-m", "liveupdate", "faults", "--json")
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["guest-nmi"]["where"] == "resumed"
    assert (rows["guest-nmi"]["check"], rows["guest-nmi"]["exit_code"]) == ("guest.liveness", 1)
    said = copy.script(
        """
from types import SimpleNamespace
from liveupdate.core.errors import ScenarioError
from liveupdate.faults.table import FAULTS
from liveupdate.model.scenario import GuestSpec, Scenario
from liveupdate.model.targets import parse_target
from liveupdate.planning.faults import check_fault
from liveupdate.planning.mechanisms import MECHANISMS

fault, mechanism = FAULTS["guest-nmi"], MECHANISMS["luo-memfd"]
check_fault(Scenario(fault="guest-nmi"), fault, mechanism, parse_target("qemu"))
image = GuestSpec(name="vm0", image="disk.raw", liveness="agent")
for wrong in (
    Scenario(fault="guest-nmi", target="ssh:there"),
    Scenario(fault="guest-nmi", guests=(image,)),
):
    try:
        check_fault(wrong, fault, mechanism, parse_target(wrong.target))
    except ScenarioError as error:
        print(error.message)
bed = SimpleNamespace(
    first_guest=SimpleNamespace(spec=image), call=lambda *args, timeout_s: print(*args)
)
fault.strike(bed)
"""
    )
    assert said.splitlines() == [
        "default scenario: target 'ssh' cannot inject 'guest-nmi': there is no monitor",
        "default scenario: fault 'guest-nmi' needs the shipped payload in the first guest",
        "payload {'guest': 'vm0', 'command': {'cmd': 'nmi'}}",
    ]


def test_two_faults_of_one_name_are_refused(copy: Copy) -> None:
    copy.write("faults/guest.py", FAULT.replace("guest-nmi", "kho-off"))
    done = copy.python("-m", "liveupdate", "faults")
    assert done.returncode != 0
    assert "two faults are named 'kho-off'" in done.stderr


def test_the_table_of_faults_loads_no_machine(copy: Copy) -> None:
    loaded = copy.script("import liveupdate.faults.table, sys; print(*sys.modules)").split()
    rooms = {name.split(".")[1] for name in loaded if name.startswith("liveupdate.")}
    assert rooms == {"core", "faults", "model"}


# --- a kind of guest

GUEST_KIND = """    GuestKind(
        name="agent-and-network",
        alive=Watch.ECHOES,
        clock=Watch.PINGS,
        answers=True,
        needs_address=True,
    ),
)

GUEST_KINDS: """


def test_a_kind_of_guest_is_one_row_in_one_file(copy: Copy) -> None:
    copy.replace("model/guest_kinds.py", ")\n\nGUEST_KINDS: ", GUEST_KIND)
    assert len(copy.touched) == 1
    said = copy.script(
        f"""
import sys
from msgspec.structs import replace
from pathlib import Path
from liveupdate.core.errors import ScenarioError
from liveupdate.judging.judge import judge
from liveupdate.model.evidence import AgentPing
from liveupdate.planning.planner import make_plan
from liveupdate.scenario.load import parse_scenario

sys.path.insert(1, {str(PACKAGE.parent)!r})
from tests.support import evidence_builder as make
from tests.support.planner_inputs import IMAGES, MACHINE

text = '[[guest]]\\nimage = "/x"\\nliveness = "agent-and-network"\\n'
try:
    parse_scenario(text, where="s.toml", base=Path("/"), overrides=())
except ScenarioError as error:
    print(error.message)
scenario = parse_scenario(
    text + 'address = "192.0.2.1"\\n', where="s.toml", base=Path("/"), overrides=()
)
plan = make_plan(scenario, IMAGES, MACHINE)
print(*(check for check, _ in plan.skips if check.startswith("guest.")))
plan = make.make_plan(guests=(replace(plan.guests[0], memory_bytes=make.GUEST_BYTES),))


def evidence(clock_ns):
    pings = tuple(
        AgentPing(
            host_ns=100 * make.SECOND + at,
            realtime_ns=100 * make.SECOND + at + (clock_ns if at >= 5 * make.SECOND else 0),
        )
        for at in range(0, 8 * make.SECOND, make.SECOND // 4)
        if make.alive(at)
    )
    return make.with_trace(
        make.make_evidence(),
        ticks=(), journal=(), journal_before=None, journal_after=None, pattern=None,
        echoes=tuple(replace(echo, boot=None) for echo in make.make_echoes()),
        agent_pings=pings,
    )


for clock_ns in (0, 30 * make.SECOND):
    verdict = judge(plan, evidence(clock_ns))
    found = {{check.id: check.status.name for check in verdict.checks}}
    print(found["guest.liveness"], found["guest.clock"], found["guest.storage"])
"""
    )
    assert said.splitlines() == [
        "s.toml:3: guest 'vm0': liveness 'agent-and-network' needs an address",
        "guest.storage",
        "PASS PASS SKIP",
        "PASS FAIL SKIP",
    ]


# --- a target

TARGET_ROW = """    TargetKind(
        "bench",
        "liveupdate.target.bench",
        {
            Capability.PHYSICAL_MEMORY: "no probe is soldered to its memory",
            Capability.MONITOR: "it has no monitor",
            Capability.MONITOR_CUT: "it has no monitor",
            Capability.WIRE: "no wire goes to its guests",
            Capability.DEVICES: "its slots are empty",
            Capability.PROCESS: "it is hardware",
            Capability.MADE: "it is what it is",
            Capability.SAVE: "it cannot be saved",
        },
        "required",
        "a bench's number",
    ),
)

TARGETS: """

TARGET_FILE = """
from liveupdate.core.errors import PlanError
from liveupdate.target.base import Located, Order


def locate(place: str) -> Located:
    if place != "7":
        raise PlanError(f"there is no bench {place}")
    return Located(place="/dev/bench7", append="console=ttyS1", guest_disks=("scratch",))


def make(order: Order) -> str:
    return f"a host at {order.plan.place} for run {order.run_id}"
"""


def test_a_target_is_one_row_and_one_file(copy: Copy) -> None:
    copy.replace("model/targets.py", ")\n\nTARGETS: ", TARGET_ROW)
    copy.write("target/bench.py", TARGET_FILE)
    assert len(copy.touched) == 2
    said = copy.script(
        f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from liveupdate.cli.plan import describe
from liveupdate.cli.prepare_run import find_target
from liveupdate.core.errors import LiveUpdateError
from liveupdate.model.scenario import Scenario
from liveupdate.planning.planner import make_plan
from liveupdate.run.bringup import make_host, take_host

sys.path.insert(1, {str(PACKAGE.parent)!r})
from tests.support.planner_inputs import IMAGES, MACHINE


def plan(**asked):
    scenario = Scenario(target="bench:7", **asked)
    return make_plan(scenario, IMAGES, find_target(scenario, MACHINE))


made = plan()
print(made.place, made.guest_disks, made.boot_append, made.cold)
print(*sorted(check for check, why in made.skips if why.startswith("target 'bench': ")))
print(list(describe(made, ""))[2])
print(take_host(made, SimpleNamespace(run_id="r1", path=Path("/")), Path("/kit")))
for refused in (
    lambda: plan(fault="flip-bit"),
    lambda: plan(mechanism="pool"),
    lambda: find_target(Scenario(target="bench:8"), MACHINE),
    lambda: make_host(made, "r1", Path("/"), Path("/kit")),
):
    try:
        print(refused())
    except LiveUpdateError as error:
        print(error.message)
"""
    )
    assert said.splitlines() == [
        "/dev/bench7 ('scratch',) console=ttyS1 kho=on liveupdate=on True",
        "guest.network guest.storage",
        "host        bench, /dev/bench7, reset before the run",
        "a host at /dev/bench7 for run r1",
        "default scenario: target 'bench' cannot inject 'flip-bit': no probe is soldered to its"
        " memory",
        "default scenario: mechanism 'pool' sets memory aside, and target 'bench' has no known"
        " place for it: it is what it is",
        "there is no bench 8",
        "'/dev/bench7' is a machine that is there already",
    ]


# --- a mechanism

MECHANISM = """
from __future__ import annotations

from .files import FileMechanism

REQUIREMENTS = {
    "kconfig": ("MODULES",),
    "abi_prefixes": ("kho-v",),
    "append": "kho=on liveupdate=off memmap={size}!{start} lu.mechanism=shadow-files",
    "modules": ("shadow",),
    "witnesses": ("kho",),
    "has": ("pointer",),
    "lacks_too": {"store": "it keeps no description of its own"},
    "traits": {
        "grows": ("no", "the region is what the command line says"),
        "kernel_users": ("no", "files only"),
        "userspace_users": ("yes", "files"),
    },
    "region_spare_bytes": 64 << 20,
}


class ShadowMechanism(FileMechanism):
    def __init__(self) -> None:
        super().__init__("shadow-files", "/run/shadow")


def open_mechanism() -> ShadowMechanism:
    return ShadowMechanism()
"""


def test_a_mechanism_is_one_file_and_one_name(copy: Copy) -> None:
    copy.write("agent/mechanisms/shadow_files.py", MECHANISM)
    last = '    "reserved-dax",\n'
    copy.replace("agent/mechanisms/__init__.py", last, f'{last}    "shadow-files",\n')
    assert len(copy.touched) == 2
    said = copy.script(
        f"""
import sys
from liveupdate.agent.mechanisms.base import DEFAULT, open_mechanism
from liveupdate.core.errors import ScenarioError
from liveupdate.faults.table import FAULTS
from liveupdate.model.scenario import Scenario
from liveupdate.planning.faults import not_of_mechanism
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.planning.planner import make_plan

sys.path.insert(1, {str(PACKAGE.parent)!r})
from tests.support.planner_inputs import IMAGES, MACHINE

print(DEFAULT, open_mechanism("shadow-files").name)
made = make_plan(Scenario(mechanism="shadow-files"), IMAGES, MACHINE)
print(made.boot_append.partition("kho=")[2], made.witnesses)
shadow = MECHANISMS["shadow-files"]
for name in ("wrong-pointer", "region-size", "kexec-load"):
    assert not_of_mechanism(FAULTS[name], shadow) is None
for fault in ("region-full", "luo-abi-skew", "move-page"):
    try:
        make_plan(Scenario(mechanism="shadow-files", fault=fault), IMAGES, MACHINE)
    except ScenarioError as error:
        print(error.hint)
"""
    )
    assert said.splitlines() == [
        "luo-memfd shadow-files",
        "on liveupdate=off memmap=0x18000000!0x60000000 lu.mechanism=shadow-files"
        " intel_iommu=on ('kho',)",
        "it keeps no description of its own",
        "this mechanism does without LUO, which is switched off",
        "the RAM of its guests is not in memfds",
    ]
    # the agent is copied to the host under update as it is, and runs without the rest
    alone = copy.python(
        "-S", "-c",
        "import sys; sys.path.insert(0, 'liveupdate')\n"
        "from agent.mechanisms.base import open_mechanism\n"
        "open_mechanism('shadow-files')\n"
        "print(*sorted(n for n in sys.modules if n.startswith('agent.mechanisms.')))",
    )  # fmt: skip
    assert alone.stdout.split() == [
        f"agent.mechanisms.{name}" for name in ("base", "copies", "files", "shadow_files")
    ], alone.stderr


def test_a_word_that_nothing_reads_is_refused_in_a_mechanisms_data(copy: Copy) -> None:
    copy.replace("agent/mechanisms/pool.py", '    "corrupt_at": 24', '    "corupt_at": 24')
    done = copy.python("-c", "import liveupdate.planning.mechanisms")
    assert "corupt_at" in done.stderr


# --- a check

CHECK = '''

def judge_vmm(context: Context) -> list[Finding]:
    """Each guest's VMM says that it runs."""
    return [
        (passed if trace.vmm_status == "running" else failed)(
            f"hop {hop.number}, {trace.guest}: the VMM says '{trace.vmm_status}'"
        )
        for hop in context.evidence.hops
        for trace in hop.guests
    ]


def _no_guest_of_ours(asked: Asked) -> str | None:
    return "no payload" if asked.no_guest(lambda kind: kind.payload) else None


CHECKS += (
    CheckRow(
        id="budget.vmm", judge=judge_vmm, needs=Capability.MONITOR, skip=_no_guest_of_ours
    ),
)
'''


def test_a_check_of_evidence_that_is_there_is_one_row_and_its_judge_in_one_file(
    copy: Copy,
) -> None:
    copy.write("judging/checks/budget.py", CHECK)
    copy.replace(
        "judging/checks/budget.py",
        "from liveupdate.model import slots\n",
        "from liveupdate.judging.context import failed, passed\n"
        "from liveupdate.model import slots\nfrom liveupdate.model.targets import Capability\n",
    )
    assert len(copy.touched) == 1
    said = copy.script(
        f"""
import sys
from liveupdate.judging.judge import judge
from liveupdate.judging.require import parse_required
from liveupdate.model.scenario import GuestSpec, Scenario
from liveupdate.planning.planner import make_plan

sys.path.insert(1, {str(PACKAGE.parent)!r})
from tests.support import evidence_builder as make
from tests.support.planner_inputs import IMAGES, MACHINE

good = make.make_evidence()
for evidence in (good, make.with_trace(good, vmm_status="paused")):
    check = judge(make.make_plan(), evidence).checks[-1]
    print(check.id, check.status.name, check.reason)
print(*parse_required("budget.vmm"))
image = GuestSpec(name="vm0", image="disk.raw", liveness="agent")
for scenario in (Scenario(), Scenario(target="ssh:box"), Scenario(guests=(image,))):
    print(dict(make_plan(scenario, IMAGES, MACHINE).skips).get("budget.vmm"))
"""
    )
    assert said.splitlines() == [
        "budget.vmm PASS hop 1, vm0: the VMM says 'running'",
        "budget.vmm FAIL hop 1, vm0: the VMM says 'paused'",
        "budget.vmm",
        "None",
        "target 'ssh': there is no monitor",
        "no payload",
    ]


SLOT = 'LOAD = Document(f"{_HOP}/load.json", float, checks=("budget.load",))\n'
OBSERVER = '''

def record_load(bed: Testbed, hop: int) -> None:
    """Store the load of the host."""
    bed.record.put(slots.LOAD, float(str(bed.call("load").get("load"))), hop)
'''
LOAD_CHECK = '''
from liveupdate.judging.context import failed, passed
from liveupdate.model import slots as all_slots


def judge_load(context: Context) -> list[Finding]:
    """The host was not busier than 2."""
    findings = []
    for hop in context.evidence.hops:
        load = all_slots.LOAD.read_from(hop)
        if load is None:
            findings.append(context.missing("the load", hop.number))
        else:
            findings.append((passed if load < 2 else failed)(f"load {load:g}"))
    return findings


CHECKS += (CheckRow(id="budget.load", judge=judge_load),)
'''


def test_a_check_of_new_evidence_is_a_slot_an_observer_and_a_judge(copy: Copy) -> None:
    copy.replace("model/slots.py", "KERNEL_BEFORE = ", f"{SLOT}KERNEL_BEFORE = ")
    copy.write("run/observers/host_queries.py", OBSERVER)
    copy.write("judging/checks/budget.py", LOAD_CHECK)
    assert len(copy.touched) == 3
    said = copy.script(
        f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from liveupdate.evidence import RunDir
from liveupdate.judging.judge import judge
from liveupdate.model import slots
from liveupdate.run.observers.host_queries import record_load

sys.path.insert(1, {str(PACKAGE.parent)!r})
from tests.support import evidence_builder as make

for name, load in (("a", "0.5"), ("b", "7"), ("c", None)):
    Path(name).mkdir()
    record = RunDir.create(Path(name), plan=make.make_plan(), scenario="")
    record.put(slots.KERNEL_BEFORE, make.make_hop(1).before, 1)
    if load is not None:
        record_load(SimpleNamespace(record=record, call=lambda what: {{"load": load}}), 1)
    record.close()
    opened = RunDir.open(record.path)
    check = judge(make.make_plan(), opened.load_evidence()).checks[-1]
    print(check.id, check.status.name)
"""
    )
    assert said.splitlines() == ["budget.load PASS", "budget.load FAIL", "budget.load ERROR"]

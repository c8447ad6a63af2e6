# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, what goes where, and bad input refused before anything starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from html import unescape
from pathlib import Path

import click
import pytest
from msgspec.structs import replace

from liveupdate import __version__
from liveupdate.cli import app as cli_app
from liveupdate.cli import main, prepare_run
from liveupdate.cli.app import VERBS, App, Verbs, for_bisect
from liveupdate.cli.output import one_line, wants_color, wants_live, write_file
from liveupdate.cli.signals import Interrupted, handle_signals
from liveupdate.core import errors
from liveupdate.core.steps import Steps
from liveupdate.evidence import RunDir
from liveupdate.faults.table import FAULTS
from liveupdate.judging.table import CHECK_IDS
from liveupdate.model import slots
from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import ImageSet, KernelImage, Plan
from liveupdate.model.scenario import Scenario
from liveupdate.model.verdict import Check, ExitCode, Outcome, Verdict
from liveupdate.run import runner
from liveupdate.run.runner import RunResult
from liveupdate.scenario.dump import dump_scenario
from tests.support import evidence_builder as make

ABI = ("kho-v4", "luo-v5", "memfd-v2")


def kernel(name: str, abi: tuple[str, ...] = ABI) -> KernelImage:
    return KernelImage(
        path=f"/k/{name}", sha256="0" * 64, release=f"7.3.4-{name}", build_id="f00d", abi=abi
    )


IMAGES = ImageSet(
    outgoing=kernel("a"),
    incoming=kernel("b"),
    guest_kernel="/k/a",
    guest_initrd="/k/initrd",
    rootfs="/k/rootfs",
    rootfs_sha256="1" * 64,
    ssh_client_key="/k/key",
    ssh_host_key_pub="ssh-ed25519 AAAA",
)

FIND_IMAGES = prepare_run.find_images


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with images and TCG, and a clean environment; returns the results directory."""
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CI", "LIVEUPDATE_REQUIRE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(prepare_run, "find_images", lambda scenario, build=None: IMAGES)
    monkeypatch.setattr(
        prepare_run, "choose_accel", lambda requested, images: ("tcg", "no /dev/kvm here")
    )
    monkeypatch.setattr(prepare_run, "available_memory", lambda: 16 << 30)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def verdict_of(outcome: Outcome, *, rolled_back: bool = False, timed_out: bool = False) -> Verdict:
    checks = tuple(
        Check(id=check, status=Outcome.SKIP, reason="not asked for") for check in CHECK_IDS[1:]
    )
    first = Check(id=CHECK_IDS[0], status=outcome, reason="because of it")
    return Verdict(
        outcome=outcome,
        checks=(first, *checks),
        reason="because of it",
        rolled_back=rolled_back,
        timed_out=timed_out,
    )


def fake_run(monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    """Put a runner in place that makes a run directory and comes to ``verdict``."""

    def run(
        plan: Plan,
        scenario: Scenario,
        *,
        results: Path,
        steps: Steps,
        argv: tuple[str, ...],
        accel_reason: str,
    ) -> RunResult:
        record = RunDir.create(results, plan=plan, scenario=dump_scenario(scenario))
        origin = replace(make.make_provenance(), argv=argv, accel_reason=accel_reason)
        record.put(slots.PROVENANCE, origin)
        with steps.step("hop", hop=1):
            steps.note("resumed", guest="vm0")
        console = record.path / "boot-1" / "console.log"
        console.parent.mkdir(exist_ok=True)
        console.write_bytes(b"line one\n\x1b[31mline two\n")
        record.close()
        return RunResult(
            verdict=verdict, evidence=Evidence(provenance=origin, hops=()), run_dir=record.path
        )

    monkeypatch.setattr(runner, "run", run)


# --- the shape of it


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)


def test_a_kernel_is_an_image_or_a_tree_and_its_fragment_is_one(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--kernel", "a", "--kernel-tree", "b"]) == 2
    assert "--kernel-tree: 'kernel' names a kernel already" in capsys.readouterr().err
    assert main(["plan", "--kernel-tree", str(lab.parent), "--config", "gone"]) == 2
    assert "--config: cannot be used" in capsys.readouterr().err
    assert main(["plan", "--kernel-tree", str(lab.parent)]) == 3
    assert "neither the top of a kernel source tree nor a build" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: liveupdate {verb}")


def test_one_line_of_help_is_the_same_in_table_and_verb() -> None:
    group = Verbs("liveupdate")
    for verb in VERBS:
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        assert command.name == verb


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from liveupdate.cli import main; main(['--help']);"
        "print([name for name in sys.modules if name.partition('.')[0] in"
        " ('paramiko', 'rich', 'qemu', 'asyncio', 'junitparser', 'msgspec', 'xxhash', 'tomllib')"
        " or name in ('liveupdate.run.runner', 'liveupdate.scenario.load', 'subprocess')],"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"liveupdate {__version__}\n"


def test_no_verb_is_a_usage_error_with_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage:" in captured.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["run", "--flault", "x"], "No such option"),
        (["run", "a", "b"], "unexpected extra argument"),
        (["report", "x", "--format", "pdf"], "'pdf' is not one of"),
        (["completion", "csh"], "'csh' is not one of"),
        (["judge"], "Missing argument 'RUN'"),
    ],
)
def test_usage_error_is_one_line_and_a_hint(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("liveupdate: error: ")
    assert message in first
    assert "--help" in second


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_asks_this_program(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert f"_LIVEUPDATE_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_completion_completes_verbs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask_shell(monkeypatch, capsys, "ima") == ["plain,images"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("run", "vfio-c"), ["vfio-continuous"]),
        (("run", "--fault", "flip-b"), ["flip-bit"]),
        (("run", "--mechanism", "luo"), ["luo-memfd"]),
        (("run", "--target", "lib"), ["libvirt"]),
        (("run", "--accel", ""), ["auto", "kvm", "tcg"]),
        (("compat", "kernel-sk"), ["kernel-skew"]),
        (("images", "build", "kernel-sk"), ["kernel-skew"]),
        (("judge", "runs/2"), ["runs/20260102-b", "runs/20260101-a"]),
        (("matrix", "vfio-q"), ["vfio-quiesce"]),
    ],
)
def test_values_are_completed(
    words: tuple[str, ...],
    offered: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("20260101-a", "20260102-b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert ask_shell(monkeypatch, capsys, *words) == [f"plain,{value}" for value in offered]


@pytest.mark.parametrize(
    "words", [("run", "./my"), ("run", "--next-kernel", "/b"), ("judge", "bundle.t")]
)
def test_files_are_left_to_the_shell(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask_shell(monkeypatch, capsys, *words) == [f"file,{words[-1]}"]


def ask_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> list[str]:
    monkeypatch.setenv("_LIVEUPDATE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(("liveupdate", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    main([])
    return capsys.readouterr().out.splitlines()


def test_every_verb_has_a_manual_page_with_its_options(tmp_path: Path) -> None:
    from liveupdate.cli.man import write_pages

    pages = {page.stem: page.read_text() for page in write_pages(tmp_path)}
    assert {f"liveupdate-{verb}" for verb in VERBS} < set(pages)
    assert r"\-\-next\-kernel" in pages["liveupdate-run"]
    assert "liveupdate-images-gc" in pages
    for verb, (_, text) in VERBS.items():
        assert text.rstrip(".") in pages[f"liveupdate-{verb}"].replace("\\-", "-"), verb


def test_faults_are_listed_with_what_they_must_come_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["faults", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed] == list(FAULTS)
    assert main(["faults"]) == 0
    assert "flip-bit" in capsys.readouterr().out


def images_for(scenario: Scenario, app: App | None = None) -> ImageSet:
    """Built images, with the kernel in place that a fault of kernels needs."""
    built = replace(
        IMAGES,
        outgoing=replace(IMAGES.outgoing, modules="/k/modules-a"),
        incoming=replace(IMAGES.incoming, modules="/k/modules-b"),
    )
    special = {"kernel-without-kho": (), "luo-abi-skew": ("kho-v4", "luo-v6", "memfd-v2")}
    abi = special.get(scenario.fault or "")
    return built if abi is None else replace(built, incoming=kernel("special", abi))


def test_every_fault_can_be_planned_without_a_scenario_and_is_listed_with_the_one_it_takes(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare_run, "find_images", images_for)
    assert main(["faults", "--json"]) == 0
    listed = {row["name"]: row["scenario"] for row in json.loads(capsys.readouterr().out)}
    assert listed["stock-kernel"] == "vfio-continuous"
    assert listed["region-full"] == "reserved-region"
    assert main(["faults"]) == 0
    assert "scenario vfio-continuous" in capsys.readouterr().out
    for name in FAULTS:
        assert main(["plan", "--json", "--fault", name]) == 0, name
        planned = json.loads(capsys.readouterr().out)
        assert (planned["fault"]["name"], planned["scenario"]) == (name, listed[name])
    assert main(["plan", "--json", "--set", "fault=stock-kernel"]) == 0
    assert json.loads(capsys.readouterr().out)["scenario"] == "vfio-continuous"


def test_a_scenario_that_is_named_wins_over_the_one_of_the_fault(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare_run, "find_images", images_for)
    assert main(["plan", "two-guests", "--fault", "stock-kernel"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "--fault: fault 'stock-kernel' strikes a device, and the scenario has none" in said
    assert "run it with scenario 'vfio-continuous'" in said
    assert main(["plan", "vfio-kinds", "--json", "--fault", "stock-kernel"]) == 0
    assert json.loads(capsys.readouterr().out)["scenario"] == "vfio-kinds"


# --- errors to exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ScenarioError("wrong", where="s.toml:3"), ExitCode.USAGE),
        (errors.PlanError("cannot", hint="do that"), ExitCode.ERROR),
        (errors.BuildError("broken"), ExitCode.ERROR),
        (errors.CommandFailed(("qemu", "-x"), 1, "no\nsuch"), ExitCode.ERROR),
        (errors.DeadlineExceeded("the agent", 3.0), ExitCode.TIMEOUT),
        (errors.LostMachine("gone", how="exited"), ExitCode.ERROR),
        (errors.EvidenceError("cut short"), ExitCode.ERROR),
    ],
)
def test_expected_error_is_one_line_without_traceback(
    error: errors.LiveUpdateError,
    code: ExitCode,
    lab: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(scenario: Scenario, app: App | None) -> ImageSet:
        raise error

    monkeypatch.setattr(prepare_run, "find_images", fail)
    assert main(["run", "--results", str(lab)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("liveupdate: error: ")
    assert lines[1:] == ([f"liveupdate: hint: {error.hint}"] if error.hint else [])


def test_unexpected_error_is_a_traceback_and_three(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(scenario: Scenario, app: App | None) -> ImageSet:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(prepare_run, "find_images", fail)
    assert main(["run", "--results", str(lab)]) == ExitCode.ERROR
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: oh" in err.splitlines()[-2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_unwinds_once_and_gives_its_status(
    number: signal.Signals, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned = []

    def wait(scenario: Scenario, app: App | None) -> ImageSet:
        try:
            os.kill(os.getpid(), number)
            raise AssertionError("the signal came too late")
        finally:
            cleaned.append(True)

    monkeypatch.setattr(prepare_run, "find_images", wait)
    before = signal.getsignal(number)
    expected = 130 if number == signal.SIGINT else 143
    assert main(["run", "--results", str(lab)]) == expected
    assert cleaned == [True]
    assert signal.getsignal(number) is before


def test_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import os, signal, time\n"
        "from liveupdate.cli.signals import handle_signals\n"
        "with handle_signals():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=30
    )
    assert done.returncode == -signal.SIGTERM


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handle_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Interrupted(signal.SIGHUP).exit_code == ExitCode.SIGTERM


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such"], "SCENARIO: neither a file nor a shipped scenario"),
        (["two-guest"], "did you mean 'two-guests'?"),
        (["no/such.toml"], "no/such.toml: No such file or directory"),
        (["bad.toml"], "bad.toml:2: unknown key 'hop'"),
        (["--hops", "x"], "--hops: 'hops' is 'x', not a whole number"),
        (["--guest-memory", "64M"], "--guest-memory: 'memory' is '64M', not in 96 MiB"),
        (["--set", "hops"], "--set: 'hops' is not KEY=VALUE"),
        (["--hops", "2", "--set", "hops=3"], "--set hops: 'hops' is set twice (also by --hops)"),
        (["--fault", "flip-bits"], "--fault: unknown fault 'flip-bits'"),
        (["--mechanism", "magic"], "--mechanism: unknown mechanism 'magic'"),
        (["--target", "moon"], "--target: 'target' is 'moon'"),
        (["--target", "libvrt"], "did you mean 'libvirt'?"),
        (["--target", "qemu:x"], "--target: 'target' is 'qemu:x', not 'qemu' alone"),
        (["--target", "libvirt:"], "not 'libvirt:' with a libvirt URI behind it"),
        (["--target", "libvirt", "--fault", "qmp-drop"],
         "--fault: target 'libvirt' cannot inject 'qmp-drop': libvirtd holds the monitor"),
        (["--accel", "xen"], "--accel: 'accel' is 'xen'"),
        (["--set", "guest.vm0.image=/no/image", "--set", "guest.vm0.liveness=agent"],
         "--set guest.vm0.image: image '/no/image': No such file or directory"),
        (["--junit", "no/such/dir.xml"], "no/such/dir.xml: cannot be written there"),
        (["--results", "bad.toml"], "--results: "),
        (["--results", "/proc/runs"], "--results: "),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_started(
    arguments: list[str],
    message: str,
    lab: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_args: object, **_kwargs: object) -> RunResult:
        raise AssertionError("something was started")

    monkeypatch.setattr(runner, "run", never)
    monkeypatch.setattr(prepare_run, "choose_accel", never)
    Path("bad.toml").write_text("hops = 1\nhop = 2\n")
    assert main(["run", *arguments]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) <= 2
    assert not list(Path().glob("runs/*"))


def test_missing_kernel_is_not_the_scenarios_fault(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(lab.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.parent / "cache"))
    argv = ["plan", "--next-kernel", "/no/such/bzImage"]
    assert main(argv) == ExitCode.ERROR
    assert "--next-kernel: " in capsys.readouterr().err


def test_images_that_were_not_built_are_said_so(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(lab.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.parent / "cache"))
    assert main(["plan"]) == ExitCode.ERROR
    assert "liveupdate images build" in capsys.readouterr().err


# --- plan and run


def test_plan_says_everything_and_makes_nothing(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "five-hops", "--fault", "kho-off"]) == 0
    out = capsys.readouterr().out
    for text in ("tcg (no /dev/kvm here)", "7.3.4-a", "7.3.4-b", "kho=off", "hop 5", "exit 1"):
        assert text in out
    assert not Path("runs").exists()


def test_plan_as_json_is_one_document(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", "--guests", "2", "--guest-memory", "512M"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [guest["memory_bytes"] for guest in document["guests"]] == [512 << 20] * 2
    assert document["machine"]["accel"] == "tcg"
    assert captured.err == ""


@pytest.mark.parametrize(
    ("verdict", "code", "bisect_code"),
    [
        (verdict_of(Outcome.PASS), 0, 0),
        (verdict_of(Outcome.FAIL), 1, 1),
        (verdict_of(Outcome.ERROR), 3, 125),
        (verdict_of(Outcome.SKIP), 4, 125),
        (verdict_of(Outcome.FAIL, rolled_back=True), 5, 5),
        (verdict_of(Outcome.ERROR, timed_out=True), 124, 125),
    ],
)
def test_run_exits_with_its_verdict(
    verdict: Verdict,
    code: int,
    bisect_code: int,
    lab: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_run(monkeypatch, verdict)
    assert main(["run", "--results", str(lab), "--json"]) == code
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["outcome"] == verdict.outcome.value
    if code == 0:
        assert "reproduce" not in captured.err
    else:
        assert "because of it" in captured.err
        assert "line two" in captured.err
        assert "\x1b" not in captured.err
        assert f"run directory: {lab}" in captured.err
        assert f"reproduce: liveupdate run --results {lab} --json" in captured.err
    assert main(["run", "--results", str(lab), "--bisect"]) == bisect_code


@pytest.mark.parametrize(
    "call",
    [
        "run --bisect --no-such",
        "-q bisect --bad-side a",
        "--color never bisect --bad-side a",
        "bisect a b",
    ],
)
def test_a_wrong_call_ends_the_bisect(call: str, lab: Path) -> None:
    assert main(call.split()) == 128


def test_run_leaves_earlier_runs_alone_and_writes_its_reports(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(monkeypatch, verdict_of(Outcome.PASS))
    arguments = ["--results", str(lab), "--junit", "j.xml", "--ktap", "k.tap"]
    assert main(["run", *arguments]) == 0
    (first,) = [path for path in lab.iterdir() if not path.is_symlink()]
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert {"result.json", "junit.xml", "report.html", "scenario.toml", "plan.json"} <= {
        path.name for path in before
    }
    assert main(["run", *arguments]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert Path("j.xml").read_text().startswith("<?xml")
    assert Path("k.tap").read_text().startswith("KTAP version 1\n")
    assert "resumed: guest vm0" in capsys.readouterr().err


def test_run_stores_its_command_line_and_why_the_accelerator_was_chosen(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(monkeypatch, verdict_of(Outcome.PASS))
    argv = ["run", "--results", str(lab), "--hops", "2", "--json", "--junit", "a b.xml"]
    assert main(argv) == 0
    stored = RunDir.open(lab / "latest").load_evidence().provenance
    assert stored is not None
    assert stored.argv == ("liveupdate", *argv)
    assert stored.accel_reason == "no /dev/kvm here"
    origin = json.loads(capsys.readouterr().out)["provenance"]
    assert (origin["argv"], origin["accel_reason"]) == (list(stored.argv), stored.accel_reason)
    shown = f"liveupdate run --results {lab} --hops 2 --json --junit 'a b.xml'"
    assert shown in unescape((lab / "latest" / "report.html").read_text())
    for report in ("report.html", "junit.xml"):
        assert "no /dev/kvm here" in (lab / "latest" / report).read_text()


def test_stored_scenario_runs_again(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(monkeypatch, verdict_of(Outcome.PASS))
    assert main(["run", "--results", str(lab), "--hops", "3"]) == 0
    assert main(["plan", str(lab / "latest" / "scenario.toml")]) == 0
    assert "hop 3" in capsys.readouterr().out


def test_required_check_may_not_be_skipped(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(monkeypatch, verdict_of(Outcome.PASS))
    monkeypatch.setenv("LIVEUPDATE_REQUIRE", "iommu, vm")
    assert main(["run", "--results", str(lab), "--json"]) == ExitCode.ERROR
    document = json.loads(capsys.readouterr().out)
    status = {check["id"]: check["status"] for check in document["checks"]}
    assert status["iommu.mappings"] == "ERROR"
    assert status["guest.clock"] == "SKIP"
    monkeypatch.setenv("LIVEUPDATE_REQUIRE", "gest")
    assert main(["run", "--results", str(lab)]) == ExitCode.USAGE
    assert "did you mean 'guest'?" in capsys.readouterr().err


def test_judge_and_report_need_a_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", str(tmp_path / "none")]) == ExitCode.ERROR
    assert main(["report", str(tmp_path)]) == ExitCode.ERROR
    assert capsys.readouterr().out == ""


def test_run_without_evidence_is_judged_an_error(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(monkeypatch, verdict_of(Outcome.PASS))
    assert main(["run", "--results", str(lab)]) == 0
    capsys.readouterr()
    assert main(["judge", str(lab / "latest"), "--json"]) == ExitCode.ERROR
    assert json.loads(capsys.readouterr().out)["outcome"] == "ERROR"
    for kind in ("text", "json", "junit", "ktap", "html"):
        assert main(["report", str(lab / "latest"), "--format", kind]) == 0
        assert capsys.readouterr().out


# --- small things


def test_text_report_is_coloured_on_demand_only(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(monkeypatch, verdict_of(Outcome.FAIL))
    assert main(["run", "--results", str(lab)]) == 1
    assert "\x1b" not in capsys.readouterr().out
    assert main(["run", "--results", str(lab), "--color", "always"]) == 1
    assert "\x1b[1;31mFAIL\x1b[0m" in capsys.readouterr().out
    assert main(["--color", "always", "report", str(lab / "latest"), "--format", "json"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_bisect_skips_what_it_cannot_judge() -> None:
    assert [for_bisect(code) for code in (0, 1, 2, 3, 4, 5, 124, 130)] == [
        0, 1, 128, 125, 125, 5, 125, 130,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "env", "is_tty", "expected"),
    [
        ("auto", {"TERM": "xterm"}, True, True),
        ("auto", {"TERM": "xterm"}, False, False),
        ("auto", {"TERM": "dumb"}, True, False),
        ("auto", {}, True, False),
        ("auto", {"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ("auto", {"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ("auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, True),
        ("auto", {"CLICOLOR_FORCE": "0"}, False, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {"FORCE_COLOR": "1"}, True, False),
    ],
)
def test_color(choice: str, env: dict[str, str], is_tty: bool, expected: bool) -> None:
    assert wants_color(choice, env, is_tty=is_tty) is expected


@pytest.mark.parametrize(
    ("env", "is_tty", "expected"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "xterm", "CI": "true"}, True, False),
        ({"TERM": "xterm", "CI": "false"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_moving_display(env: dict[str, str], is_tty: bool, expected: bool) -> None:
    assert wants_live(env, is_tty=is_tty) is expected


def test_what_came_from_a_guest_cannot_move_the_cursor() -> None:
    assert (
        one_line("a\n\n  b\x1b[2J\tc")
        == "a | b\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}c"
    )


def test_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report"
    write_file(target, "one")
    write_file(target, "two")
    assert target.read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    with pytest.raises(errors.ScenarioError):
        write_file(tmp_path / "none" / "report", "three")


def test_own_image_has_its_virtual_size(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"x" * 4096)
    assert prepare_run.image_size(raw, "x") == 4096
    header = b"QFI\xfb" + b"\0" * 20 + (3 << 30).to_bytes(8, "big")
    raw.write_bytes(header)
    assert prepare_run.image_size(raw, "x") == 3 << 30
    raw.write_bytes(b"")
    with pytest.raises(errors.ScenarioError, match="is empty"):
        prepare_run.image_size(raw, "x")


def test_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    4194304 kB\n")
    assert prepare_run.available_memory(meminfo, tmp_path) == 4 << 30
    (tmp_path / "memory.current").write_text("2147483648\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1073741824\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert prepare_run.available_memory(meminfo, tmp_path) == 4 << 30
    (tmp_path / "memory.max").write_text("3221225472\n")
    assert prepare_run.available_memory(meminfo, tmp_path) == 2 << 30


def test_faults_of_kernels_take_the_kernels_made_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from liveupdate.images import catalogue

    monkeypatch.setattr(catalogue, "resolve", lambda outgoing, incoming: IMAGES)
    monkeypatch.setattr(catalogue, "read_kernel", lambda path: kernel("own"))
    monkeypatch.setattr(catalogue, "find_kernel", lambda name: kernel(name, ()))
    plain = prepare_run.find_images(Scenario(fault="flip-bit"))
    assert plain == IMAGES
    found = prepare_run.find_images(Scenario(fault="kernel-without-kho"))
    replaced = {"incoming": IMAGES.incoming}
    assert found == replace(IMAGES, incoming=kernel("kernel-nokho", ()), replaced=replaced)
    own = prepare_run.find_images(Scenario(fault="kernel-without-kho", next_kernel="/own"))
    assert own == IMAGES


def test_kernels_that_the_user_names_are_not_swapped() -> None:
    stock = {"outgoing": "kernel-stock", "incoming": "kernel-stock"}
    assert prepare_run.fault_kernels(Scenario(fault="stock-kernel")) == stock
    assert prepare_run.fault_kernels(Scenario(fault="stock-kernel", kernel="/own")) == {}
    assert prepare_run.fault_kernels(Scenario(fault="luo-abi-skew", kernel="/own")) != {}
    assert prepare_run.fault_kernels(Scenario(fault="luo-abi-skew", next_kernel="/own")) == {}
    assert prepare_run.fault_kernels(Scenario()) == {}


# --- images that are missing


@pytest.fixture
def cache(lab: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], list[tuple[str, ...]]]:
    """Put a cache in place: names of the images it has, and what builds were asked for."""
    from liveupdate.images import catalogue

    had, builds = set(catalogue.DEFAULT), []

    def build(names: tuple[str, ...], *, steps: Steps) -> tuple[Path, ...]:
        builds.append(names)
        with steps.step(f"build {' '.join(names)}"):
            had.update(names)
        return tuple(Path(name) for name in names)

    def find_kernel(name: str) -> KernelImage:
        if name not in had:
            raise errors.PlanError(f"image '{name}' has not been built")
        return kernel(name)

    monkeypatch.setattr(prepare_run, "find_images", FIND_IMAGES)
    monkeypatch.setattr(catalogue, "need_compiler", lambda: "gcc")
    monkeypatch.setattr(
        catalogue, "find_missing", lambda names: tuple(n for n in names if n not in had)
    )
    monkeypatch.setattr(catalogue, "build", build)
    monkeypatch.setattr(catalogue, "resolve", lambda outgoing, incoming: IMAGES)
    monkeypatch.setattr(catalogue, "find_kernel", find_kernel)
    return had, builds


Cache = tuple[set[str], list[tuple[str, ...]]]


def test_an_image_that_is_missing_is_built_once_and_said(
    cache: Cache, lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(monkeypatch, verdict_of(Outcome.PASS))
    had, builds = cache
    had -= {"rootfs", "modules-b"}
    argv = ["run", "--json", "--results", str(lab), "--fault", "stock-kernel"]
    assert main(argv) == 0
    assert builds == [("rootfs", "modules-b"), ("kernel-stock",)]
    captured = capsys.readouterr()
    assert json.loads(captured.out)["outcome"] == "PASS"
    said = captured.err.splitlines()
    assert said[0] == "liveupdate: a run needs rootfs, modules-b, not built yet: building now"
    assert (
        "liveupdate: fault 'stock-kernel' needs kernel-stock, not built yet: building now" in said
    )
    assert any(line.startswith("build kernel-stock") for line in said)
    assert main(argv) == 0
    assert len(builds) == 2


def test_plan_builds_nothing(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--fault", "stock-kernel"]) == ExitCode.ERROR
    assert "image 'kernel-stock' has not been built" in capsys.readouterr().err
    assert cache[1] == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--fault", "stock-kernle"],
        ["two-guests", "--fault", "stock-kernel"],
        ["--fault", "stock-kernel", "--mechanism", "pool"],
    ],
)
def test_nothing_is_built_for_a_scenario_that_is_wrong(
    argv: list[str], cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    cache[0].clear()
    assert main(["run", *argv]) == ExitCode.USAGE
    assert cache[1] == []


def test_an_image_that_cannot_be_built_here_is_said_in_one_line(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from liveupdate.images import kernel as kernels

    monkeypatch.setattr(prepare_run, "find_images", FIND_IMAGES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.parent / "cache"))
    monkeypatch.setattr(kernels, "compiler_version", lambda: "none")
    assert main(["run", "--results", str(lab)]) == ExitCode.ERROR
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("liveupdate: error: a run needs rootfs, guest, kernel-a, ")
    assert first.endswith("not built yet: gcc and ld are needed to build images")
    assert second == "liveupdate: hint: run 'make setup'"
    assert not list(lab.iterdir())


def test_main_is_what_the_script_calls() -> None:
    assert main is cli_app.main


def test_a_fragment_without_a_tree_is_refused(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fragment = tmp_path / "kasan.config"
    fragment.write_text("CONFIG_KASAN=y\n")
    assert main(["plan", "--config", str(fragment)]) == 2
    assert "no kernel_tree is named" in capsys.readouterr().err

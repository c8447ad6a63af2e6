# SPDX-License-Identifier: Apache-2.0
"""An operator's update of a machine that is reached by SSH only, and whose guests matter.

One machine, in this order: updates that come to nothing, two that are done, and one that is lost.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveupdate.images import catalogue
from liveupdate.operate.steps import FORWARD
from tests.support.vm import desk as desks
from tests.support.vm import labmachine, nightly
from tests.support.vm.desk import GUESTS, Desk, assert_rolled_back, assert_updated, check_of

#: offset in a bzImage, Documentation/arch/x86/boot.rst
XLOADFLAGS = 0x236
STEPS = [step.name for step in FORWARD]

# one machine for all; what is looked at are decisions, records and who lives, no figure
pytestmark = [pytest.mark.side_by_side, pytest.mark.xdist_group("apply")]
#: longer than a lost packet is noticed, shorter than anybody gives up
CUT_S = 3.0


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with desks.serve(tmp_path_factory.mktemp("desk")) as made:
        yield made


@pytest.fixture(scope="module")
def kernel() -> str:
    return catalogue.resolve(None, None).incoming.path


def test_a_host_key_that_changed_is_refused(desk: Desk, kernel: str, tmp_path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True
    )
    other = desk.describe("other", host_key=f'"{tmp_path}/key.pub"')
    said = desk.apply(kernel, other)
    assert said.returncode == 3, said.explain()
    assert "shows host key" in said.stderr, said.explain()
    assert desk.run_dirs() == set()


@pytest.mark.parametrize(
    "step", [pytest.param("copy-kernel", marks=nightly.part("apply")), "load-kernel"]
)
def test_killed_before_the_point_of_no_return_it_is_given_up(
    desk: Desk, kernel: str, step: str
) -> None:
    vmms = desk.running()
    with desk.stepped(kernel) as update:
        update.let_through(step)
        run_dir = update.kill()
    second = desk.apply(kernel)
    assert second.returncode == 3, second.explain()
    assert second.document["outcome"] == "refused"
    refusal = check_of({"checks": second.document["preflight"]}, "lock")
    assert refusal["level"] == "refuse" and run_dir.name in refusal["text"], refusal
    assert_rolled_back(desk, desk.call("abort", str(run_dir), "--json"), vmms)


@nightly.part("apply")
def test_killed_while_the_host_prepares_it_is_given_up(desk: Desk, kernel: str) -> None:
    vmms = desk.running()
    with desk.stepped(kernel) as update:
        update.let_through("observe-before")
        update.let(1)
        update.wait_record("intent:prepare")
        run_dir = update.kill()
    assert_rolled_back(desk, desk.call("abort", str(run_dir), "--json"), vmms)


def test_an_image_that_the_host_does_not_load_is_rolled_back(
    desk: Desk, kernel: str, tmp_path: Path
) -> None:
    # no flag of boot.rst says that it is a 64-bit kernel: kexec_file_load(2) refuses it
    image = bytearray(Path(kernel).read_bytes())
    image[XLOADFLAGS : XLOADFLAGS + 2] = bytes(2)
    odd = tmp_path / "bzImage"
    odd.write_bytes(image)
    vmms = desk.running()
    said = desk.apply(str(odd))
    assert_rolled_back(desk, said, vmms)
    assert said.document["reason"].startswith("load-kernel: "), said.explain()
    assert "kexec -s ended with" in said.document["reason"], said.explain()


def test_an_update_that_nothing_comes_between(desk: Desk, kernel: str) -> None:
    said = desk.apply(kernel)
    assert_updated(desk, said)
    document = said.document
    steps = [(each["name"], each["status"]) for each in document["steps"]]
    assert steps == [(step, "done") for step in STEPS], said.explain()
    journal = Path(document["run_dir"], "journal.jsonl").read_text().splitlines()
    assert json.loads(journal[-1])["outcome"] == "updated"
    judged = desk.call("judge", document["bundle"]["path"], "--json")
    assert judged.returncode == 0, judged.explain()
    assert judged.document["outcome"] == "PASS"
    assert judged.document["provenance"]["argv"][:2] == ["liveupdate", "apply"]
    assert judged.document["provenance"]["accel_reason"]


@nightly.part("apply")
def test_a_cable_that_is_out_for_a_while_at_each_step_does_no_harm(desk: Desk, kernel: str) -> None:
    with desk.stepped(kernel) as update:
        # the host is taken when it is first connected to, before anybody is asked
        update.let_through("lock")
        for step in STEPS[1:]:
            update.wait_asked(step)
            with desk.network_cut():
                update.let(1)
                time.sleep(CUT_S)
        said = update.end()
    assert_updated(desk, said)


@nightly.part("apply")
def test_a_cable_that_stays_out_is_said_and_the_update_resumed_when_it_is_back(
    desk: Desk, kernel: str
) -> None:
    with desk.stepped(kernel, "", "--patience", "10") as update:
        update.let_through("load-kernel")
        update.wait_asked("jump")
        # what was asked for may reach the host when nobody waits for it any more
        with desk.network_cut():
            said = update.end()
        run_dir = update.run_dir
    assert said.returncode in (3, 124), said.explain()
    assert said.document["outcome"] in ("unreachable", "interrupted"), said.explain()
    assert str(run_dir) in said.document["next"], said.explain()
    assert_updated(desk, desk.call("resume", str(run_dir), "--json"))


def test_agent_and_control_host_crash_and_it_ends_updated(desk: Desk, kernel: str) -> None:
    with desk.stepped(kernel) as update:
        update.let_through("prepare")
        desk.crash_agent()
        # what the kernel gave up with the agent is done again
        update.let(2 * len(STEPS))
        update.wait_record("done:jump")
        run_dir = update.kill()
    refused = desk.call("abort", str(run_dir), "--json", "--patience", "240")
    assert refused.returncode == 3, refused.explain()
    assert "point of no return" in refused.stderr, refused.explain()
    assert_updated(desk, desk.call("resume", str(run_dir), "--json"))


def test_a_vmm_that_is_killed_takes_no_other_guest_along(desk: Desk, kernel: str) -> None:
    vmms = desk.running()
    with desk.stepped(kernel) as update:
        update.let_through("prepare")
        desk.on_host("kill", "-9", str(vmms.pop("vm2")))
        said = update.end()
    assert said.returncode == 1, said.explain()
    assert said.document["outcome"] == "rolled-back-with-losses", said.explain()
    assert "vm2" in check_of(said.document["result"], "guest.liveness")["reason"]
    assert desk.running() == vmms
    desk.start_guests("vm2")
    assert set(desk.running()) == set(GUESTS)


@nightly.part("apply")
def test_a_panic_that_ends_in_the_old_kernel_is_a_loss_and_said(desk: Desk, kernel: str) -> None:
    # the machine's own watchdog: it resets itself, into the kernel that its boot loader has
    host = desk.describe("panics", append=f'"{labmachine.APPEND} init=/nothing panic=-1"')
    said = desk.apply(kernel, host)
    assert said.returncode == 1, said.explain()
    assert said.document["outcome"] == "lost", said.explain()
    assert desk.running() == {}
    desk.start_guests(*GUESTS)


def test_a_host_that_does_not_come_back_is_reset_and_its_guests_are_lost(
    desk: Desk, kernel: str
) -> None:
    # a panic, and then nothing: the machine does not reset itself
    append = f'"{labmachine.APPEND} init=/nothing panic=0"'
    # the console is gone, too
    gone = {"append": append, "socket": '"/nonexistent/con"'}
    host = desk.describe("gone", **gone, command='["false"]')
    with desk.stepped(kernel, host) as update:
        update.let_through("jump")
        run_dir = update.kill()
    said = desk.call("resume", str(run_dir), "--reset", "--json", "--host", host)
    assert said.returncode == 3, said.explain()
    assert "the power command failed" in said.stderr, said.explain()
    assert said.document["outcome"] == "interrupted" and said.document["next"], said.explain()
    desk.describe("gone", **gone)
    said = desk.call("resume", str(run_dir), "--reset", "--json", "--host", host)
    assert said.returncode == 1, said.explain()
    assert said.document["outcome"] == "lost", said.explain()
    assert desk.running() == {}

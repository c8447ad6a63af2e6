# SPDX-License-Identifier: Apache-2.0
"""The agent's channel against agents that restart, lie, fall silent and talk too much."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import DeadlineExceeded, LostMachine, OutcomeUnknown, RemoteError
from liveupdate.transport.agent_link import AgentLink
from tests.support.fake_peer import Peer, Script, serve


def soon(timeout_s: float = 5.0) -> Deadline:
    return Deadline.after(timeout_s, "the test")


def event(n: int, name: str, **data: object) -> dict[str, object]:
    return {"n": n, "event": name, "t_ns": 1000 * n, "data": data}


def hello(n: int = 1) -> dict[str, object]:
    return event(n, "hello", protocol=1, boot_id="x", pid=70, generation=0, recovered=False)


def saying(*values: object) -> Script:
    def script(peer: Peer) -> None:
        peer.send(*values)
        peer.hang()

    return script


def hearing_once(peer: Peer) -> None:
    peer.receive()


def linked(path: Path, watch: Callable[[], Exception | None] | None = None) -> AgentLink:
    link = AgentLink(path, watch=watch)
    link.connect(soon())
    return link


def test_call_and_refusal(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.send(hello())
        request = peer.receive()
        assert (request["call"], request["args"]) == ("ping", {"a": 1})
        peer.send({"re": request["seq"], "ok": {"boot_id": "x"}})
        request = peer.receive()
        peer.send({"re": request["seq"], "error": {"kind": "not-prepared", "message": "no"}})
        peer.hang()

    with serve(tmp_path / "a", script), linked(tmp_path / "a") as link:
        link.wait_event("hello", soon())
        assert link.call("ping", {"a": 1}, soon()) == {"boot_id": "x"}
        with pytest.raises(RemoteError, match="not-prepared") as caught:
            link.call("jump", {}, soon())
        assert (caught.value.call, caught.value.kind) == ("jump", "not-prepared")


def test_answers_out_of_order_find_their_callers(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        requests = [peer.receive() for _ in range(8)]
        for request in reversed(requests):
            peer.send({"re": request["seq"], "ok": {"echo": request["args"]}})
        peer.hang()

    with serve(tmp_path / "a", script), linked(tmp_path / "a") as link:
        answers: dict[int, object] = {}

        def ask(number: int) -> None:
            answers[number] = link.call("x", {"n": number}, soon())["echo"]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {number: {"n": number} for number in range(8)}


def test_a_hello_cuts_off_what_was_under_way_and_numbers_begin_anew(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.send(hello(), event(2, "jumping"))
        first = peer.receive()
        # kexec: half a line, then the agent of the next kernel, which begins with a newline
        peer.send_raw(b'{"n":3,"event":"gue')
        peer.send_raw(b"\n")
        peer.send(hello())
        # the request lay in the port and is answered by the wrong boot
        peer.send({"re": first["seq"], "ok": {}})
        second = peer.receive()
        peer.send({"re": second["seq"], "ok": {"second": True}}, event(2, "restored"))
        peer.hang()

    with serve(tmp_path / "a", script), linked(tmp_path / "a") as link:
        link.wait_event("jumping", soon())
        with pytest.raises(OutcomeUnknown, match="new boot"):
            link.call("finish", {}, soon())
        assert link.call("ping", {}, soon()) == {"second": True}
        restored = link.wait_event("restored", soon())
        assert (restored.boot, restored.n) == (2, 2)
        assert link.garbled_lines == 1


def test_the_first_request_after_a_hello_begins_with_a_newline(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.send(hello())
        for _ in range(2):
            raw = b""
            while not raw.strip() or not raw.endswith(b"\n"):
                raw += peer._link.recv(4096)
            seen.append(raw)
            peer.send({"re": len(seen), "ok": {}})
        peer.hang()

    with serve(tmp_path / "a", script), linked(tmp_path / "a") as link:
        link.wait_event("hello", soon())
        link.call("one", {}, soon())
        link.call("two", {}, soon())
    assert seen[0].startswith(b"\n{") and seen[1].startswith(b"{")


def test_events_are_found_by_guest_and_from_a_position(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.send(hello(), event(2, "paused", guest="vm0"), event(3, "paused", guest="vm1"))
        peer.receive()
        peer.send(event(4, "paused", guest="vm0"))
        peer.hang()

    with serve(tmp_path / "a", script), linked(tmp_path / "a") as link:
        began = time.monotonic_ns()
        assert link.wait_for(lambda event: event.guest == "vm1", soon(), what="vm1").n == 3
        mark = link.mark()
        with pytest.raises(DeadlineExceeded, match="no event"):
            link.wait_for(lambda _event: True, soon(0.1), what="any", since=mark)
        with pytest.raises(DeadlineExceeded, match="last seen: hello, paused, paused"):
            link.wait_event("x", soon(0.1))
        with pytest.raises(DeadlineExceeded):
            link.call("again", {}, soon(0.3))
        again = link.wait_for(lambda _event: True, soon(), what="any", since=mark)
        assert (again.n, again.guest, again.t_ns) == (4, "vm0", 4000)
        assert again.at_ns > began


def test_cut_line_is_outcome_unknown_then_lost(tmp_path: Path) -> None:
    with (
        serve(tmp_path / "a", hearing_once),
        linked(tmp_path / "a") as link,
    ):
        with pytest.raises(OutcomeUnknown, match="QEMU closed it"):
            link.call("jump", {}, soon())
        with pytest.raises(LostMachine):
            link.call("ping", {}, soon())
        with pytest.raises(LostMachine, match="before 'restored'"):
            link.wait_event("restored", soon())


def test_a_panic_ends_every_wait(tmp_path: Path) -> None:
    panic = LostMachine("kernel panic in boot 1", how="exited")
    told: list[Exception] = []
    with (
        serve(tmp_path / "a", Peer.hang),
        linked(tmp_path / "a", lambda: told[0] if told else None) as link,
    ):
        threading.Timer(0.1, told.append, [panic]).start()
        with pytest.raises(LostMachine, match="panic"):
            link.wait_event("restored", soon())
        with pytest.raises(LostMachine, match="panic"):
            link.call("ping", {}, soon())


def test_what_arrived_before_the_panic_still_counts(tmp_path: Path) -> None:
    panic = LostMachine("kernel panic", how="exited")
    told: list[Exception] = []
    with (
        serve(tmp_path / "a", saying(hello())),
        linked(tmp_path / "a", lambda: told[0] if told else None) as link,
    ):
        link.wait_event("hello", soon())
        told.append(panic)
        assert link.wait_event("hello", soon()).n == 1


def test_a_host_that_does_not_read_is_a_deadline(tmp_path: Path) -> None:
    with (
        serve(tmp_path / "a", Peer.hang),
        linked(tmp_path / "a") as link,
        pytest.raises(DeadlineExceeded, match="does not read"),
    ):
        link.call("big", {"pad": "x" * (4 << 20)}, soon(0.3))


def test_an_endless_line_is_bounded_and_survived(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        for _ in range(20):
            peer.send_raw(b"x" * (1 << 20))
        peer.send_raw(b"\n")
        peer.send(hello())
        peer.hang()

    with serve(tmp_path / "a", script), linked(tmp_path / "a") as link:
        link.wait_event("hello", soon(20))
        assert link.garbled_lines == 1


def test_closing_frees_a_caller(tmp_path: Path) -> None:
    with serve(tmp_path / "a", Peer.hang):
        link = linked(tmp_path / "a")
        threading.Timer(0.1, link.close).start()
        with pytest.raises(OutcomeUnknown, match="closed on this side"):
            link.call("ping", {}, soon())
        link.close()


def test_nobody_listens(tmp_path: Path) -> None:
    with AgentLink(tmp_path / "a") as link:
        with pytest.raises(DeadlineExceeded, match="no process listens"):
            link.connect(soon(0.1))
        with pytest.raises(LostMachine, match="not connected"):
            link.call("ping", {}, soon())


def test_a_full_socket_is_not_a_busy_loop(tmp_path: Path) -> None:
    """The reader waits in the kernel: silence costs no processor time."""
    with serve(tmp_path / "a", Peer.hang), linked(tmp_path / "a") as link:
        began = time.process_time()
        with pytest.raises(DeadlineExceeded):
            link.wait_event("x", soon(0.5))
        assert time.process_time() - began < 0.25

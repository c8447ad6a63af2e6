# SPDX-License-Identifier: Apache-2.0
"""The agent's QMP client against a scripted monitor on a socket pair (the designed seam)."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from liveupdate.agent.guest.qmp import Qmp, QmpError, QmpLost

Table = dict[str, list[dict[str, object]]]
VERSION: dict[str, object] = {"qemu": {"major": 11, "minor": 1, "micro": 3}}
GREETING = {"QMP": {"version": VERSION}}


class Monitor:
    """Answers commands from a table; fails the test on one that is not in it."""

    def __init__(self, sock: socket.socket, table: Table) -> None:
        self.sock = sock
        self.table = table
        self.seen: list[str] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        self.sock.sendall(json.dumps(GREETING).encode() + b"\r\n")
        for line in self.sock.makefile("rb"):
            command = json.loads(line)
            self.seen.append(command["execute"])
            for message in self.table[command["execute"]]:
                if "event" not in message:
                    message = {**message, "id": command["id"]}
                self.sock.sendall(json.dumps(message).encode() + b"\r\n")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def soon() -> float:
    return time.monotonic() + 5


def test_batch_collects_answers_between_events(pair: tuple[socket.socket, socket.socket]) -> None:
    event: dict[str, object] = {"event": "MIGRATION", "data": {"status": "completed"}}
    table: Table = {
        "qmp_capabilities": [{"return": {}}],
        "stop": [{"event": "STOP"}, {"return": {}}],
        "migrate": [event, {"return": {"x": 1}}],
    }
    Monitor(pair[1], table)
    qmp = Qmp(pair[0])
    assert qmp.greet(soon()) == VERSION
    assert qmp.batch([("stop", {}), ("migrate", {})], soon()) == [{}, {"x": 1}]
    data = qmp.wait_event("MIGRATION", lambda d: d.get("status") == "completed", soon())
    assert data == {"status": "completed"}


def test_refusal_carries_the_monitors_words(pair: tuple[socket.socket, socket.socket]) -> None:
    table: Table = {
        "qmp_capabilities": [{"return": {}}],
        "cont": [{"error": {"class": "GenericError", "desc": "not now"}}],
    }
    Monitor(pair[1], table)
    qmp = Qmp(pair[0])
    qmp.greet(soon())
    with pytest.raises(QmpError, match="'cont' refused: not now"):
        qmp.batch([("cont", {})], soon())


def test_silence_and_hangup_are_lost(pair: tuple[socket.socket, socket.socket]) -> None:
    qmp = Qmp(pair[0])
    with pytest.raises(QmpLost):
        qmp.greet(time.monotonic() + 0.05)
    pair[1].close()
    with pytest.raises(QmpLost, match="closed"):
        qmp.greet(soon())


def test_garbage_instead_of_a_greeting_is_lost(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].sendall(b"[]\n7\n{}\n")
    with pytest.raises(QmpLost, match="greeting"):
        Qmp(pair[0]).greet(soon())

# SPDX-License-Identifier: Apache-2.0
"""A peer on a unix socket that does as a script says: it may hang, lie, or cut the line."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Peer:
    """The far end, in a thread of its own. ``release`` ends a script that hangs."""

    def __init__(self, link: socket.socket, release: threading.Event) -> None:
        self._link = link
        self._buffer = b""
        self.release = release

    def send(self, *values: object) -> None:
        """Send JSON lines."""
        self.send_raw(b"".join(json.dumps(value).encode() + b"\n" for value in values))

    def send_raw(self, data: bytes) -> None:
        self._link.sendall(data)

    def receive(self) -> dict[str, object]:
        """Return the next JSON object; lines matter as little as they do to QEMU."""
        while True:
            text = self._buffer.lstrip()
            try:
                value, end = json.JSONDecoder().raw_decode(text.decode())
            except ValueError:
                data = self._link.recv(65536)
                if not data:
                    raise EOFError from None
                self._buffer += data
                continue
            self._buffer = text[end:]
            assert isinstance(value, dict)
            return value

    def hang(self) -> None:
        self.release.wait(30)

    def cut(self) -> None:
        self._link.close()


Script = Callable[[Peer], None]


@contextmanager
def serve(path: Path, script: Script) -> Iterator[None]:
    """Accept one connection at ``path`` and play ``script``."""
    release = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def play() -> None:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            with link:
                try:
                    script(Peer(link, release))
                except (EOFError, OSError):
                    return

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield
        finally:
            release.set()
            # frees an accept() that nobody came to
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert not thread.is_alive()


GREETING = {
    "QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""},
            "capabilities": ["oob"]},
}  # fmt: skip


def greeted(then: Script) -> Script:
    """A script that lets a client connect, takes its first request and goes on with ``then``."""

    def script(peer: Peer) -> None:
        peer.send(GREETING)
        assert peer.receive()["execute"] == "qmp_capabilities"
        peer.send({"return": {}})
        peer.receive()
        then(peer)

    return script

# SPDX-License-Identifier: Apache-2.0
"""SSH against a real sshd on loopback that the test starts, and against things that are none."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import CommandFailed, DeadlineExceeded, LostMachine, OutcomeUnknown
from liveupdate.transport.ssh import Ssh, WrongHostKey, read_public_key

SSHD = proc.find_program("sshd")
pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh-keygen") is None,
    reason="no sshd; apt-get install openssh-server",
)


def soon(timeout_s: float = 10.0) -> Deadline:
    return Deadline.after(timeout_s, "the test")


@dataclass(frozen=True)
class Server:
    port: int
    directory: Path
    child: proc.Child


def make_key(path: Path) -> None:
    argv = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))
    proc.run(argv, deadline=soon())


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert SSHD is not None
    directory = tmp_path_factory.mktemp("sshd")
    for name in ("host", "other", "client", "stranger"):
        make_key(directory / name)
    (directory / "authorized").write_text((directory / "client.pub").read_text())
    Path("/run/sshd").mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": directory / "host",
        "AuthorizedKeysFile": directory / "authorized", "PidFile": "none", "UsePAM": "no",
        "PasswordAuthentication": "no", "PermitRootLogin": "yes", "StrictModes": "no",
    }  # fmt: skip
    argv = [SSHD, "-D", "-e", "-f", "/dev/null"]
    argv += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    with proc.spawn(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        yield Server(port, directory, child)


def log_in(server: Server, *, key: str = "client", host_key: str = "host", s: float = 10.0) -> Ssh:
    return Ssh.connect(
        host="127.0.0.1",
        port=server.port,
        user=getpass.getuser(),
        key=server.directory / key,
        host_key=server.directory / f"{host_key}.pub",
        deadline=soon(s),
    )


@pytest.fixture
def ssh(sshd: Server) -> Iterator[Ssh]:
    with log_in(sshd) as ssh:
        yield ssh


def test_command_with_odd_words_output_and_status(ssh: Ssh) -> None:
    result = ssh.run(
        ("sh", "-c", 'printf "%s" "$1"; echo err >&2; exit 3', "x", "a 'b' $c\n"), soon()
    )
    assert (result.stdout, result.stderr, result.status) == (b"a 'b' $c\n", b"err\n", 3)
    with pytest.raises(CommandFailed, match="exit 3.*err"):
        result.check()


def test_much_output_is_read_to_its_end(ssh: Ssh) -> None:
    result = ssh.run(("head", "-c", "5000000", "/dev/zero"), soon(30), check=True)
    assert len(result.stdout) == 5_000_000


def test_files_there_and_back(ssh: Ssh, tmp_path: Path) -> None:
    data = bytes(range(256)) * 2000
    path = tmp_path / "a file"
    ssh.put(data, str(path), soon(), mode=0o640)
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o640
    assert ssh.run(("cat", str(path)), soon(), check=True).stdout == data
    with pytest.raises(CommandFailed, match="No such file"):
        ssh.run(("cat", str(tmp_path / "missing")), soon(), check=True)
    with pytest.raises(CommandFailed):
        ssh.put(b"x", "/nonexistent/x", soon())


def test_a_command_that_hangs_is_a_deadline_and_the_line_stays_up(ssh: Ssh) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="no output|started"):
        ssh.run(("sleep", "60"), soon(0.5))
    assert time.monotonic() - began < 3
    assert ssh.run(("true",), soon()).status == 0


def test_a_command_killed_by_a_signal_has_no_status_of_its_own(ssh: Ssh) -> None:
    assert ssh.run(("sh", "-c", "kill -9 $$"), soon()).status != 0


def test_another_host_key_is_refused_at_once(sshd: Server) -> None:
    began = time.monotonic()
    with pytest.raises(WrongHostKey, match="another machine"):
        log_in(sshd, host_key="other", s=20)
    assert time.monotonic() - began < 10


def test_a_refused_login_is_refused_at_once(sshd: Server) -> None:
    began = time.monotonic()
    with pytest.raises(LostMachine, match="refused the key"):
        log_in(sshd, key="stranger", s=20)
    assert time.monotonic() - began < 10


def test_nothing_to_pin_is_nothing_to_believe(sshd: Server, tmp_path: Path) -> None:
    (sshd.directory / "empty.pub").write_text("ssh-ed25519 nonsense\n")
    with pytest.raises(LostMachine, match="no public host key"):
        log_in(sshd, host_key="empty")


def test_public_key_is_found_in_a_known_hosts_line(sshd: Server, tmp_path: Path) -> None:
    plain = sshd.directory / "host.pub"
    known = tmp_path / "known_hosts"
    known.write_text("[127.0.0.1]:22 " + plain.read_text())
    assert read_public_key(known) == read_public_key(plain)


def test_a_line_cut_under_a_command_is_outcome_unknown(sshd: Server) -> None:
    with log_in(sshd) as ssh:
        threading.Timer(0.3, lambda: ssh._transport.sock.shutdown(socket.SHUT_RDWR)).start()
        with pytest.raises(OutcomeUnknown, match="cut"):
            ssh.run(("sleep", "20"), soon())
        with pytest.raises(LostMachine):
            ssh.run(("true",), soon())


def test_closing_from_outside_frees_the_caller(sshd: Server) -> None:
    with log_in(sshd) as ssh:
        threading.Timer(0.3, ssh.close).start()
        with pytest.raises(OutcomeUnknown):
            ssh.run(("sleep", "20"), soon())


def test_a_port_that_says_nothing_is_a_deadline(sshd: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = Server(silent.getsockname()[1], sshd.directory, sshd.child)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            log_in(server, s=1.0)
        assert time.monotonic() - began < 5


def test_a_port_nobody_listens_on_says_what_was_tried(sshd: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(DeadlineExceeded, match="refused"):
        log_in(Server(port, sshd.directory, sshd.child), s=0.3)


def test_a_dead_machine_ends_the_wait(sshd: Server) -> None:
    with pytest.raises(LostMachine, match="exited"):
        Ssh.connect(
            host="127.0.0.1",
            port=1,
            user="root",
            key=sshd.directory / "client",
            host_key=sshd.directory / "host.pub",
            deadline=soon(),
            watch=lambda: LostMachine("QEMU exited", how="exited"),
        )

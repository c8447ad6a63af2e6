# SPDX-License-Identifier: Apache-2.0
"""The inside view: files of a real boot, read over a connection that is a script."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import CommandFailed, EvidenceError
from liveupdate.formats.iommu import Requester, unpack_runs
from liveupdate.probes.iommu_inside import DEBUGFS, read_inside
from liveupdate.transport.ssh import Ssh, SshResult
from tests.support.vtd_captures import MODES, NVME, Capture

LIST = f"{DEBUGFS}/dmar_translation_struct"
DOMAIN = f"{DEBUGFS}/0000:03:00.0/domain_translation_struct"


class ScriptedSsh:
    """Has some files, packs them as it is asked to, and has nothing else."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.asked: list[str] = []

    def run(
        self, argv: Sequence[str], deadline: Deadline, *, stdin: bytes = b"", check: bool = False
    ) -> SshResult:
        *command, path = argv
        assert (command, check) == (["gzip", "-1", "-c", "--"], True)
        self.asked.append(path)
        if path not in self.files:
            raise CommandFailed(tuple(argv), 1, f"{path}: No such file or directory")
        return SshResult(argv=tuple(argv), stdout=self.files[path], stderr=b"", status=0)


def files_of(name: str) -> dict[str, bytes]:
    document = Capture(name).document
    return {
        LIST: gzip.compress(document["dmar_translation_struct"].encode()),
        DOMAIN: gzip.compress(document["domain_translation_struct"].encode()),
    }


def read(files: Mapping[str, bytes], requester: Requester = NVME) -> object:
    ssh = cast(Ssh, ScriptedSsh(files))
    return read_inside(ssh, requester, "before", Deadline.after(5, "the test"))


@pytest.mark.parametrize("name", MODES)
def test_files_of_the_device_itself_are_read_in_every_mode(name: str) -> None:
    (facts,) = read_inside(
        cast(Ssh, ScriptedSsh(files_of(name))), NVME, "after", Deadline.after(5, "the test")
    )
    outside = Capture(name).outside()
    assert (facts.view, facts.moment) == ("inside", "after")
    assert unpack_runs(facts.runs) == outside.runs
    assert (facts.requester, facts.top) == (str(outside.requester), outside.binding.top)


def test_device_without_an_entry_is_blocked_and_not_nothing() -> None:
    other = Requester(bus=4, devfn=0)
    (facts,) = read_inside(
        cast(Ssh, ScriptedSsh(files_of("legacy"))), other, "after", Deadline.after(5, "the test")
    )
    assert (facts.requester, facts.translation, facts.runs) == ("0000:04:00.0", "blocked", b"")


@pytest.mark.parametrize(
    "spoilt",
    [
        {LIST: gzip.compress(b"nonsense\n")},
        {LIST: b"not packed"},
        {LIST: gzip.compress("IOMMU dmar\xe9".encode("latin-1"))},
        {DOMAIN: gzip.compress(b"")},
        {DOMAIN: gzip.compress(b"Device 0000:09:00.0 @0x1000\nIOVA_PFN\n")},
    ],
    ids=["nonsense", "not-packed", "no-ascii", "empty", "other-device"],
)
def test_files_that_make_no_sense_are_one_error(spoilt: Mapping[str, bytes]) -> None:
    with pytest.raises(EvidenceError):
        read({**files_of("legacy"), **spoilt})


def test_kernel_without_debugfs_is_the_connections_error() -> None:
    with pytest.raises(CommandFailed, match="No such file"):
        read({})

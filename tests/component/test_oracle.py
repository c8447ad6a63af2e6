# SPDX-License-Identifier: Apache-2.0
"""A machine that cannot be watched is noted as such, once, and never as a device that did well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from liveupdate.core.steps import Steps
from liveupdate.model.evidence import Incident
from liveupdate.run import testbed
from liveupdate.run.observers.iommu import IommuObserver
from tests.support import iommu_evidence as seen
from tests.support.fake_peer import Peer, greeted, serve


class Record:
    """Takes incidents, and nothing else: what was not seen must not be stored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.incidents: list[Incident] = []

    def add_incident(self, incident: Incident) -> None:
        self.incidents.append(incident)


def make_bed(tmp_path: Path, record: Record) -> testbed.Testbed:
    machine = SimpleNamespace(watch_path=tmp_path / "q", ram=None)
    host = SimpleNamespace(console=SimpleNamespace(mark=lambda: 0))
    return cast(
        testbed.Testbed,
        SimpleNamespace(plan=seen.make_plan(), own_machine=machine, record=record, host=host),
    )


@pytest.mark.parametrize(
    "script",
    [
        lambda peer: peer.send({"hello": 1}),
        Peer.cut,
        greeted(lambda peer: peer.send({"return": "FlatView #0\n"})),
        greeted(Peer.cut),
    ],
    ids=["no-qmp", "cut", "no-memory-map", "cut-later"],
)
def test_machine_that_cannot_be_watched_is_one_incident(
    tmp_path: Path, script: Callable[[Peer], None]
) -> None:
    record = Record(tmp_path)
    oracle = IommuObserver(make_bed(tmp_path, record), 1, Steps())
    with serve(tmp_path / "q", script):
        oracle.begin()
        oracle.end()
        oracle.store()
    (incident,) = record.incidents
    assert (incident.kind, incident.hop) == ("harness", 1)
    assert incident.text.startswith("the devices cannot be watched: ")


def test_without_devices_nothing_is_even_connected(tmp_path: Path) -> None:
    record = Record(tmp_path)
    bed = make_bed(tmp_path, record)
    bed.plan = replace(bed.plan, devices=())
    oracle = IommuObserver(bed, 1, Steps())
    oracle.begin()
    oracle.end()
    oracle.store()
    assert record.incidents == []

# SPDX-License-Identifier: Apache-2.0
"""The manifest and the guests' descriptions are input from outside, and are checked as such."""

from __future__ import annotations

import os
import struct
from binascii import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveupdate.agent.base.fast_stdlib import encode_json
from liveupdate.agent.base.names import SpecError
from liveupdate.agent.guest.kvm_clock import SavedClock
from liveupdate.agent.guest.spec import APPEND_MAX, GuestEntry, GuestSpec
from liveupdate.agent.guest.state import StateSum
from liveupdate.agent.update import manifest

#: the whole unit suite has seconds, and shares its CPUs
QUICK = settings(deadline=None, max_examples=40)
BOOT = "6f1c9e1e-0000-4000-8000-000000000001"
GOOD: dict[str, object] = {"name": "vm0", "index": 0, "memory_bytes": 256 << 20}


def entry(**changes: object) -> GuestEntry:
    return GuestEntry(GuestSpec({**GOOD, **changes}), StateSum(4096, "ab" * 16))


def test_manifest_survives_the_round_trip() -> None:
    guest = entry(seed="18446744073709551615", append="a=b", qga=True)
    guest.faults = [{"fault": "move-page", "page": 3}]
    data = manifest.encode(BOOT, [guest, entry(name="vm1", index=1)], 1 << 16, [{"name": "nic0"}])
    boot_id, guests, devices = manifest.decode(data + bytes(1000))
    assert devices == [{"name": "nic0"}]
    assert boot_id == BOOT
    assert guests[0].spec.to_json() == guest.spec.to_json()
    assert guests[0].faults == guest.faults
    assert vars(guests[0].state) == {"size": 4096, "digest": "ab" * 16}
    assert [g.spec.name for g in guests] == ["vm0", "vm1"]


CLOCK = {"clock_ns": 5_000_000_000, "tsc": 10_000_000_000, "khz": 2_000_000}


def test_clock_goes_over_and_goes_on_with_the_tsc() -> None:
    guest = entry()
    guest.clock = SavedClock(CLOCK)
    _, (came, other), _ = manifest.decode(
        manifest.encode(BOOT, [guest, entry(name="vm1", index=1)], 1 << 16)
    )
    assert other.clock is None
    assert came.clock is not None
    assert came.clock.at(10_000_000_000) == 5_000_000_000
    # 4 s at 2 GHz
    assert came.clock.at(18_000_000_000) == 9_000_000_000


@pytest.mark.parametrize("name", CLOCK)
@pytest.mark.parametrize("value", [None, -1, True, 1.5, "5", 1 << 64])
def test_clock_that_is_none_is_refused(name: str, value: object) -> None:
    with pytest.raises(SpecError, match="'clock' is"):
        SavedClock({**CLOCK, name: value})


def test_clock_without_a_frequency_is_refused() -> None:
    with pytest.raises(SpecError, match="stands still"):
        SavedClock({**CLOCK, "khz": 0})
    with pytest.raises(SpecError):
        SavedClock("soon")


def test_manifest_in_a_memfd() -> None:
    fd = manifest.create(2)
    try:
        os.pwrite(fd, manifest.encode(BOOT, [entry()], manifest.size_for(2)), 0)
        assert os.fstat(fd).st_size == manifest.size_for(2)
        assert manifest.read(fd)[0] == BOOT
    finally:
        os.close(fd)


def test_unwritten_manifest_is_an_error_not_empty() -> None:
    fd = manifest.create(1)
    try:
        with pytest.raises(manifest.ManifestError, match="magic"):
            manifest.read(fd)
    finally:
        os.close(fd)


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(manifest.ManifestError):
        manifest.decode(data)


@QUICK
@given(st.data())
def test_one_flipped_bit_is_noticed(data: st.DataObject) -> None:
    good = bytearray(manifest.encode(BOOT, [entry()], 1 << 16))
    at = data.draw(st.integers(0, len(good) * 8 - 1).filter(lambda n: not 20 * 8 <= n < 24 * 8))
    good[at // 8] ^= 1 << at % 8
    with pytest.raises(manifest.ManifestError):
        manifest.decode(bytes(good))


@QUICK
@given(st.integers(0, 500))
def test_truncation_is_noticed(length: int) -> None:
    good = manifest.encode(BOOT, [entry()], 1 << 16)
    with pytest.raises(manifest.ManifestError):
        manifest.decode(good[: min(length, len(good) - 1)])


def seal(body: object, version: int = manifest.VERSION) -> bytes:
    text = encode_json(body)
    return struct.pack("<8sIIII", manifest.MAGIC, version, len(text), crc32(text), 0) + text


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"boot_id": BOOT},
        {"boot_id": 1, "guests": []},
        {"boot_id": BOOT, "guests": [1]},
        {"boot_id": BOOT, "guests": [{"spec": GOOD}]},
        {"boot_id": BOOT, "guests": [{"spec": GOOD, "state_bytes": -1}]},
        {"boot_id": BOOT, "guests": [{"spec": {}, "state_bytes": 4096}]},
        {"boot_id": BOOT, "guests": [{"spec": GOOD, "state_bytes": 4096, "state_digest": 1}]},
        {"boot_id": BOOT, "guests": [{"spec": GOOD, "state_bytes": 4096, "faults": [1]}]},
        {"boot_id": BOOT, "guests": [{"spec": GOOD, "state_bytes": 4096}] * 2},
    ],
)
def test_well_sealed_nonsense_is_refused(body: object) -> None:
    with pytest.raises(manifest.ManifestError):
        manifest.decode(seal(body))


def test_a_manifest_of_an_agent_that_took_no_digest_is_read() -> None:
    _, (guest,), _ = manifest.decode(
        seal({"boot_id": BOOT, "guests": [{"spec": GOOD, "state_bytes": 4096}]})
    )
    assert vars(guest.state) == {"size": 4096, "digest": ""}


def test_other_version_is_refused() -> None:
    with pytest.raises(manifest.ManifestError, match="version 2"):
        manifest.decode(seal({"boot_id": BOOT, "guests": []}, version=2))


def test_manifest_of_the_longest_guests_fits() -> None:
    guests = [
        entry(name=f"{'n' * 18}{i:02}", index=i, append="\\" * APPEND_MAX, image="\\" * 4096)
        for i in range(64)
    ]
    size = manifest.size_for(len(guests))
    assert len(manifest.decode(manifest.encode(BOOT, guests, size))[1]) == 64
    with pytest.raises(manifest.ManifestError, match="do not fit"):
        manifest.encode(BOOT, guests, 4096)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "../x"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 21}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "a,b"}, "name"),
        ({"index": None}, "index"),
        ({"index": 256}, "index"),
        ({"index": True}, "index"),
        ({"memory_bytes": (256 << 20) + 4096}, "memory_bytes"),
        ({"memory_bytes": 0}, "memory_bytes"),
        ({"vcpus": 0}, "vcpus"),
        ({"seed": "-1"}, "seed"),
        ({"seed": 1 << 64}, "seed"),
        ({"append": "a\nb"}, "append"),
        ({"append": ["a"]}, "append"),
        ({"disk": "/dev/vda,readonly=off"}, "disk"),
    ],
)
def test_bad_description_names_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(SpecError, match=field):
        GuestSpec({**GOOD, **changes})


def test_kernel_line_carries_the_payloads_parameters() -> None:
    spec = GuestSpec({**GOOD, "pattern_bytes": 4096, "seed": "7", "append": "lu.tick_ms=5"})
    line = spec.kernel_append()
    assert "lu.pattern=4096 lu.seed=7 lu.name=vm0" in line
    assert line.endswith("lu.tick_ms=5")

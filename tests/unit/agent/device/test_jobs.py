# SPDX-License-Identifier: Apache-2.0
"""What devices do for their driver: an edu that copies, an NVMe controller that reads."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from liveupdate.agent.device import edu, nvme, vfio
from liveupdate.agent.device.devices import DeviceSpec
from liveupdate.agent.device.jobs import Job, Receive, make_job
from liveupdate.agent.device.ring import RING_AT, Account, RingError, make_frame
from liveupdate.agent.device.vfio import JobError

IOVA = 0x1000_0000
STREAM = 7
ENTRIES = 16


def spec(kind: str) -> DeviceSpec:
    raw = {"name": "d0", "kind": kind, "entries": ENTRIES, "stream": str(STREAM)}
    return DeviceSpec(raw)


def counts(job: Job) -> dict[str, int]:
    assert job.account is not None
    return {
        name: getattr(job.account, name)
        for name in (*Account.COUNTS, "expected")
        if getattr(job.account, name)
    }


class Machine:
    """A device with memory that goes on from one kernel to the next."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.bar = mmap.mmap(-1, 8192)
        self.job = make_job(spec(kind), IOVA)
        self.memory = mmap.mmap(-1, self.job.size)
        self.job.lay_out(self.memory)

    def read(self, register: int) -> int:
        return int.from_bytes(self.bar[register : register + 4], "little")

    def write(self, register: int, value: int) -> None:
        self.bar[register : register + 4] = value.to_bytes(4, "little")

    def at(self, iova: int, size: int) -> slice:
        return slice(iova - IOVA, iova - IOVA + size)

    def run(self) -> None:
        """What the hardware does while the driver sleeps."""
        raise NotImplementedError

    def next_kernel(self) -> Job:
        """The agent of the next kernel finds the memory as it is."""
        self.job.close()
        self.job = make_job(spec(self.kind), IOVA)
        self.job.find(self.memory)
        return self.job

    def close(self) -> None:
        self.job.close()
        self.memory.close()
        self.bar.close()


class EduMachine(Machine):
    def __init__(self) -> None:
        super().__init__("edu")
        self.write(0, 0x0100_00ED)
        self.buffer = b""

    def run(self) -> None:
        command, count = self.read(0x98), self.read(0x90)
        if not command & 1:
            return
        if command & 2:
            self.memory[self.at(self.read(0x88), count)] = self.buffer
        else:
            self.buffer = self.memory[self.at(self.read(0x80), count)]
        self.write(0x98, command & ~1)


class NvmeMachine(Machine):
    def __init__(self) -> None:
        super().__init__("nvme")
        self.limit = 1 << 30
        self.heads = [0, 0]
        self.done = [0, 0]
        self.order: list[int] = []
        self.status = 0
        self.block = 0

    def run(self) -> None:
        self.write(0x1C, self.read(0x14) & 1)
        for queue, (entries, sq, cq) in enumerate(
            (
                (64, nvme._ADMIN_SQ_AT, nvme._ADMIN_CQ_AT),
                (ENTRIES, nvme._SQ_AT, nvme._CQ_AT),
            )
        ):
            while self.heads[queue] != self.read(0x1000 + 8 * queue) and (
                queue == 0 or self.limit > 0
            ):
                at = sq + self.heads[queue] * 64
                self.heads[queue] = (self.heads[queue] + 1) % entries
                self.limit -= queue
                self.carry_out(queue, entries, cq, self.memory[at : at + 64])

    def carry_out(self, queue: int, entries: int, cq: int, command: bytes) -> None:
        first, _nsid, _two, _meta, data, _prp2, block, *_rest = struct.unpack("<IIQQQQ6I", command)
        if queue:
            self.memory[self.at(data, 512)] = make_frame(STREAM, block + self.block).ljust(
                512, b"\0"
            )
        count = self.done[queue]
        self.done[queue] += 1
        at = cq + count % entries * 16
        phase = 1 ^ count // entries & 1
        struct.pack_into("<QHHHH", self.memory, at, 0, 0, 0, first >> 16, self.status << 1 | phase)


@pytest.fixture
def copier(monkeypatch: pytest.MonkeyPatch) -> Iterator[EduMachine]:
    made = EduMachine()
    clock = SimpleNamespace(sleep=lambda _s: made.run(), monotonic=lambda: 0.0)
    monkeypatch.setattr(vfio, "time", clock)
    yield made
    made.close()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[NvmeMachine]:
    made = NvmeMachine()
    clock = SimpleNamespace(sleep=lambda _s: made.run(), monotonic=lambda: 0.0)
    monkeypatch.setattr(vfio, "time", clock)
    yield made
    made.close()


def test_network_cards_receive() -> None:
    assert isinstance(make_job(spec("igb"), IOVA), Receive)
    assert isinstance(make_job(spec("e1000e"), IOVA), Receive)


# --- edu


def test_edu_copies_frame_after_frame(copier: EduMachine) -> None:
    copier.job.start(copier.bar)
    for _ in range(20):
        copier.run()
        copier.job.poll()
    assert counts(copier.job) == {"received": 10, "expected": 10}


def test_edu_that_is_busy_is_left_alone(copier: EduMachine) -> None:
    copier.job.start(copier.bar)
    copier.job.poll()
    assert copier.read(0x98) == 1
    assert counts(copier.job) == {}


def test_frame_on_its_way_lands_without_anybody(copier: EduMachine) -> None:
    copier.job.start(copier.bar)
    copier.run()
    copier.job.poll()  # puts frame 0 now
    copier.job.leave()  # frame 0 is entered, frame 1 on its way
    assert counts(copier.job) == {"received": 1, "expected": 1}
    assert copier.next_kernel().landed().found == 0
    copier.run()
    landed = copier.next_kernel().landed()
    assert (landed.found, landed.first, landed.last) == (1, 1, 1)
    copier.job.adopt(copier.bar)
    copier.job.poll()
    assert counts(copier.job) == {"received": 2, "expected": 2}


def test_frame_that_did_not_come_back_is_not_taken_for_one(copier: EduMachine) -> None:
    copier.job.start(copier.bar)
    copier.job.leave()
    copier.write(0x98, 0)  # done, it says, and has written nothing
    job = copier.next_kernel()
    assert job.landed().found == 0
    job.adopt(copier.bar)
    job.poll()
    assert counts(job)["foreign"] == 1


def test_edu_that_rests_goes_on_where_it_was(copier: EduMachine) -> None:
    copier.job.start(copier.bar)
    for _ in range(4):
        copier.run()
        copier.job.poll()
    before = counts(copier.job)
    copier.job.rest()
    assert not copier.read(0x98) & 1  # it does nothing any more
    copier.next_kernel().resume(copier.bar)
    for _ in range(4):
        copier.run()
        copier.job.poll()
    after = counts(copier.job)
    assert set(after) == {"received", "expected"}
    assert after["received"] == after["expected"] > before["received"]


def test_edu_that_was_not_left_at_work_is_refused(copier: EduMachine) -> None:
    with pytest.raises(RingError, match="on its way"):
        copier.next_kernel()


def test_other_device_than_an_edu_is_refused(copier: EduMachine) -> None:
    copier.write(0, 0x1234)
    with pytest.raises(JobError, match="not an edu's"):
        copier.job.start(copier.bar)


def test_transfer_that_does_not_end_is_not_waited_for_for_ever(
    copier: EduMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    copier.job.start(copier.bar)
    times = iter(range(100))
    clock = SimpleNamespace(sleep=lambda _s: None, monotonic=lambda: float(next(times)))
    monkeypatch.setattr(vfio, "time", clock)
    with pytest.raises(JobError, match="transfer to end"):
        copier.job.leave()


# --- nvme


@pytest.mark.parametrize("blocks", [nvme.BLOCKS, 20], ids=["all-blocks", "over-again"])
def test_reads_go_on_round_and_round(
    reader: NvmeMachine, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvme, "BLOCKS", blocks)
    reader.job.start(reader.bar)
    for _ in range(40):
        reader.run()
        reader.job.poll()
    # the last of them are in flight
    assert counts(reader.job) == {"received": 40 * 15, "expected": 40 * 15}


def test_reads_in_flight_land_without_anybody(reader: NvmeMachine) -> None:
    reader.limit = 10
    reader.job.start(reader.bar)
    reader.run()
    reader.job.poll()
    assert counts(reader.job) == {"received": 10, "expected": 10}
    assert reader.next_kernel().landed().found == 0
    reader.limit = 8
    reader.run()
    job = reader.next_kernel()
    landed = job.landed()
    assert (landed.found, landed.first, landed.last, landed.is_full) == (8, 10, 17, False)
    job.adopt(reader.bar)
    reader.limit = 1 << 30
    for _ in range(4):
        job.poll()
        reader.run()
    assert counts(job)["received"] == counts(job)["expected"] > 18


def test_reads_in_flight_are_not_given_up(reader: NvmeMachine) -> None:
    reader.job.start(reader.bar)
    for refused in (reader.job.rest, lambda: reader.job.resume(reader.bar)):
        with pytest.raises(JobError, match="in flight"):
            refused()


def test_read_that_brought_another_block_or_failed_is_damaged(reader: NvmeMachine) -> None:
    reader.limit = 2
    reader.job.start(reader.bar)
    reader.run()
    reader.block, reader.limit = 1, 1
    reader.run()
    reader.block, reader.limit, reader.status = 0, 1, 0x281
    reader.run()
    reader.job.poll()
    assert counts(reader.job) == {"received": 2, "damaged": 2, "expected": 2}


def test_completion_out_of_nowhere_ends_the_job(reader: NvmeMachine) -> None:
    reader.limit = 0
    reader.job.start(reader.bar)
    struct.pack_into("<QHHHH", reader.memory, nvme._CQ_AT, 0, 0, 0, ENTRIES, 1)
    with pytest.raises(JobError, match="never submitted"):
        reader.job.poll()


def test_overtaking_reads_are_entered_in_order(reader: NvmeMachine) -> None:
    reader.limit = 0
    reader.job.start(reader.bar)
    for index, cid in enumerate((1, 0)):
        at = nvme._DATA_AT + cid * 512
        frame = make_frame(STREAM, cid)
        reader.memory[at : at + len(frame)] = frame
        struct.pack_into("<QHHHH", reader.memory, nvme._CQ_AT + index * 16, 0, 0, 0, cid, 1)
        reader.job.poll()
        assert counts(reader.job).get("received", 0) == (0, 2)[index]


def test_flipped_bit_in_what_was_in_flight_is_noticed(reader: NvmeMachine) -> None:
    reader.job.start(reader.bar)
    reader.memory[nvme._STATE_AT] ^= 1
    with pytest.raises(RingError, match="in flight"):
        reader.next_kernel()


def test_controller_that_was_reset_is_not_taken_over(reader: NvmeMachine) -> None:
    reader.job.start(reader.bar)
    job = reader.next_kernel()
    reader.write(0x1C, 0)
    with pytest.raises(JobError, match="not ready"):
        job.adopt(reader.bar)


def test_admin_command_that_fails_is_told(reader: NvmeMachine) -> None:
    reader.status = 1
    with pytest.raises(JobError, match="admin command 0x5 ended with status 0x1"):
        reader.job.start(reader.bar)


def test_layouts_do_not_overlap() -> None:
    ends = [
        (nvme._SQ_AT + nvme.ENTRIES_MAX * 64, nvme._CQ_AT),
        (nvme._CQ_AT + nvme.ENTRIES_MAX * 16, nvme._DATA_AT),
        (nvme._DONE_AT + nvme.ENTRIES_MAX, RING_AT),
        (edu.TARGET_AT + edu.SLOTS * edu.SLOT_BYTES, make_job(spec("edu"), IOVA).size),
    ]
    assert all(end <= begin for end, begin in ends)

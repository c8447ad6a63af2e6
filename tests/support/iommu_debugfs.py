# SPDX-License-Identifier: Apache-2.0
"""Print synthetic VT-d tables the way the kernel's debugfs files do.

A model of Linux ``drivers/iommu/intel/debugfs.c`` (7.3): same order, same columns, same habits.
"""

from __future__ import annotations

from tests.support.iommu_tables import PAGE, Memory, VtdUnit

_HEADER = "B.D.F\tRoot_entry\t\t\t\tContext_entry\t\t\t\tPASID\tPASID_table_entry\n"
_COLUMNS = ("IOVA_PFN", "PML5E", "PML4E", "PDPE", "PDE", "PTE")


def print_unit(memory: Memory, unit: VtdUnit, name: str = "dmar0") -> str:
    """Print ``dmar_translation_struct`` for one unit whose translation is on."""
    lines = [f"IOMMU {name}: Root Table Address: {unit.root:#x}\n", _HEADER]
    for bus in range(256):
        word = unit.root + 16 * bus
        if not (memory.get(word) | memory.get(word + 8)) & 1:
            continue
        for devfn in range(256):
            pointer = memory.get(word + (8 * (devfn >> 7) if unit.is_scalable else 0))
            if not pointer & 1:
                continue
            table = pointer & -PAGE
            context = table + (32 * (devfn & 127) if unit.is_scalable else 16 * devfn)
            low, high = memory.get(context), memory.get(context + 8)
            if not low & 1:
                continue
            head = (
                f"{bus:02x}:{devfn >> 3:02x}.{devfn & 7}"
                f"\t0x{memory.get(word + 8):016x}:0x{memory.get(word):016x}"
                f"\t0x{high:016x}:0x{low:016x}\t"
            )
            if not unit.is_scalable:
                zeros = ":".join(["0x" + "0" * 16] * 3)
                lines.append(f"{head}{-1:<6d}\t{zeros}\n")
                continue
            lines.extend(_print_pasids(memory, head, low))
    return "".join(lines) + "\n"


def _print_pasids(memory: Memory, head: str, low: int) -> list[str]:
    lines = []
    directory, entries = low & -PAGE, 1 << (low >> 9 & 7) + 7
    for index in range(entries):
        table = memory.get(directory + 8 * index)
        if not table & 1:
            continue
        for slot in range(64):
            entry = (table & -PAGE) + 64 * slot
            words = [memory.get(entry + 8 * at) for at in range(3)]
            if words[0] & 1:
                text = ":".join(f"0x{word:016x}" for word in reversed(words))
                lines.append(f"{head}{index * 64 + slot:<6d}\t{text}\n")
    return lines


def print_domain(
    memory: Memory, bdf: str, top: int, levels: int, *, pasid: int | None = None
) -> str:
    """Print ``domain_translation_struct`` of one requester."""
    with_pasid = "" if pasid is None else f"with pasid {pasid:x} "
    first, *others = _COLUMNS
    columns = "\t".join([f"{first:<17}", *(f"{name:<18}" for name in others[:-1]), others[-1]])
    lines = [f"Device {bdf} {with_pasid}@{top:#x}\n", columns + "\n"]
    _print_level(memory, top, levels, 0, [0] * 6, lines)
    return "".join(lines)


def _print_level(
    memory: Memory, table: int, level: int, start: int, path: list[int], lines: list[str]
) -> None:
    for index in range(512):
        entry = memory.get(table + 8 * index)
        if entry & 3:
            path[level] = entry
            iova = start + (index << 12 + 9 * (level - 1))
            if entry & 1 << 7 or level == 1:
                entries = path[5:2:-1]
                if path[2]:
                    entries.append(path[2])
                    if path[1]:
                        entries.append(path[1])
                columns = "\t".join(f"0x{item:016x}" for item in entries)
                lines.append(f"0x{iova >> 12:013x} |\t{columns}\n")
            else:
                _print_level(memory, entry & (1 << 52) - PAGE, level - 1, iova, path, lines)
            path[level] = 0

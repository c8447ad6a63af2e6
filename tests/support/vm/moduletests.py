# SPDX-License-Identifier: Apache-2.0
"""What tests our kernel modules: one row for each, see :mod:`tests.vm.test_modules`.

A mechanism's author adds a row and nothing else. All rows share one machine and one kexec.
"""

from __future__ import annotations

from dataclasses import dataclass

from liveupdate.core.units import GIB, MIB

#: RAM of the machine, all of it below the hole of q35, and where regions may be in it
MEMORY = 2 * GIB
REGIONS_START = 1 * GIB
#: whole sections: the test gives it back to the kernel at last
PKERNFS_START = REGIONS_START + 128 * MIB
PKERNFS_BYTES = 512 * MIB


#: KUnit suites of the kernel series (guest-images/kernel), built into the kernel
KERNEL_SUITES = ("keep_dma_record", "keep_dma_tables")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How one module is tested."""

    module: str
    #: given to it when it is loaded
    parameters: str = ""
    #: words it needs on the command line of both kernels
    append: str = ""
    #: modules that are loaded before it, by a row further up
    needs: tuple[str, ...] = ()
    #: module with its KUnit tests, and the suites that must be in it
    kunit: str = ""
    suites: tuple[str, ...] = ()
    #: programs of guest-images/selftests, run with "1" before the kexec and with "2" after it
    selftests: tuple[str, ...] = ()


ROWS = (
    Row(
        module="lu_pool",
        parameters=f"start={REGIONS_START:#x} size={64 * MIB:#x}",
        append=f"memmap={64 * MIB:#x}${REGIONS_START:#x}",
        kunit="lu_pool_kunit",
        suites=("lu_pool_bitmap", "lu_pool_table"),
        selftests=("lu_pool",),
    ),
    Row(
        module="pkernfs",
        parameters=f"region={PKERNFS_BYTES:#x}!{PKERNFS_START:#x}",
        append=f"memmap={PKERNFS_BYTES:#x}${PKERNFS_START:#x}",
        kunit="pkernfs_kunit",
        suites=("pkernfs",),
        selftests=("pkernfs",),
    ),
    Row(module="pkernfs_test", needs=("pkernfs",)),
    Row(module="pkram", kunit="pkram_kunit", suites=("pkram",), selftests=("pkram",)),
    Row(
        module="prmem",
        kunit="prmem_kunit",
        suites=("prmem_runs", "prmem_meta", "prmem_driver"),
        selftests=("prmem",),
    ),
    Row(module="prmem_test", needs=("prmem",)),
)
"""In the order in which they are loaded."""

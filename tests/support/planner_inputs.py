# SPDX-License-Identifier: Apache-2.0
"""What the planner takes beside the scenario: images and the facts of a machine."""

from __future__ import annotations

from liveupdate.core.units import GIB
from liveupdate.model.plan import ImageSet, KernelImage
from liveupdate.planning.planner import MachineFacts

ABI = ("kho-v4", "luo-v5", "memblock-v1", "memfd-v2", "reserve-mem-v1")


def kernel(name: str, abi: tuple[str, ...] = ABI) -> KernelImage:
    return KernelImage(
        path=f"/k/{name}",
        sha256="0" * 64,
        release=f"7.3.4-{name}",
        build_id=name,
        abi=abi,
        modules=f"/m/{name}",
    )


IMAGES = ImageSet(
    outgoing=kernel("a"),
    incoming=kernel("b"),
    guest_kernel="/k/a",
    guest_initrd="/k/initrd",
    rootfs="/k/rootfs",
    rootfs_sha256="1" * 64,
    ssh_client_key="/k/key",
    ssh_host_key_pub="ssh-ed25519 AAAA",
)


MACHINE = MachineFacts(accel="tcg", ram_available_bytes=16 * GIB, run_free_bytes=10 * GIB)

# SPDX-License-Identifier: Apache-2.0
"""Target ``libvirt``: a machine of this run as a domain of a libvirtd on this machine."""

from __future__ import annotations

import os
import shutil

from msgspec.structs import replace

from liveupdate.core.errors import PlanError
from liveupdate.target.base import Located, Order
from liveupdate.target.libvirt import link
from liveupdate.target.libvirt.host import DEFAULT_URI, LibvirtHost


def locate(place: str) -> Located:
    """Return the URI of a libvirt that answers.

    :param place: a URI; "": $LIBVIRT_DEFAULT_URI, else that of the session.
    :raises PlanError: libvirt does not answer, or the binding is not installed.
    """
    uri = place or os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI
    link.check(uri)
    return Located(place=uri)


def make(order: Order) -> LibvirtHost:
    """Return the machine of a plan, not started.

    :raises PlanError: there is no such QEMU.
    """
    machine = order.plan.machine
    qemu = shutil.which(machine.qemu)
    if qemu is None:
        raise PlanError(f"no program '{machine.qemu}' in PATH", hint="run 'make setup'")
    return LibvirtHost(
        replace(machine, qemu=qemu),
        order.files,
        uri=order.plan.place,
        run_id=order.run_id,
        run_dir=order.run_dir,
        append=order.plan.boot_append,
        registry=order.registry,
    )

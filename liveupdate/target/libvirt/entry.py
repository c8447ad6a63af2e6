# SPDX-License-Identifier: Apache-2.0
"""Target ``libvirt``: a machine of this run as a domain of a libvirtd on this machine."""

from __future__ import annotations

import logging
import os

from liveupdate.target.base import Located, Order
from liveupdate.target.libvirt import daemon, link
from liveupdate.target.libvirt.host import DEFAULT_URI, LibvirtHost

log = logging.getLogger(__name__)


def locate(place: str) -> Located:
    """Return the URI of a libvirt that answers.

    :param place: a URI; "": $LIBVIRT_DEFAULT_URI, else that of the session, else, for root, that of
        a daemon of liveupdate's own, which is started when it does not run.
    :raises PlanError: libvirt does not answer, or the binding is not installed.
    """
    named = place or os.environ.get("LIBVIRT_DEFAULT_URI")
    uri = named or DEFAULT_URI
    try:
        link.check(uri)
    except link.NoAnswer:
        # libvirt starts a session's daemon for every other user
        if named or os.geteuid() != 0:
            raise
        uri = daemon.ensure()
        log.info("no libvirt answers at %s; using a libvirtd at %s", DEFAULT_URI, uri)
        link.check(uri)
    return Located(place=uri)


def make(order: Order) -> LibvirtHost:
    """Return the machine of a plan, not started.

    :raises PlanError: there is no such QEMU.
    """
    return LibvirtHost(order)

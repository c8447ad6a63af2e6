# SPDX-License-Identifier: Apache-2.0
"""Kinds of host under update: QEMU, libvirt and SSH, with what they share."""

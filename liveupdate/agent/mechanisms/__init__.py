# SPDX-License-Identifier: Apache-2.0
"""Mechanisms: what carries guests' memory from one kernel to the next, one file each."""

NAMES = (
    "luo-memfd",
    "breadcrumb",
    "pkernfs",
    "pkram",
    "pool",
    "prmem",
    "reserve-mem",
    "reserved-dax",
)

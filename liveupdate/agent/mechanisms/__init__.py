# SPDX-License-Identifier: Apache-2.0
"""The mechanisms, the default first.

Each is the file of its name, with "-" as "_". It has ``REQUIREMENTS``, data that the planner reads
(:class:`liveupdate.model.mechanism.Requirements`), and ``open_mechanism()``.
"""

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

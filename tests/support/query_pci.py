# SPDX-License-Identifier: Apache-2.0
"""QMP's answer to ``query-pci``, as QEMU 10.0.2 printed it."""

from __future__ import annotations

PCI = [
    {
        "bus": 0,
        "devices": [
            {"bus": 0, "slot": 0, "function": 0, "qdev_id": "", "regions": []},
            {
                "bus": 0,
                "slot": 16,
                "function": 0,
                "qdev_id": "port-nic0",
                "pci_bridge": {
                    "bus": {"number": 0, "secondary": 1, "subordinate": 1},
                    "devices": [
                        {
                            "bus": 1,
                            "slot": 0,
                            "function": 0,
                            "qdev_id": "dev-nic0",
                            "regions": [
                                {"bar": 0, "type": "memory", "size": 131072, "address": 0xFEA00000},
                                {"bar": 2, "type": "io", "size": 32, "address": 0xC000},
                                {"bar": 3, "type": "memory", "size": 16384, "address": -1},
                            ],
                        }
                    ],
                },
            },
        ],
    }
]

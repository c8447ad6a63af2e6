# SPDX-License-Identifier: Apache-2.0
"""Builds kernels, disks and the guests' payload, and caches them."""

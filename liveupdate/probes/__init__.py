# SPDX-License-Identifier: Apache-2.0
"""Probes: each takes facts from one source and gives no opinion."""

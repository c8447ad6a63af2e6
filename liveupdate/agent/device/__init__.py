# SPDX-License-Identifier: Apache-2.0
"""Passed-through devices that the agent drives itself, through VFIO."""

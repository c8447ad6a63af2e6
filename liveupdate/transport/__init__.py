# SPDX-License-Identifier: Apache-2.0
"""Connections: SSH, QMP, the console, the agent's channel, the guests' network, mapped memory."""

# SPDX-License-Identifier: Apache-2.0
"""The agent's connection to the control host, and its main loop."""

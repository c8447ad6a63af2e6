# SPDX-License-Identifier: Apache-2.0
"""A hop as the agent carries it out, and an operator's update of this host."""

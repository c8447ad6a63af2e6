# SPDX-License-Identifier: Apache-2.0
"""Carries a plan out: brings a machine up, hops, and stores what was observed."""

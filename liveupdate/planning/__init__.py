# SPDX-License-Identifier: Apache-2.0
"""Turns a scenario into a plan, or refuses it before anything starts. Pure."""

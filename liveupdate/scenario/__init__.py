# SPDX-License-Identifier: Apache-2.0
"""Reads a scenario and reports every mistake with its line."""

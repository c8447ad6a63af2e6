# SPDX-License-Identifier: Apache-2.0
"""Guests on the host: their memory, their VMM, their devices."""

# SPDX-License-Identifier: Apache-2.0
"""The judge's parts, one module per family of checks; :mod:`liveupdate.judge` is the way in."""

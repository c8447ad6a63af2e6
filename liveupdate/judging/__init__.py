# SPDX-License-Identifier: Apache-2.0
"""The judge and its parts; :mod:`liveupdate.judging.judge` is the way in."""

# SPDX-License-Identifier: Apache-2.0
"""``liveupdate apply``: the update of a host whose guests matter; steps, journal, preflight."""

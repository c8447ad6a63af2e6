# SPDX-License-Identifier: Apache-2.0
"""Target ``ssh``: the host under update as a machine that is already installed and switched on."""

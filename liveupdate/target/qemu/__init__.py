# SPDX-License-Identifier: Apache-2.0
"""Target ``qemu``: the host under update as a child process."""

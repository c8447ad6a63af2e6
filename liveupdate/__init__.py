# SPDX-License-Identifier: Apache-2.0
"""Replace the kernel of a host by kexec while its guests survive, and prove that they did."""

__version__ = "0.1.0"

# SPDX-License-Identifier: Apache-2.0
"""Target ``libvirt``: the host under update as a domain of a libvirtd on this machine."""

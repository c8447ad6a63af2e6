# SPDX-License-Identifier: Apache-2.0
"""Intel VT-d: registers, tables, page tables, and the kernel's debugfs view of them."""

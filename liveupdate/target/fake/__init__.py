# SPDX-License-Identifier: Apache-2.0
"""A host under update without QEMU, for tests; no scenario can name it."""

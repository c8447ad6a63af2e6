# SPDX-License-Identifier: Apache-2.0
"""The checks, by family; each module has one function for each check id it judges."""

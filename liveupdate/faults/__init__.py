# SPDX-License-Identifier: Apache-2.0
"""Faults that a run can inject: each is a row and, beside it, the function that strikes."""

# SPDX-License-Identifier: Apache-2.0
"""What every room may use: errors, units, deadlines, steps, child processes, paths."""

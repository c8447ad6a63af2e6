# SPDX-License-Identifier: Apache-2.0
"""What each mechanism needs of kernels and command lines, as data; the agent does the work."""

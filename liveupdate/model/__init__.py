# SPDX-License-Identifier: Apache-2.0
"""The values that the rooms exchange, and their JSON."""

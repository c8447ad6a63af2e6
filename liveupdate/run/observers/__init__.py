# SPDX-License-Identifier: Apache-2.0
"""What is observed of guests, devices and the host over a hop. Facts only."""

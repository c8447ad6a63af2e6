# SPDX-License-Identifier: Apache-2.0
"""Decoders and encoders, one format per module, each with its source. No I/O."""

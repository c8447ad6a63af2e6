# SPDX-License-Identifier: Apache-2.0
"""What every part of the agent uses: cheap replacements of the standard library, framing, the
host.
"""

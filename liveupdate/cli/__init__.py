# SPDX-License-Identifier: Apache-2.0
"""The command line: the only place for stdout, exit codes, signals and logging setup."""

from liveupdate.cli.app import main

__all__ = ["main"]

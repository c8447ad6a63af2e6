# SPDX-License-Identifier: Apache-2.0
"""``python -m liveupdate``."""

import sys

from liveupdate.cli import main

if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Entry point of ``python3 -I -S DIRECTORY``.

This file is compiled at every start (a script has no .pyc), so it does nothing but make its
directory importable as a package, whatever the directory is called, and call ``main``.
"""

import sys

if __name__ == "__main__":
    parent, _, package = sys.path[0].rstrip("/").rpartition("/")
    sys.path.append(parent or "/")
    sys.exit(__import__(package + ".link.main", fromlist=["main"]).main())

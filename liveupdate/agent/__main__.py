# SPDX-License-Identifier: Apache-2.0
"""Entry point of ``python3 -I -S DIRECTORY/__main__.py``; ``DIRECTORY`` alone works, but slower.

This file is compiled at every start (a script has no .pyc), so it does nothing but make its
directory importable as a package, whatever the directory is called, and call ``main``.
"""

import sys

#: packages whose ``__init__.py`` holds no code: made here instead of imported, as a search, an open
#: and a read for each cost blackout
ROOMS = ("base", "device", "guest", "update", "link")

if __name__ == "__main__":
    directory = __file__.rpartition("/")[0]
    package = directory.rpartition("/")[2]
    for room in (package, *(f"{package}.{each}" for each in ROOMS)):
        module = type(sys)(room)
        module.__path__ = [directory + room[len(package) :].replace(".", "/")]
        sys.modules[room] = module
    sys.exit(__import__(package + ".link.main", fromlist=["main"]).main())

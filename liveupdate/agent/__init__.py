# SPDX-License-Identifier: Apache-2.0
"""The agent on the host under update: holds the guests and the sessions that carry them over.

It starts in the blackout, so it is bound by two rules that the rest of the package is not:

- Standard library only, and of that only what costs little to import (see ``base.fast_stdlib``):
  under TCG ``json`` alone takes longer than restoring a guest's memory. What only the outgoing side
  needs is imported inside the function that needs it.
- It runs from a bare directory (``python3 -I -S /kit/agent/__main__.py``). ``__main__`` makes that
  directory a package under its own name, so modules use relative imports and are the same whether
  loaded as ``agent.base.framing`` there or as ``liveupdate.agent.base.framing`` in tests.

Its rooms, each of which imports only those after it: ``link`` (the control host's calls),
``update`` (freeze, jump, restore), ``guest``, ``device``, ``mechanisms``, ``base``.
"""

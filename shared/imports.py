"""Imports that leave out what a library brings along and nobody here uses. It knows nothing of what the libraries do."""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def hollow(name: str) -> Iterator[None]:
    """Imports inside the block find the module `name` empty, unless it is loaded already; afterwards it can be imported as ever.

    For a module that is loaded for what its loading does, or that may as well be missing: taking a name from it fails as
    if the library were not installed.
    """
    if name in sys.modules:
        yield
        return
    empty = sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        if sys.modules.get(name) is empty:
            del sys.modules[name]

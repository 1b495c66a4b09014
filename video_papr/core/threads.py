"""A value of which every thread has its own."""

from __future__ import annotations

import threading
from typing import Any


class PerThread(threading.local):
    """A value that every thread has its own of; a copied or unpickled one starts with None."""

    value: Any = None

    def __reduce__(self) -> tuple[type[PerThread], tuple[()]]:
        return PerThread, ()

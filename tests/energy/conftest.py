"""What tests of sensors share."""

from __future__ import annotations

import pynvml
import pytest


@pytest.fixture
def driver(monkeypatch):
    """Puts a library in the driver's place."""

    def put(library):
        monkeypatch.setattr(pynvml, "nvmlLib", library)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return library

    return put

"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


def until(done: Callable[[], object], seconds: float = 20) -> None:
    """Wait until it is ``done``; fails the test where it is not in so many seconds."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            pytest.fail(f"it did not happen within {seconds:g} seconds")
        time.sleep(0.02)

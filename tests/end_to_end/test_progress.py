"""Progress of long work, as a terminal shows it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from clipdistill import progress as job


def test_a_bar_shows_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr(job, "console", Console(file=told, force_terminal=True, width=200))
    with job.progress("embedding [bold]photos[/list]", 2, "pictures") as advance:
        advance(2, "at [/2]")
    assert "embedding [bold]photos[/list]" in told.getvalue()
    assert "at [/2]" in told.getvalue()

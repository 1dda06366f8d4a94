"""Where an export may be written: it appears whole, in the place of an earlier one or of nothing."""

from __future__ import annotations

from pathlib import Path

from clipdistill.errors import ConfigError
from clipdistill.files import object_in
from clipdistill.search.runtime import RECORD


def check_out(out: Path, key: str, what: str) -> None:
    """Refuse a place that is no folder or holds anything but ``what``, which is known by ``key`` in its record."""
    if out.is_file():
        raise ConfigError(f"cannot export to {out}: it is a file. Give the name of a folder.")
    here = Path.cwd()
    if out.resolve() in (here, *here.parents):
        raise ConfigError(
            f"cannot export to {out}: the current folder cannot be replaced whole. Name a folder in it, as in "
            f"--out {out / 'exported'}."
        )
    if out.is_dir() and any(out.iterdir()) and key not in object_in(out / RECORD):
        raise ConfigError(
            f"will not replace {out}: it holds files and is no {what}. Choose another folder, or empty this one."
        )

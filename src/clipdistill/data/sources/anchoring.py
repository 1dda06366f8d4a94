"""A data URI whose paths count from one folder, read from another."""

from __future__ import annotations

import re
from pathlib import Path

from clipdistill.data.remote import is_remote


def anchored(uri: str, root: Path) -> str:
    """Write out the paths of a data URI, which count from ``root``, so that it can be opened from anywhere."""
    if re.match(r"[A-Za-z][\w+.-]+:(?!:)", uri) and not is_remote(uri) and not (root / uri).exists():
        return uri  # made on the spot, or on a hub
    parts = [part if is_remote(part) or part.startswith("~") else str(root / part) for part in uri.split("::")]
    return re.sub(r"(?<=[?&]images=)[^&]+", lambda found: str(root / Path(found[0]).expanduser()), "::".join(parts))

"""Which splits of data that has several a URI asks for."""

from __future__ import annotations

import re
from collections.abc import Collection

from clipdistill.errors import DataError, did_you_mean


def choose_splits(known: Collection[str], asked: str | None, where: str) -> list[str]:
    """The splits that ``asked`` names, with commas between them; those known if it is None and there is only one.

    Raises :class:`DataError` for a split that is not known, and where one must be chosen.
    """
    if asked is None:
        if len(known) > 1:
            raise DataError(f"{where}: holds several splits. Choose {' or '.join(f'?split={name}' for name in known)}")
        return list(known)
    chosen = list(dict.fromkeys(re.split("[ ,]", asked)))  # a plus sign in a URI is a space
    for name in chosen:
        if name not in known:
            raise DataError(f"{where}: unknown split '{name}'.{did_you_mean(name, known)}")
    return chosen

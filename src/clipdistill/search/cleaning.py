"""What open_clip's tokenizers do to a caption before they split it, without open_clip."""

from __future__ import annotations

import html
import string
from collections.abc import Callable

from clipdistill.errors import SearchError, did_you_mean

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _whitespace(text: str) -> str:
    return " ".join(_mend(text).split())


def _canonicalize(text: str) -> str:
    return " ".join(_mend(text).replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


def _mend(text: str) -> str:
    """Mend text that was decoded wrongly, plain quotes for curly ones, entities of HTML resolved twice."""
    import ftfy  # few models need it, and it takes a while

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


#: By open_clip's own names.
CLEANINGS: dict[str, Callable[[str], str]] = {"lower": _lower, "whitespace": _whitespace, "canonicalize": _canonicalize}


def cleaning(name: str) -> Callable[[str], str]:
    """Return the function that cleans a caption by ``name``; raises :class:`SearchError` for one that is not known."""
    if name not in CLEANINGS:
        raise SearchError(f"captions of this model are cleaned by '{name}'.{did_you_mean(name, CLEANINGS)}")
    return CLEANINGS[name]

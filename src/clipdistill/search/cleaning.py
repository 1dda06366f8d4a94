"""What open_clip's tokenizers do to a caption before they split it, without open_clip."""

from __future__ import annotations

import html
import importlib
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
    try:
        ftfy = importlib.import_module("ftfy")
    except ImportError as error:
        raise SearchError(
            "this model comes from open_clip, which cleans captions with the package ftfy, and that is not installed. "
            "Install it with: pip install ftfy"
        ) from error
    mended: str = ftfy.fix_text(text)
    return html.unescape(html.unescape(mended)).strip()


#: By open_clip's own names.
CLEANINGS: dict[str, Callable[[str], str]] = {"lower": _lower, "whitespace": _whitespace, "canonicalize": _canonicalize}


def cleaning(name: str) -> Callable[[str], str]:
    """Return the function that cleans a caption by ``name``; raises :class:`SearchError` for one that is not known."""
    if name not in CLEANINGS:
        raise SearchError(f"captions of this model are cleaned by '{name}'.{did_you_mean(name, CLEANINGS)}")
    return CLEANINGS[name]

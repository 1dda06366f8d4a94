"""Pictures as requests hold them: a data URI, base64 alone, or an address on the web."""

from __future__ import annotations

import re
from collections.abc import Sequence

from clipdistill.data.samples import from_base64
from clipdistill.errors import DataError
from clipdistill.serve.batching import seconds_left
from clipdistill.serve.fetching import fetch

_DATA = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)
_WEB = re.compile(r"https?:", re.IGNORECASE)


def picture_bytes(text: str, hosts: Sequence[str]) -> bytes:
    """The bytes of a picture, not decoded yet; fetched from the web only from ``hosts``.

    Raises :class:`DataError` for a text that is none of the three forms, and for an address that is not fetched.
    """
    if _WEB.match(text):
        seconds_left("fetch everything")
        return fetch(text, hosts)
    if text[:5].lower() != "data:":
        return from_base64("".join(text.split()).encode("utf-8", "replace"))
    match = _DATA.match(text[:200])
    if match is None:
        raise DataError("the data URI of a picture is data:image/png;base64,...; found another form")
    return from_base64("".join(text[match.end() :].split()).encode("utf-8", "replace"))

"""Passwords in addresses: what leaves this machine, in a card or to a tracker, is without them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_USER = re.compile(r"(?<=://)[^/\s]+@")
_SECRET = re.compile(r"(?i)((?:token|key|password|secret|signature|credential|sig)=)[^&\s'\"]+")


def without_secrets(text: str) -> str:
    """Blot out ``user:password@`` and ``token=...`` in a text that may hold addresses.

    >>> without_secrets("cannot reach https://me:secret@tracker.example/api?token=abc")
    'cannot reach https://***@tracker.example/api?token=***'
    """
    return _SECRET.sub(r"\1***", _USER.sub("***@", text))


def redacted(value: Any) -> Any:
    """The same plain data, with :func:`without_secrets` applied to every text in it."""
    if isinstance(value, Mapping):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value

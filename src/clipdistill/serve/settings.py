"""How a server behaves, beside what it serves."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from clipdistill.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """Who may ask, and how much of everything a request may take.

    ``keys`` is a file that :mod:`clipdistill.serve.keys` wrote; without one anybody may ask. ``hosts`` are the only
    values that are accepted as the request's Host, or None for any: names of this machine, where a server listens on
    this machine alone, so that a web page of a name that leads here cannot read it. ``origins`` are web pages elsewhere
    that may ask, ``fetch`` hosts that pictures are fetched from. ``rate`` are requests a minute of one key or address.

    ``room`` requests are taken in at a time, ``batch`` inputs go through a model together, ``seconds`` are what a
    request may take, ``body`` its bytes. A new version of an index is looked for every ``refresh`` seconds.
    """

    keys: Path | None = None
    hosts: tuple[str, ...] | None = None
    origins: tuple[str, ...] = ()
    fetch: tuple[str, ...] = ()
    rate: int | None = None
    room: int = 128
    batch: int = 32
    seconds: float = 30.0
    body: int = 32 * 2**20
    refresh: float = 1.0


def is_loopback(host: str) -> bool:
    """Whether an address or name to listen on is this machine's own, that nobody else reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_names(host: str) -> tuple[str, ...]:
    """The values of Host, without a port, by which this machine reaches itself."""
    return tuple(dict.fromkeys(["localhost", "127.0.0.1", "::1", host]))


def read_rate(text: str) -> int:
    """Read requests a minute, as ``600/minute`` or ``600``; raises :class:`ConfigError` for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,8})(/minute)?", text)
    if match is None:
        raise ConfigError(f"--rate is '{text}'; expected requests a minute of one key or address, as 600/minute.")
    return int(match[1])


def read_origin(text: str) -> str:
    """Check a web page's origin, as ``https://photos.example.org``; raises :class:`ConfigError` for anything else."""
    if text != "*" and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", text):
        raise ConfigError(f"--cors is '{text}'; expected an origin, as https://photos.example.org, without a path.")
    return text.lower()

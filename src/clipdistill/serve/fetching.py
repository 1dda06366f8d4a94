"""Pictures from the web, of hosts that the operator named, and nothing else.

A server that fetches what it is told to is a way into the network that it stands in. So the host must be on the list,
every address that its name leads to must be one of the public internet, the connection goes to an address that was
checked (the name is not looked up again), redirects are not followed, no proxy is used, and size and time are limited.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

import httpx

from clipdistill.errors import DataError

MOST_BYTES, SECONDS = 20 * 2**20, 10.0
_PORTS = {"http": 80, "https": 443}


def fetch(url: str, allowed: Sequence[str]) -> bytes:
    """Fetch a picture's bytes from an allowed host, ``name`` or ``name:port``.

    Raises :class:`DataError` for everything that is not fetched, and for what cannot be.
    """
    parts, name, port = _checked(url, allowed)
    until = time.monotonic() + SECONDS
    address = _address(name, port)
    bare = f"[{address}]" if ":" in address else address
    target = f"{parts.scheme}://{bare}:{port}{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    host = name if port == _PORTS[parts.scheme] else f"{name}:{port}"
    headers = {"Host": host, "Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "clipdistill"}
    try:
        with (
            httpx.Client(trust_env=False, follow_redirects=False, timeout=SECONDS) as client,
            client.stream("GET", target, headers=headers, extensions={"sni_hostname": name}) as answer,
        ):
            return _read(answer, url, until)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise DataError(f"{url} cannot be fetched: {type(error).__name__}") from error


def is_public(address: str) -> bool:
    """Whether an address is of the public internet: not this machine's, not a private network's, not a special one."""
    ip = ipaddress.ip_address(address.split("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if inner is not None:
        ip = inner
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and "%" not in address


def _checked(url: str, allowed: Sequence[str]) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        name, port = (parts.hostname or "").rstrip("."), parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise DataError(f"that is no address of a picture: {error}") from error
    if parts.scheme not in _PORTS or not name or parts.username is not None or any(map(str.isspace, url)):
        raise DataError("the address of a picture is http://HOST/... or https://HOST/..., without a password")
    hosts = {name, f"{name}:{port}"} if port == _PORTS[parts.scheme] else {f"{name}:{port}"}
    if not hosts & {host.lower() for host in allowed}:
        raise DataError(
            f"pictures are not fetched from {name}:{port} here. Send the picture as a data URI, or have the server "
            f"started with --allow-fetch {min(hosts, key=len)}"
        )
    return parts, name, port


def _address(name: str, port: int) -> str:
    """Look a name up; the first address, if all that it leads to are public."""
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DataError(f"there is no host {name}") from error
    addresses = [str(one[4][0]) for one in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise DataError(f"{name} leads to an address that is not of the public internet; nothing is fetched from there")
    return addresses[0]


def _read(answer: httpx.Response, url: str, until: float) -> bytes:
    if answer.status_code != 200:
        why = "redirects are not followed" if answer.is_redirect else "expected 200"
        raise DataError(f"{url} cannot be fetched: the status is {answer.status_code}, {why}")
    data = bytearray()
    for block in answer.iter_raw():  # as it comes: a host that drips is to be noticed
        data += block
        if len(data) > MOST_BYTES:
            raise DataError(f"{url} has more than {MOST_BYTES >> 20} MB")
        if time.monotonic() > until:
            raise DataError(f"{url} takes more than {SECONDS:.0f} seconds")
    return bytes(data)

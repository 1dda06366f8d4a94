"""Keys that a server asks for, as a file of salted hashes: a line for each, ``NAME SALT HASH``.

Keys are 256 random bits, so that one round of SHA-256 is as good as many: there is nothing to guess. Delete a line to
take a key back; a server notices within a second or so.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from clipdistill.errors import ConfigError
from clipdistill.files import mark, write_text

_LINE = re.compile(r"(?P<name>[\w.@-]{1,64}) (?P<salt>[0-9a-f]{32}) (?P<hash>[0-9a-f]{64})")


class Keys:
    """The names of keys by their hashes, as the file has them now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: tuple[tuple[str, bytes, bytes], ...] = ()
        self._mark: tuple[int, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it is another; raises :class:`ConfigError` for one that is none, or has no keys."""
        try:
            now = mark(self.path)
            if now != self._mark:
                self._known = read_keys(self.path.read_text(encoding="utf-8"), str(self.path))
                self._mark = now
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the keys {self.path} cannot be read ({error}). "
                f"Make one with: clipdistill serve --new-key NAME --keys {self.path}"
            ) from error

    def name_of(self, key: str) -> str | None:
        """The name of a key; None for one that is not known. It takes as long for any key."""
        found = None
        for name, salt, digest in self._known:
            if hmac.compare_digest(_digest(salt, key), digest):
                found = name
        return found


def read_keys(text: str, where: str) -> tuple[tuple[str, bytes, bytes], ...]:
    """Read lines of a file: names, salts and hashes; raises :class:`ConfigError` that names the line that is none."""
    known = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ConfigError(f"{where}:{number} is no key: expected NAME SALT HASH, as --new-key writes them.")
        known.append((match["name"], bytes.fromhex(match["salt"]), bytes.fromhex(match["hash"])))
    return tuple(known)


def new_key(path: Path, name: str) -> str:
    """Make a key, add its hash to the file, and return it: nobody can read it there again.

    Raises :class:`ConfigError` for a name that is taken or has other characters than letters, digits and ``. _ @ -``.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if name in {known for known, _, _ in read_keys("\n".join(lines), str(path))}:
        raise ConfigError(f"{path} has a key '{name}' already. Take another name, or delete its line first.")
    key, salt = f"cd-{secrets.token_urlsafe(32)}", secrets.token_bytes(16)
    line = f"{name} {salt.hex()} {_digest(salt, key).hex()}"
    if not _LINE.fullmatch(line):
        raise ConfigError(f"'{name}' is no name for a key: expected 1 to 64 letters, digits and . _ @ -")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join([*lines, line]) + "\n")
    path.chmod(0o600)
    return key


def _digest(salt: bytes, key: str) -> bytes:
    return hashlib.sha256(salt + key.encode("utf-8", "surrogatepass")).digest()

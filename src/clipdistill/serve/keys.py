"""Keys that a server asks for, as a file of salted hashes: a line for each, ``NAME SALT HASH``.

Keys are 256 random bits, so that one round of SHA-256 is as good as many: there is nothing to guess. Delete a line to
take a key back; a server notices within a second or so.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from pathlib import Path

from clipdistill.errors import ConfigError
from clipdistill.files import mark, write_text

#: Seconds after which a file whose last line has no end is taken as it is.
_SETTLING = 0.1
Known = tuple[str, bytes, bytes]
_LINE = re.compile(r"(?P<name>[\w.@-]{1,64}) (?P<salt>[0-9a-f]{32}) (?P<hash>[0-9a-f]{64})")


class Keys:
    """The names of keys by their hashes, as the file has them now; raises :class:`ConfigError` for one without any."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: tuple[Known, ...] = ()
        self._mark: tuple[int, ...] = ()
        self.refresh()
        if not self._known:
            raise ConfigError(f"{path} holds no key. Make one with: clipdistill serve --new-key NAME --keys {path}")

    def refresh(self) -> None:
        """Read the file again if it is another.

        Raises :class:`ConfigError` for one that cannot be read, and then what was known stays known; and for a line
        that is no key, and then the others are known: a key that was taken back is, whatever stands beside it.
        """
        try:
            if mark(self.path) != self._mark:
                text, self._mark = self._settled()
                self._known, wrong = _parsed(text)
                _refuse(wrong, str(self.path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the keys {self.path} cannot be read ({error}). "
                f"Make one with: clipdistill serve --new-key NAME --keys {self.path}"
            ) from error

    def _settled(self) -> tuple[str, tuple[int, ...]]:
        """The file's text, once nobody writes it: an editor empties it first, and fills it then."""
        while True:
            before = mark(self.path)
            text = self.path.read_text(encoding="utf-8-sig")
            if not text.endswith("\n"):
                time.sleep(_SETTLING)
            if mark(self.path) == before:
                return text, before

    def name_of(self, key: str) -> str | None:
        """The name of a key; None for one that is not known. It takes as long for any key."""
        found = None
        for name, salt, digest in self._known:
            if hmac.compare_digest(_digest(salt, key), digest):
                found = name
        return found


def read_keys(text: str, where: str) -> tuple[Known, ...]:
    """Read lines of a file: names, salts and hashes; raises :class:`ConfigError` that names the line that is none."""
    known, wrong = _parsed(text)
    _refuse(wrong, where)
    return known


def _parsed(text: str) -> tuple[tuple[Known, ...], list[int]]:
    """The keys of a text, and the numbers of the lines that are none."""
    known, wrong = [], []
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        if match := _LINE.fullmatch(line):
            known.append((match["name"], bytes.fromhex(match["salt"]), bytes.fromhex(match["hash"])))
        else:
            wrong.append(number)
    return tuple(known), wrong


def _refuse(wrong: list[int], where: str) -> None:
    if wrong:
        raise ConfigError(f"{where}:{wrong[0]} is no key: expected NAME SALT HASH, as --new-key writes them.")


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

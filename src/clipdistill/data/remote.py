"""Files elsewhere: fetched whole into a cache when they are opened, and again when they have left it.

::

    ~/.cache/clipdistill/shards/      or $CLIPDISTILL_CACHE
        NAME.tar                      a copy; those used longest ago go first when $CLIPDISTILL_CACHE_GB (50) are full
        NAME.tar.index.json, .texts   what is in it, and its captions: small, and kept when the copy goes
        NAME.tar.words                both, of a parquet file, whose copy is called like that of a tar
        NAME.tar.lock                 held by the one process that fetches it
        NAME.tar.ID.part              what it has so far

NAME is a hash of the URL and of what the server says of the content, so that new content is another file. Addresses are
those of fsspec, with its own ways to find credentials, or ``pipe:COMMAND``, whose output is the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, TypeVar
from urllib.parse import urlsplit

from clipdistill.errors import ClipdistillError, ConfigError, DataError, need
from clipdistill.progress import console, progress

#: Training reads from so many files at a time.
WINDOW = 8

_PIPE = "pipe:"
_COMMANDS: ContextVar[bool] = ContextVar("commands", default=True)
_REMOTE = re.compile(rf"(?:^|::)(?:[A-Za-z][\w+.-]*://|{_PIPE})")
#: What servers say that changes with the content, the most telling first; letters alone count.
_MARKS = ("etag", "md5hash", "contentmd5", "blobid", "generation", "lastmodified", "mtime", "created")
_PAUSES = (1.0, 5.0)  # seconds before the second and the third try
_SILENCE = 60  # seconds after which a server that says nothing has failed
_AT_ONCE = 16  # questions to servers
_GB = 10**9

Found = TypeVar("Found")


@dataclass(frozen=True)
class Remote:
    """A file at ``url``, a stand-in for its path where it is opened.

    ``mark`` is what the server said of its content when it was looked up. Once it was there, ``size`` are its bytes
    and ``content`` is a hash of them: what is fetched later must be the same.
    """

    url: str
    mark: str = ""
    size: int | None = None
    content: str | None = None

    def __str__(self) -> str:
        return self.url

    @property
    def place(self) -> PurePosixPath:
        """Where it lies, for names: without host and query; of a command its last word that ends in .tar."""
        if not self.url.startswith(_PIPE):
            parts = urlsplit(self.url)
            return PurePosixPath("/", parts.netloc, parts.path.lstrip("/"))
        words = re.findall(r"[^\s'\"]+\.tar\b", self.url)
        return PurePosixPath("/", words[-1].partition("://")[2] or words[-1]) if words else PurePosixPath("/", self.url)

    @cached_property
    def cached(self) -> Path:
        """Where its copy lies, if it is there."""
        name = hashlib.blake2b(json.dumps([self.url, self.mark]).encode(), digest_size=16).hexdigest()
        return cache_folder() / f"{name}.tar"

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Open its copy, fetched first if it is not there; raises :class:`DataError` if that cannot be done.

        A file that is open can be read to the end, whatever happens to the cache.
        """
        for _ in range(10):
            path = self.local()
            with suppress(FileNotFoundError):  # it has just made room for another one
                return path.open(mode)
        raise DataError(
            f"{self.url}: left the cache {cache_folder()} as soon as it was fetched. Raise {_limit_told()}."
        )

    def known(self) -> Remote:
        """The same with its size and content, fetched if it is not there."""
        with self.open("rb") as file:
            content = _digest(file)
            return replace(self, size=file.tell(), content=content)

    def local(self) -> Path:
        """Its copy, fetched first if it is not there; raises :class:`DataError` if that cannot be done."""
        if not self.touch():
            _fetch(self)
        return self.cached

    def touch(self) -> bool:
        """Whether its copy is there and whole; it is then the last one to make room for others."""
        try:
            found = self.cached.stat()
        except OSError:
            return False
        with suppress(OSError):  # of another user, or gone this moment
            os.utime(self.cached)
        return self.size in (None, found.st_size)

    def forget(self) -> None:
        """Drop its copy and all that is known of it."""
        for path in self.cached.parent.glob(f"{self.cached.name}*"):
            if path.suffix not in (".lock", ".part"):
                path.unlink(missing_ok=True)


def is_remote(uri: str) -> bool:
    """Whether a name, or one of several with ``::`` between them, is a URL or a pipe."""
    return _REMOTE.search(uri) is not None


@contextmanager
def no_commands() -> Iterator[None]:
    """Open what a file names, which a stranger may have written: what would run a command is refused."""
    before = _COMMANDS.set(False)
    try:
        yield
    finally:
        _COMMANDS.reset(before)


def look_up(urls: Sequence[str]) -> list[Remote]:
    """Ask the servers what they have there; raises :class:`DataError` for what is not there or cannot be asked for."""
    command = next((url for url in urls if url.startswith(_PIPE)), None)
    if command and not _COMMANDS.get():
        raise DataError(f"{command}: a command is run only where you name it yourself, and a file names this one.")
    found: list[Remote] = []
    with progress("look up shards", len(urls), "shards") as advance, ThreadPoolExecutor(_AT_ONCE) as threads:
        for remote in threads.map(_look_up, urls):
            found.append(remote)
            advance(len(found), "")
    return found


def matches(pattern: str) -> list[str]:
    """The URLs that a URL with stars stands for, in order."""
    system, path = _file_system(pattern)
    found = _tried(lambda: system.glob(path), pattern)
    return sorted(str(system.unstrip_protocol(name)) for name in found)


def warn_if_small(files: Sequence[Remote]) -> None:
    """Say so if the cache cannot hold what training reads at a time, and each epoch would fetch files many times."""
    largest = sorted((file.size or 0 for file in files), reverse=True)
    needed = sum(largest[: WINDOW + 2])
    if needed > _limit():
        console.print(
            f"warning: training in random order reads {min(len(files), WINDOW + 2)} shards at a time, "
            f"{needed / _GB:.2f} GB of these, and the cache holds less: shards will be fetched again and again. "
            f"Raise {_limit_told()}.",
            markup=False,
        )


def _look_up(url: str) -> Remote:
    if url.startswith(_PIPE):
        return Remote(url)
    system, path = _file_system(url)
    return Remote(url, *_tried(lambda: _state(system, path, url), url))


def _state(system: Any, path: str, url: str) -> tuple[str, int | None]:
    """What tells that the content is the same, and its size in bytes, if the server says so."""
    info: Mapping[str, Any] = system.info(path)
    if info.get("type") == "directory":
        raise DataError(f"{url}: found a folder, expected a file. Name those in it, such as {url.rstrip('/')}/*.tar")
    told = {re.sub("[^a-z0-9]", "", key.lower()): value for key, value in info.items() if value is not None}
    mark = next((str(told[key]) for key in _MARKS if key in told), "")
    return json.dumps([mark, info.get("size")]), info.get("size")


def _file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    options = {}
    if url.lower().startswith(("http://", "https://")):
        # However long a large file takes, as long as it comes.
        quiet = need("aiohttp", "data").ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
        options["timeout"] = quiet
    try:
        system, path = need("fsspec.core", "data").url_to_fs(url, **options)
    except ImportError as error:
        raise ConfigError(f"{url}: its file system needs a package that is not there: {error}") from error
    except ValueError as error:
        raise DataError(f"{url}: not an address that fsspec knows ({error})") from error
    return system, path


def _fetch(remote: Remote) -> None:
    """Put a file into the cache whole; of several processes that want it one does, and the others wait."""
    cached = remote.cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with _alone(cached):
            if not remote.touch():
                for left in cached.parent.glob(f"{cached.name}.*.part"):  # by a process that was killed
                    left.unlink(missing_ok=True)
                _fetch_alone(remote, cached.with_name(f"{cached.name}.{uuid.uuid4().hex}.part"))
    except OSError as error:
        raise DataError(
            f"{remote.url}: cannot be kept in {cached.parent} ({error}). Name a folder that can be written as "
            "$CLIPDISTILL_CACHE."
        ) from error


def _fetch_alone(remote: Remote, part: Path) -> None:
    try:
        if remote.size:
            _make_room(remote, remote.size)
        _tried(lambda: _download(remote, part), remote.url)
        if remote.size is None:
            _make_room(remote, part.stat().st_size)
        if remote.content is not None:
            _check_content(remote, part)
        part.replace(remote.cached)
    finally:
        part.unlink(missing_ok=True)


def _check_content(remote: Remote, part: Path) -> None:
    with part.open("rb") as file:
        if _digest(file) != remote.content:
            remote.forget()
            raise _changed(remote)


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _download(remote: Remote, part: Path) -> None:
    """Write the whole file to ``part``, or raise."""
    if remote.url.startswith(_PIPE):
        _pipe(remote.url[len(_PIPE) :], part)
    else:
        system, path = _file_system(remote.url)
        mark, size = _state(system, path, remote.url)
        if mark != remote.mark:
            raise _changed(remote)
        system.get_file(path, str(part), **_uncompressed(system))
        if size is not None and part.stat().st_size != size:
            raise OSError(f"it ended after {part.stat().st_size} of {size} bytes")
    with part.open("rb") as file:
        os.fsync(file.fileno())


def _uncompressed(system: Any) -> dict[str, Any]:
    """Ask HTTP servers not to compress on the way: the size would be that of something else."""
    if "http" not in system.protocol:
        return {}
    return {"headers": {**system.kwargs.get("headers", {}), "Accept-Encoding": "identity"}}


def _pipe(command: str, part: Path) -> None:
    with part.open("wb") as file:
        done = subprocess.run(
            command, shell=True, check=False, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE
        )
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[-500:] or "it said nothing"
        raise OSError(f"the command ended with status {done.returncode}: {said}")


def _tried(job: Callable[[], Found], url: str) -> Found:
    """Do a job that can fail for a while; raises :class:`DataError` with the last reason."""
    for pause in (*_PAUSES, None):
        try:
            return job()
        except ClipdistillError:
            raise
        except Exception as error:  # each file system has its own
            if pause is None:
                cause = error.__cause__ or error
                told = str(cause) or type(cause).__name__
                raise DataError(f"{url}: cannot be fetched, tried {len(_PAUSES) + 1} times: {told}") from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def _changed(remote: Remote) -> DataError:
    return DataError(f"{remote.url}: its content has changed since it was opened. Start again with it as it is now.")


def cache_folder() -> Path:
    """Where copies of shards and their indices are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(os.environ.get("CLIPDISTILL_CACHE") or Path(home) / "clipdistill" / "shards").expanduser().absolute()


def _limit() -> float:
    """Bytes that the copies may take."""
    told = os.environ.get("CLIPDISTILL_CACHE_GB") or "50"
    with suppress(ValueError):
        if (found := float(told)) > 0:
            return found * _GB
    raise ConfigError(f"CLIPDISTILL_CACHE_GB is {told!r}, expected a number of gigabytes such as 200")


def _limit_told() -> str:
    return f"CLIPDISTILL_CACHE_GB ({_limit() / _GB:g})"


def _make_room(remote: Remote, size: int) -> None:
    """Drop the copies used longest ago, and parts that nobody fetches any more, until ``size`` more bytes fit."""
    limit = _limit()
    if size > limit:
        raise DataError(f"{remote.url}: {size / _GB:.2f} GB are more than the cache holds. Raise {_limit_told()}.")
    files = sorted(_copies(remote.cached.parent))
    total = size + sum(has for _, has, path in files if path.suffix == ".tar")
    for _, has, path in files:
        if path.suffix == ".part":
            _drop_if_left(path)
        elif total > limit:
            with suppress(OSError):  # open on a system that keeps open files
                path.unlink(missing_ok=True)
                total -= has


def _copies(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """When each copy was last used, its size, and its path; with those on their way."""
    for entry in os.scandir(folder):
        if entry.name.endswith((".tar", ".part")):
            with suppress(FileNotFoundError):
                found = entry.stat()
                yield found.st_mtime_ns, found.st_size, Path(entry.path)


def _drop_if_left(part: Path) -> None:
    """Remove what a process has left that was killed: nobody holds the lock."""
    copy = part.with_name(part.name.rpartition(".tar.")[0] + ".tar")
    with suppress(OSError), _alone(copy, wait=False):
        part.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a copy; it ends with the process. Without waiting, raises OSError if another one has it.

    A file system without locks goes without: then several may fetch the same, and the last one's copy stays.
    """
    with path.with_name(f"{path.name}.lock").open("ab") as file:
        try:
            import fcntl
        except ImportError:
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            if not wait:
                raise
        try:
            yield
        finally:
            with suppress(OSError):  # a process forked meanwhile would hold it on
                fcntl.flock(file, fcntl.LOCK_UN)

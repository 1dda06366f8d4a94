"""``clipdistill serve`` as a process of its own, as a user starts it, and a client of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipdistill.errors import TrainingError

#: So long a server may take to start, and to end once it is asked to.
SECONDS_TO_START, SECONDS_TO_END = 120.0, 60.0
#: How a process ends that was asked to: by itself, or by passing the signal on once all is done.
ENDED = (0, -signal.SIGTERM)
_ADDRESS = re.compile(r"at http://127\.0\.0\.1:(\d+)")


@dataclass
class Server:
    """A server's process, the file of what it says, and when it was started."""

    process: subprocess.Popen[bytes]
    told: Path
    began: float
    port: int = 0

    def memory(self) -> dict[str, float]:
        """The memory it takes now, in MB: ``rss``, and ``pss``, which shares what others have mapped too."""
        return memory_of(self.process.pid)

    def open_files(self) -> int:
        """The number of files and connections that it holds open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def stop(self) -> int:
        """Ask it to end, and kill it where it does not; return its status."""
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(SECONDS_TO_END)
        self.process.kill()
        return self.process.wait()

    def words(self) -> str:
        """The end of what it has said."""
        return self.told.read_text(encoding="utf-8", errors="replace")[-2000:].strip()


@dataclass
class Client:
    """One connection to a server of this machine that is kept open."""

    port: int
    seconds: float = 60.0
    _open: http.client.HTTPConnection | None = field(default=None, repr=False)

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send a request, with a ``body`` of JSON if there is one; return status and answer.

        Raises OSError or HTTPException where there is no answer; the next request then opens a new connection.
        """
        if self._open is None:
            self._open = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.seconds)
        try:
            self._open.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
            response = self._open.getresponse()
            return response.status, response.read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection back."""
        if self._open is not None:
            self._open.close()
            self._open = None


def search_body(**request: Any) -> bytes:
    """A request to ``/api/search``."""
    return json.dumps(request).encode()


def start(words: Sequence[str], told: Path) -> Server:
    """Start ``clipdistill serve`` with these words at a free port, and wait until it names its address.

    Raises :class:`TrainingError` with its last words where it ends instead.
    """
    command = [sys.executable, "-m", "clipdistill", "serve", *words, "--port", "0"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    began = time.perf_counter()
    with told.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
    server = Server(process, told, began)
    try:
        server.port = _port(server)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return server


@contextmanager
def serving(words: Sequence[str], told: Path) -> Iterator[Server]:
    """A server that ends with the block."""
    server = start(words, told)
    try:
        yield server
    finally:
        server.stop()


def first_answer(server: Server, path: str, body: bytes | None) -> float:
    """Ask as soon as it listens; return the seconds from the start of the process to its first answer."""
    client = Client(server.port)
    while time.perf_counter() - server.began < SECONDS_TO_START:
        with suppress(OSError, http.client.HTTPException):
            status, answer = client.ask(path, body)
            if status == 200:
                client.close()
                return time.perf_counter() - server.began
            if status not in (429, 503):
                raise TrainingError(f"the server answers {path} with {status}: {answer[:500].decode()}")
        if server.process.poll() is not None:
            break
        time.sleep(0.005)
    raise TrainingError(f"the server does not answer. Its last words:\n{server.words()}")


def memory_of(pid: int) -> dict[str, float]:
    """A process's memory in MB, by Linux's own account."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    found = {line.partition(":")[0].lower(): line.split()[1] for line in lines if line.startswith(("Rss:", "Pss:"))}
    return {name: int(kilobytes) * 1024 / 1e6 for name, kilobytes in found.items()}


def _port(server: Server) -> int:
    while time.perf_counter() - server.began < SECONDS_TO_START:
        if found := _ADDRESS.search(server.told.read_text(encoding="utf-8", errors="replace")):
            return int(found[1])
        if server.process.poll() is not None:
            break
        time.sleep(0.005)
    raise TrainingError(f"clipdistill serve does not start. Its last words:\n{server.words()}")

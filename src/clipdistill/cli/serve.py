"""The verb of a server: serve."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipdistill.errors import ConfigError, need
from clipdistill.progress import console

if TYPE_CHECKING:
    from clipdistill.search.searcher import Searcher
    from clipdistill.serve.settings import Settings


def serve(
    indexes: Annotated[
        list[Path] | None, typer.Argument(help="Indexes, each known by its folder's name; the first by default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="Ask for a key of this file, as --new-key wrote it.")] = None,
    no_keys: Annotated[
        bool, typer.Option("--no-keys", help="Let anybody ask who reaches an address that is not this machine's own.")
    ] = False,
    new_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make a key, add its hash to --keys, print it, and end.")
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Let this web page's scripts ask; repeat.")
    ] = None,
    allow_fetch: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="Fetch pictures by address from this host; repeat.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The model of the indexes, where it has moved, or a student of it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads for one batch; all by default.")] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="N/minute", help="Requests of one key or address; else unlimited.")
    ] = None,
) -> None:
    """Serve indexes over HTTP: a page to search with, and interfaces for programs. Stop it with Ctrl-C.

    For instance: clipdistill serve photos.index --port 8000
    """
    if new_key is not None:
        _print_new_key(keys, new_key)
        return
    need("fastapi", "serve")
    uvicorn = need("uvicorn", "serve")
    from clipdistill.serve.app import create_app

    settings = _settings(host, keys, no_keys, cors or [], allow_fetch or [], rate)
    searchers = _open(indexes or [], model, threads)
    app = create_app(searchers, settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,  # its own would close the handlers of everything else in this process
        log_level="warning",
        access_log=False,  # what people search for is theirs
        server_header=False,
        timeout_graceful_shutdown=int(settings.seconds) + 5,
        timeout_keep_alive=15,
    )
    listening = _listen(host, port)
    told = ", ".join(f"{name} ({searcher.index.count} pictures)" for name, searcher in searchers.items())
    shown = f"[{host}]" if ":" in host else host
    console.print(f"serving {told} at http://{shown}:{listening.getsockname()[1]}", markup=False)
    with contextlib.suppress(KeyboardInterrupt):  # how it is stopped
        uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0].lower()
        raise ConfigError(f"{host}:{port} cannot be listened on ({reason}). Take another --port; 0 is any.") from error
    # asyncio does so only for sockets that say they are of TCP; without it an answer waits 40 ms for a client's ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _print_new_key(keys: Path | None, name: str) -> None:
    from clipdistill.serve.keys import new_key

    if keys is None:
        raise ConfigError("--new-key needs the file to add the key to: --keys FILE.")
    key = new_key(keys, name)
    console.print(f"the key '{name}', shown this once; {keys} holds its hash alone:", markup=False)
    print(key)


def _settings(
    host: str, keys: Path | None, no_keys: bool, cors: list[str], fetch: list[str], rate: str | None
) -> Settings:
    from clipdistill.serve.settings import Settings, is_loopback, own_names, read_origin, read_rate

    if not is_loopback(host) and keys is None and not no_keys:
        raise ConfigError(
            f"others can reach {host}. Ask for keys (clipdistill serve --new-key NAME --keys FILE makes one, --keys "
            "FILE asks for it), or say --no-keys if everybody may search."
        )
    if keys is not None and no_keys:
        raise ConfigError("--keys and --no-keys say opposite things; leave one out.")
    return Settings(
        keys=keys,
        hosts=own_names(host) if is_loopback(host) else None,
        origins=tuple(map(read_origin, cors)),
        fetch=tuple(host.lower() for host in fetch),
        rate=None if rate is None else read_rate(rate),
    )


def _open(folders: list[Path], model: Path | None, threads: int | None) -> dict[str, Searcher]:
    from clipdistill.search.searcher import Searcher

    if not folders:
        raise ConfigError("there is no index to serve; name one or more: clipdistill serve photos.index")
    found: dict[str, Searcher] = {}
    for folder in folders:
        name = folder.resolve().name.removesuffix(".index")
        if name in found:
            raise ConfigError(f"two indexes are called '{name}'; rename the folder of one.")
        found[name] = Searcher.open(folder, model, threads)
    return found

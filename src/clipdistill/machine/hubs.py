"""The way to models and data: the hub's settings, what the caches hold, and whether the hub answers."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants, get_token

from clipdistill.machine.finding import Finding
from clipdistill.models.hub import modelscope_cache

SECONDS = 3.0


def look(online: bool) -> list[Finding]:
    """Examine the settings and the caches; only with ``online`` is anything sent."""
    return [
        _settings(),
        *([answer(constants.ENDPOINT)] if online else []),
        _cache("hub's cache", Path(constants.HF_HUB_CACHE), "models--*", "datasets--*"),
        _cache("ModelScope's cache", modelscope_cache(), "**/configuration.json"),
    ]


def _settings() -> Finding:
    if constants.HF_HUB_OFFLINE:
        return Finding("ok", "hub", "HF_HUB_OFFLINE is set: only what the caches hold can be opened")
    token = "logged in" if get_token() else "not logged in, which public models do without"
    return Finding("ok", "hub", f"{constants.ENDPOINT}, {token}")


def answer(endpoint: str, seconds: float = SECONDS) -> Finding:
    """Ask the hub for nothing but an answer, for so many seconds at most."""
    if constants.HF_HUB_OFFLINE:
        return Finding("ok", "hub answers", "not asked: HF_HUB_OFFLINE is set")
    heard: list[str | Exception] = []
    # Looking a name up knows no time limit, so it is waited for no longer than for the rest.
    asking = threading.Thread(target=lambda: heard.append(_ask(endpoint, seconds)), daemon=True)
    asking.start()
    asking.join(seconds)
    if heard and isinstance(heard[0], str):
        return Finding("ok", "hub answers", heard[0])
    why = f"{type(heard[0]).__name__}: {heard[0]}" if heard else f"nothing within {seconds:g} s"
    return Finding(
        "warning",
        "hub answers",
        f"no, {endpoint}: {why}",
        "set HTTPS_PROXY, name a mirror as HF_ENDPOINT, or work from folders with HF_HUB_OFFLINE=1",
    )


def _ask(endpoint: str, seconds: float) -> str | Exception:
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=seconds) as answer:
            return f"yes, with status {answer.status}"
    except urllib.error.HTTPError as error:
        with error:
            return f"yes, with status {error.code}"
    except (OSError, ValueError) as error:  # no network, no such name, no address at all
        return error


def _cache(name: str, folder: Path, *patterns: str) -> Finding:
    if not folder.is_dir():
        return Finding("ok", name, f"empty: there is no {folder}")
    counts = [sum(1 for _ in folder.glob(pattern)) for pattern in patterns]
    sets = f" and {counts[1]} data sets" if len(counts) > 1 else ""
    return Finding("ok", name, f"{counts[0]} models{sets} in {folder}")

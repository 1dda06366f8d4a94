"""MLflow: a server, or the local store that MLflow chooses (``mlflow.db``), by MLFLOW_TRACKING_URI."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from clipdistill.errors import need
from clipdistill.training.trackers.naming import PROJECT, title

PACKAGE, EXTRA = "mlflow", "mlflow"
REWINDS = False
HELP = (
    "It takes its address from MLFLOW_TRACKING_URI (sqlite:///runs.db needs no server) and its keys from "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
)
#: MLflow takes so many parameters in one call.
_AT_ONCE = 100


class Run:
    """An open run. The client is used rather than MLflow's global state, which the user's own code may use."""

    def __init__(self, client: Any, entities: Any, run: str) -> None:
        self._client, self._entities, self.run = client, entities, run

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a step in one call."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_spelled(name), number, now, step) for name, number in numbers.items()]
        self._client.log_batch(self.run, metrics=metrics)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Send the configuration as parameters."""
        params = [self._entities.Param(_spelled(name), value) for name, value in _leaves(config)]
        for start in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self.run, params=params[start : start + _AT_ONCE])

    def close(self, finished: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self.run, status="FINISHED" if finished else "KILLED")


def open(folder: Path, config: Mapping[str, Any], step: int, known: str | None) -> Run:
    """Begin a run, or go on with the one that is known."""
    client = need(PACKAGE, EXTRA).MlflowClient(tracking_uri=_address())
    entities = need(f"{PACKAGE}.entities", EXTRA)
    if known is not None:
        client.update_run(known, status="RUNNING")
        return Run(client, entities, known)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    number = client.create_experiment(name) if experiment is None else experiment.experiment_id
    run = Run(client, entities, client.create_run(number, run_name=title(folder)).info.run_id)
    run.configure(config)
    return run


def _address() -> str | None:
    """The server's address without user and password, which MLflow would print: they go where it also looks."""
    address = os.environ.get("MLFLOW_TRACKING_URI")
    parts = urlsplit(address or "")
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return address
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(user))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(password))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _spelled(name: str) -> str:
    """A name in the letters that MLflow takes: ``text_to_image_R@1`` is ``text_to_image_R_at_1``."""
    return re.sub(r"[^\w.\- :/]", "_", name.replace("@", "_at_"))


def _leaves(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

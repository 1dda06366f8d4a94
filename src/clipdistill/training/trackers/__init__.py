"""The same numbers as ``log.jsonl`` for TensorBoard, Weights & Biases, trackio and MLflow, one small module each.

A module has ``PACKAGE`` and ``EXTRA`` (what it imports, and which extra brings it), ``REWINDS`` (whether a run that is
opened again hides what it was told after the resumed step; the others must not be told twice), ``HELP`` (where its
keys and addresses come from: never from the run's configuration) and ``open``, which returns a :class:`Tracker`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from clipdistill.config import RunConfig
from clipdistill.data.secrets import redacted, without_secrets
from clipdistill.errors import ConfigError, did_you_mean, need
from clipdistill.files import write_text
from clipdistill.progress import console
from clipdistill.training.run_folder import LOG, TRACKERS, Log, read_log
from clipdistill.training.trackers import mlflow, tensorboard, trackio, wandb

MODULES: dict[str, ModuleType] = {"mlflow": mlflow, "tensorboard": tensorboard, "trackio": trackio, "wandb": wandb}


class Tracker(Protocol):
    """An open run of a tracker."""

    @property
    def run(self) -> str:
        """The name by which the library finds the run again."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Pass on what was measured at a step."""

    def close(self, finished: bool) -> None:
        """Send what is left, and say whether the run is finished or was stopped."""


class Logs:
    """``log.jsonl`` and the trackers beside it: one call writes to all.

    ``trackers.json`` holds the name of each tracker's run and the last step it was told. It is written before the
    tracker is told, so a process that is killed in between leaves a step out rather than telling it twice.
    """

    def __init__(self, folder: Path, trackers: dict[str, Tracker], told: dict[str, dict[str, Any]]) -> None:
        self._log, self._path = Log(folder / LOG), folder / TRACKERS
        self._trackers, self._told = trackers, told

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line, and pass its numbers on."""
        self._log.write(entry)
        self.tell(entry)

    def tell(self, entry: Mapping[str, Any]) -> None:
        """Pass the numbers of an entry on to the trackers that do not have it; one that fails is left behind."""
        step, kind = int(entry["step"]), "metrics" if "metrics" in entry else "training"
        for name, tracker in list(self._trackers.items()):
            steps = self._told[name]["steps"]
            before = steps.get(kind, 0)
            if step <= before:
                continue
            steps[kind] = step
            self._remember()
            try:
                tracker.log(step, dict(flat(entry)))
            except Exception as error:  # each library has classes of its own, and none may end the run
                steps[kind] = before
                self._remember()
                del self._trackers[name]
                console.print(
                    f"warning: {name} failed at step {step} ({without_secrets(str(error))}). Training goes on without "
                    f"it; {self._log.path} has every number, and with --resume {name} is told the rest.",
                    markup=False,
                )

    def close(self, finished: bool) -> None:
        """Close every tracker; one that cannot be closed is only told of."""
        for name, tracker in self._trackers.items():
            try:
                with redirect_stdout(sys.stderr):  # standard output is for results
                    tracker.close(finished)
            except Exception as error:
                console.print(f"warning: {name} was not closed: {without_secrets(str(error))}", markup=False)

    def _remember(self) -> None:
        write_text(self._path, json.dumps(self._told, indent=2) + "\n")


def check(names: Sequence[str]) -> None:
    """Raise a ConfigError for a tracker that is unknown, or whose package is missing."""
    for name in names:
        if name not in MODULES:
            raise ConfigError(f"track: unknown tracker '{name}'." + did_you_mean(name, MODULES))
        need(MODULES[name].PACKAGE, MODULES[name].EXTRA)


@contextmanager
def logs(config: RunConfig, step: int, main: bool) -> Iterator[Logs]:
    """The logs of a run that goes on after ``step``; only the ``main`` process has trackers, and may write.

    What ``log.jsonl`` holds already is passed on to a tracker that does not have it: one that is new to the run, or
    that failed.

    Raises:
        ConfigError: a tracker does not open.
    """
    folder = Path(config.out)
    opened = _open(config, folder, step) if main else Logs(folder, {}, {})
    finished = False
    try:
        yield opened
        finished = True
    finally:
        opened.close(finished)


def _open(config: RunConfig, folder: Path, step: int) -> Logs:
    told: dict[str, dict[str, Any]] = _read(folder / TRACKERS)
    trackers: dict[str, Tracker] = {}
    found = Logs(folder, trackers, told)
    plain = redacted(config.model_dump(mode="json"))
    for name in config.track:
        module, known = MODULES[name], told.get(name, {"run": None, "steps": {}})
        try:
            with redirect_stdout(sys.stderr):
                trackers[name] = module.open(folder, plain, step, known["run"])
        except Exception as error:
            found.close(finished=False)
            # `from None`: the cause may spell out a password, and --debug prints causes
            raise ConfigError(
                f"the tracker {name} does not open: {without_secrets(str(error))}. {module.HELP} Then go on with "
                f"--resume, leave {name} out of track, or remove {folder / TRACKERS} to begin new runs."
            ) from None
        steps = {kind: min(at, step) if module.REWINDS else at for kind, at in known["steps"].items()}
        told[name] = {"run": trackers[name].run, "steps": steps}
        found._remember()
    if trackers:
        for entry in read_log(folder / LOG):
            found.tell(entry)
    return found


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"run": str(entry["run"]), "steps": dict(entry["steps"])} for name, entry in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not what a run writes there ({error!r}). Remove it, and the trackers begin new runs."
        ) from error


def flat(entry: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a log entry by name, with a slash below a name: ``loss``, ``terms/crd``."""
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}/")
        elif above or key != "step":
            yield f"{above}{key}", float(value)

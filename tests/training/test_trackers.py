"""Trackers are told what log.jsonl holds, once each, through kills, failures and stages; no secret leaves."""

from __future__ import annotations

import json
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipdistill.config import RunConfig
from clipdistill.data.secrets import redacted, without_secrets
from clipdistill.errors import ConfigError
from clipdistill.training import loop, stages
from clipdistill.training.loop import distill
from clipdistill.training.ranks import Ranks
from clipdistill.training.run_folder import read_log
from clipdistill.training.trackers import check, flat, logs
from tiny_runs import fail_at_step, tiny_run

Told = list[tuple[int, dict[str, float]]]


def logged(out: Path) -> Told:
    return [(int(entry["step"]), dict(flat(entry))) for entry in read_log(out / "log.jsonl")]


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: steps after a restart hide those before it."""
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


class FakeRun:
    """A run of wandb or trackio, which have the same calls."""

    def __init__(self, name: str, service: Service) -> None:
        self.id = self.name = name
        self.service, self.told, self.endings = service, [], []

    id: str
    told: Told
    endings: list[int]

    def log(self, numbers: dict[str, float], step: int) -> None:
        if step == self.service.broken_at:
            raise OSError("no route to https://me:hunter2@tracker.example/log?token=abc")
        self.told.append((step, numbers))

    def finish(self, exit_code: int = 0) -> None:
        self.endings.append(exit_code)


class Service:
    """What stands in for the module ``wandb`` or ``trackio``: ``init``, and all runs there were."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.inits: list[dict[str, Any]] = []
        self.broken_at = -1

    def init(self, **given: Any) -> FakeRun:
        self.inits.append(given)
        name = given.get("id") or given["name"]
        assert (name in self.runs) == (given["resume"] == "allow")
        print("* hello from the tracker")
        self.current = self.runs.setdefault(name, FakeRun(name, self))
        return self.current

    def finish(self) -> None:
        self.current.finish()

    def the_run(self) -> FakeRun:
        (found,) = self.runs.values()
        return found


@pytest.fixture(params=["wandb", "trackio"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    found: Any = Service()
    found.name = request.param
    monkeypatch.setitem(sys.modules, request.param, found)
    return found


class Mlflow:
    """What stands in for the modules ``mlflow`` and ``mlflow.entities``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str | None] = []
        self.metrics: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.params: dict[str, str] = {}
        self.statuses: list[str] = []
        self.experiments: dict[str, Any] = {}
        self.create_experiment = lambda name: self.experiments.setdefault(name, "1") and "1"
        self.get_experiment_by_name = self.experiments.get
        entities = types.SimpleNamespace(Metric=lambda *given: given, Param=lambda *given: given)
        monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=self.client))  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "mlflow.entities", entities)  # type: ignore[arg-type]

    def client(self, tracking_uri: str | None) -> Mlflow:
        self.addresses.append(tracking_uri)
        return self

    def create_run(self, experiment: str, run_name: str) -> Any:
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"{experiment}-{run_name.split('/')[-1]}"))

    def update_run(self, run: str, status: str) -> None:
        assert run == "1-run"
        self.statuses.append(status)

    set_terminated = update_run

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        self.params |= dict(params)
        for name, number, _, step in metrics:
            self.metrics[name].append((step, number))


def interrupted_and_resumed(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop without a checkpoint after step 5 of 8, then go on from that of step 3."""
    with monkeypatch.context() as patch:
        fail_at_step(patch, 6)
        with pytest.raises(RuntimeError, match="power cut"):
            distill(config)
    distill(config, resume=True)


def test_tensorboard_shows_the_log(tmp_path: Path) -> None:
    evaluate = {"retrieval": "scenes:validation?n=16", "every": 4}
    distill(tiny_run(tmp_path / "run", track="tensorboard", evaluate=evaluate))
    shown = scalars(tmp_path / "run")
    assert {"loss", "terms/task", "scale", "lr", "grad_norm", "metrics/text_to_image_R@1"} <= shown.keys()
    for name, points in shown.items():
        told = [(step, numbers[name]) for step, numbers in logged(tmp_path / "run") if name in numbers]
        assert [step for step, _ in points] == [step for step, _ in told]
        assert [value for _, value in points] == pytest.approx([value for _, value in told], rel=1e-6)


def test_tensorboard_shows_no_step_twice_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_and_resumed(tiny_run(tmp_path / "run", track=["tensorboard"]), monkeypatch)
    assert [step for step, _ in scalars(tmp_path / "run")["loss"]] == list(range(1, 9))


def test_a_run_goes_on_where_it_was_tracked(tmp_path: Path, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_and_resumed(tiny_run(tmp_path / "run", track=[service.name]), monkeypatch)
    run = service.the_run()
    assert [step for step, _ in run.told] == list(range(1, 9))
    assert len(run.endings) == 2
    if service.name == "wandb":
        assert run.endings == [1, 0]
    rate = "samples_per_second"  # differs in the steps done twice
    clockless = [[{**numbers, rate: 0.0} for _, numbers in told] for told in (run.told, logged(tmp_path / "run"))]
    assert clockless[0] == clockless[1]
    assert json.loads((tmp_path / "run" / "trackers.json").read_text())[service.name]["steps"] == {"training": 8}
    assert service.inits[0]["project"] == "clipdistill"
    assert service.inits[0]["config"]["train"]["steps"] == 8


def test_a_kill_between_two_writes_repeats_nothing(tmp_path: Path, service: Any) -> None:
    """A process that dies while it tells the tracker: the step is known to be told."""
    config = tiny_run(tmp_path / "run", track=[service.name])
    distill(config)
    run = service.the_run()
    (tmp_path / "run" / "log.jsonl").write_text("")
    with logs(config, 0, main=True) as log:
        log.write({"step": 8, "loss": 1.0})
        log.write({"step": 8, "metrics": {"R@1": 1.0}})
        log.write({"step": 9, "loss": 1.0})
    assert [told for told in run.told if told[0] >= 8][1:] == [(8, {"metrics/R@1": 1.0}), (9, {"loss": 1.0})]


def test_a_tracker_that_fails_is_left_behind_and_told_the_rest_later(
    tmp_path: Path, service: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path / "run", track=[service.name, "tensorboard"])
    service.broken_at = 4
    assert distill(config).student.is_dir()
    run = service.the_run()
    assert [step for step, _ in run.told] == [1, 2, 3]
    assert len(scalars(tmp_path / "run")["loss"]) == 8
    said = capfd.readouterr()
    assert said.err.count(f"{service.name} failed at step 4") == 1
    assert "hunter2" not in said.err
    assert "abc" not in said.err
    assert said.out == ""  # what trackers print is talk, not a result
    service.broken_at = -1
    distill(config, resume=True)
    assert [step for step, _ in run.told] == list(range(1, 9))


def test_a_tracker_added_later_is_told_all(tmp_path: Path, service: Any) -> None:
    out = tmp_path / "run"
    distill(tiny_run(out))
    assert not (out / "trackers.json").exists()
    distill(tiny_run(out, track=[service.name]), resume=True)
    assert service.the_run().told == logged(out)


def test_mlflow_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunt%2Fer2@tracker.example:80/path")
    mlflow = Mlflow(monkeypatch)
    out = tmp_path / "run"
    evaluate = {"retrieval": "scenes:validation?n=16", "every": 4}
    interrupted_and_resumed(tiny_run(out, track=["mlflow"], evaluate=evaluate), monkeypatch)
    assert [step for step, _ in mlflow.metrics["terms/task"]] == list(range(1, 9))
    assert [step for step, _ in mlflow.metrics["metrics/text_to_image_R_at_1"]] == [4, 8]
    assert mlflow.statuses == ["KILLED", "RUNNING", "FINISHED"]
    assert mlflow.params["train.steps"] == "8"
    assert mlflow.params["student.preset"] == "scenes-student"
    assert set(mlflow.addresses) == {"https://tracker.example:80/path"}
    from os import environ

    assert (environ["MLFLOW_TRACKING_USERNAME"], environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", "hunt/er2")
    written = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert not any(b"hunt/er2" in text or b"hunt%2Fer2" in text for text in written)


def test_every_stage_is_a_run_of_its_own(tmp_path: Path, service: Any) -> None:
    changes: dict[str, Any] = {"stages": [{}, {}], "track": [service.name]}
    stages.distill(tiny_run(tmp_path / "run", train={"steps": 2}, **changes))
    titles = [given["name"] for given in service.inits]
    assert [title.split(" ")[0] for title in titles] == ["run/stage-1", "run/stage-2"]
    assert [[step for step, _ in run.told] for run in service.runs.values()] == [[1, 2], [1, 2]]


def test_what_cannot_be_tracked_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    for track, message in (
        ("tensorbord", r"unknown tracker 'tensorbord'. Did you mean 'tensorboard'"),
        ("wandb", r"'wandb' is needed .* pip install 'clipdistill\[wandb\]'"),
    ):
        for changes in ({}, {"stages": [{}]}):
            with pytest.raises(ConfigError, match=message):
                stages.distill(tiny_run(tmp_path / "run", track=track, **changes))
    assert not (tmp_path / "run").exists()
    check(["tensorboard"])


def test_a_tracker_that_does_not_open_tells_no_secret(
    tmp_path: Path, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**given: Any) -> None:
        raise OSError("401 from https://me:hunter2@tracker.example/init")

    with monkeypatch.context() as patch:
        patch.setattr(service, "init", refuse)
        with pytest.raises(ConfigError, match=rf"{service.name} does not open: 401 from https://\*\*\*@") as caught:
            distill(tiny_run(tmp_path / "run", track=["tensorboard", service.name]))
        assert caught.value.__suppress_context__
    distill(tiny_run(tmp_path / "run", track=["tensorboard", service.name]), resume=True)  # as the message says
    assert [step for step, _ in service.the_run().told] == list(range(1, 9))


def test_only_the_first_process_tracks(tmp_path: Path, service: Any) -> None:
    config = tiny_run(tmp_path / "run", track=[service.name])
    ranks = Ranks(1, 2)
    with logs(config, 0, ranks.main):
        pass
    assert service.inits == []
    assert not (tmp_path / "run").exists()


def test_addresses_lose_their_passwords() -> None:
    told = {"data": "https://me:pass@word@host/a.tar", "list": ["s3://bucket/x", "http://h/?api_key=K1&n=2"], "n": 3}
    assert redacted(told) == {
        "data": "https://***@host/a.tar",
        "list": ["s3://bucket/x", "http://h/?api_key=***&n=2"],
        "n": 3,
    }
    assert without_secrets("at postgresql://u:p@db/x, or mail@example.com") == (
        "at postgresql://***@db/x, or mail@example.com"
    )


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text("[1]")
    with (
        pytest.raises(ConfigError, match=r"trackers.json is not what a run writes there"),
        logs(tiny_run(tmp_path, track=["tensorboard"]), 0, main=True),
    ):
        pass
    assert loop.trackers.MODULES.keys() == {"tensorboard", "wandb", "trackio", "mlflow"}

"""What a newcomer meets: the overview, the examination of the machine, and plain words about every mistake."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from clipdistill import __version__
from clipdistill.cli import main, overview
from clipdistill.data import check as data_check
from clipdistill.machine import compute, examine, hubs, packages, room

# the overview


def test_alone_it_tells_what_it_can_do_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(re.search(rf"\b{verb}\b", text) for verbs in overview.VERBS.values() for verb in verbs)
    assert "clipdistill demo" in text
    assert "clipdistill init" in text


def test_help_lists_every_verb_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    titles = [line.rstrip(":") for line in printed.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options", *overview.VERBS], "a verb is in no group of cli/overview.py"
    assert not re.search(r"\.\.\.$", printed.partition("\n")[2], re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"clipdistill {__version__}\n"


def test_help_imports_little() -> None:
    program = "import sys; from clipdistill.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "transformers", "numpy", "pydantic", "yaml", "pyarrow", "lancedb", "rich.progress"}


# doctor


def test_the_machine_is_examined(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["packages", "computing", "room", "hubs"]
    names = {finding["name"] for findings in found.values() for finding in findings}
    assert {"base install", "python", "[train]", "torch", "GPU", "disk", "open files", "hub"} <= names
    assert all(finding["todo"] for findings in found.values() for finding in findings if finding["status"] != "ok")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"ok +\[train\] .*torch 2", printed.out)
    assert "the base install works" in printed.err


def test_every_extra_says_what_it_brings() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = ", section, re.MULTILINE)) - {"all", "dev", "docs"}
    assert extras == set(packages.BRINGS)


def version_of(installed: dict[str, str]) -> packages.Version:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    return version


def test_missing_old_and_broken_packages_are_told_apart() -> None:
    lines = ["numpy>=1.26", "torch>=2.9; extra == 'train'", "numpy>=1; extra == 'train'"]
    lines += ["torch>=2.9; extra == 'nncf'", "nncf>=3; extra == 'nncf'", "pytest; extra == 'dev'"]
    whole = version_of({"numpy": "2.1", "torch": "2.13.0+cpu", "nncf": "3.0"})
    assert packages.base(lines, whole).status == "ok"
    assert [(one.name, one.found) for one in packages.extras(lines, whole)] == [
        ("[train]", "torch 2.13.0+cpu"),
        ("[nncf]", "nncf 3.0"),
    ]
    train, nncf = packages.extras(lines, version_of({"numpy": "2.1", "torch": "2.4"}))
    assert (train.status, train.found) == ("warning", "torch 2.4 is installed, >=2.9 is expected")
    assert (nncf.status, nncf.found) == ("missing", "nncf")
    assert "pip install 'clipdistill[nncf]'" in nncf.todo
    assert packages.base(lines, version_of({})).status == "missing"
    broken = packages.base(["no-such-package"], version_of({"no-such-package": "1"}))
    assert broken.status == "missing"
    assert "cannot be imported" in broken.found


def test_a_broken_base_install_is_the_one_thing_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy>=99"])
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert "numpy" in printed.out
    assert "the base install does not work" in printed.err


class FakeCuda:
    """What is asked of torch.cuda, for a build with or without it."""

    def __init__(self, there: bool) -> None:
        self.is_available = lambda: there
        self.device_count = lambda: int(there)
        self.is_bf16_supported = lambda: there

    def get_device_properties(self, place: int) -> Any:
        return type("Properties", (), {"name": "H200", "total_memory": 141 * 2**30})


def fake_torch(there: bool, cuda: str | None) -> Any:
    mps = type("Mps", (), {"is_available": staticmethod(lambda: False)})
    version = type("Version", (), {"cuda": cuda})
    return type("Torch", (), {"cuda": FakeCuda(there), "version": version, "backends": type("B", (), {"mps": mps})})


def test_gpus() -> None:
    known = ["NVIDIA H200, 143771 MiB, 570.1"]
    assert compute.gpu(fake_torch(True, "12.8"), known).found == "H200, 141.0 GiB, CUDA 12.8, driver 570.1, bfloat16"
    assert compute.gpu(fake_torch(False, None), []).found == "none; everything runs on the CPU"
    without = compute.gpu(fake_torch(False, None), known)
    assert (without.status, "built without CUDA" in without.found) == ("warning", True)
    assert compute.gpu(None, known).status == "warning"


def test_a_broken_torchvision_is_harmless() -> None:
    def load(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    found = compute.torchvision(load)
    assert (found.status, "Harmless" in found.found) == ("warning", True)


def test_little_room_is_warned_of(tmp_path: Path) -> None:
    assert room.files(256).status == "warning"
    assert room.files(4096).status == "ok"
    assert room.shared_memory(tmp_path, enough=1e9).status == "warning"
    assert room.shared_memory(tmp_path, enough=0).status == "ok"
    assert room.disk("disk", tmp_path / "not" / "made", 1e9, "free some").status == "warning"


class Hub(BaseHTTPRequestHandler):
    """A hub that wants to know who asks."""

    def do_HEAD(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


def test_the_hub_is_asked_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hubs, "_ask", lambda endpoint, seconds: asked.append(endpoint) or "yes")
    monkeypatch.setattr(hubs.constants, "HF_HUB_OFFLINE", False)
    assert [one.name for one in hubs.look(online=False)] == ["hub", "hub's cache", "ModelScope's cache"]
    assert asked == []
    hubs.look(online=True)
    assert asked == [hubs.constants.ENDPOINT]
    monkeypatch.setattr(hubs.constants, "HF_HUB_OFFLINE", True)
    hubs.look(online=True)
    assert len(asked) == 1


def test_any_answer_of_the_hub_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs.constants, "HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.handle_request, daemon=True).start()
        found = hubs.answer(f"http://127.0.0.1:{server.server_port}")
    assert (found.status, found.found) == ("ok", "yes, with status 401")
    silent = hubs.answer(f"http://127.0.0.1:{server.server_port}", seconds=0.5)
    assert (silent.status, bool(silent.todo)) == ("warning", True)
    assert hubs.answer("no address").status == "warning"


def test_a_model_is_still_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 1
    assert "is not an exported model or a student" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path), "--online"]) == 1
    (tmp_path / "index.json").write_text("{}")
    assert main(["doctor", str(tmp_path)]) == 1
    assert f"clipdistill index check {tmp_path}" in capsys.readouterr().err


def test_nothing_is_examined_twice() -> None:
    names = [finding.name for findings in examine().values() for finding in findings]
    assert len(names) == len(set(names))


# errors


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status, and what was said: one message, without a traceback."""
    status, printed = main(words), capsys.readouterr().err
    assert "Traceback" not in printed
    return status, printed


def test_wrong_usage_names_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [
        (["distil"], "Did you mean 'distill'"),
        (["--verson"], "--version"),
        (["recipes", "shw"], "Did you mean 'show'"),
        (["distill", "--resum"], "--resume"),
        (["eval"], "Missing argument 'student'. Model folder, hub name, or run folder."),
        (["export", "x"], "Missing option '--out'. Folder"),
        (["distill", "--train.epochs", "3"], "train.epochs=VALUE"),
        (["plan", "--recipe=clip"], "recipe=VALUE"),
        (["students", "--target-ms", "soon"], "--target-ms"),
    ]:
        status, printed = told(words, capsys)
        assert status == 2, words
        assert message in printed


def test_files_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text("data: photos\ntrain: {epochs: 1\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    for words, message in [
        (
            ["distill", f"{tmp_path}/broken.yaml"],
            r"broken\.yaml is not readable YAML: line 3, column 1, .*expected ',' or '}'",
        ),
        (["recipes", "check", f"{tmp_path}/broken.yaml"], r"broken\.yaml is not readable YAML: line 3, column 1"),
        (["compare", f"{tmp_path}/broken.yaml", "--out", "x"], r"broken\.yaml is not readable YAML: line 3, column 1"),
        (["distill", f"{tmp_path}/list.yaml"], r"expected keys .* found \[1\]"),
        (["distill", f"{tmp_path}/brokn.yaml"], r"Did you mean 'broken\.yaml'.*clipdistill init"),
        (["distill", str(tmp_path)], r"is a folder, not a run file.*data="),
        (["distill", "data=x", "out=y", "train.epochs=some"], r"train\.epochs: expected a number \(found 'some'\)"),
        (["recipes", "draw", "clip", "--out", str(tmp_path)], "is a folder, where a file is expected"),
        (["recipes", "draw", "clip", "--out", f"{tmp_path}/no/x.svg"], r"there is no folder \S+/no\. Make it"),
        (["recipes", "draw", "clip", "--out", f"{tmp_path}/list.yaml/x/y.svg"], "is a file, or in one"),
        (["data", "check", "bogus:x"], r"bogus:x: unknown kind of data 'bogus:'"),
        (["data", "check", f"{tmp_path}/lst.yaml"], r"Did you mean \S+/list\.yaml\?"),
    ]:
        status, printed = told(words, capsys)
        assert status == 1, words
        assert re.search(message, printed, re.DOTALL), printed


def test_ctrl_c_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_check, "check", interrupted)
    assert told(["data", "check", "scenes:train?n=2"], capsys) == (130, "stopped\n")

"""Pushing to a hub that runs here: what arrives, under whose token, and what never leaves."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clipdistill.cli import main
from clipdistill.export.layouts import export_layout
from clipdistill.export.onnx import export
from clipdistill.models.loading import load
from export.layout_models import make_square
from models.conftest import MAKERS, TOWER

pytestmark = pytest.mark.usefixtures("graphs_once")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    repositories: dict[str, dict[str, bytes]]
    told: list[tuple[str, str | None]]
    created: list[dict[str, Any]]
    allowed = "hf_right"
    refused = ""
    public = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.told.append((self.path, token))
        if token != self.allowed:
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/validate-yaml" and self.refused:
            return self.answer({"errors": [{"message": self.refused}], "warnings": []}, 400)
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self.answer({"url": f"{self.address}/me/model", "name": "me/model"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            self.commit(self.path.rpartition("/")[2].partition("?")[0], body)
            return self.answer({"commitUrl": f"{self.address}/me/model/commit/1", "commitOid": "1", "success": True})
        return self.answer({"errors": [], "warnings": []})

    def commit(self, branch: str, body: bytes) -> None:
        files = self.repositories.setdefault(branch, {})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])

    def do_GET(self) -> None:
        self.answer({"id": "me/model", "siblings": [], "sha": "0", "private": not self.public})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.repositories, Hub.told, Hub.created = {}, [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that learnt from a model for research only."""
    root = tmp_path_factory.mktemp("pushed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOWER, "num_hidden_layers", 1)
        MAKERS["clip"](root / "model")
    link = {"role": "teacher T", "model": "apple/x", "licence": "apple-amlr", "use": "research only"}
    chain = [{**link, "source": "README.md", "address": ""}]
    card = {"teachers": {"T": "apple/x"}, "licence": "apple-amlr", "licence_chain": chain}
    load(str(root / "model")).save(root / "student", card)
    return root / "student"


@pytest.fixture(scope="module")
def exported(student: Path) -> Path:
    export(student, student.with_name("exported"), "scenes:test?n=40")
    return student.with_name("exported")


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_student_arrives_whole_and_its_licences_are_told_first(
    student: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    (student / ".DS_Store").write_bytes(b"not a model")
    assert main(["push", str(student), "me/model", "--private"]) == 0
    (student / ".DS_Store").unlink()
    assert hub.repositories == {"main": content(student)}
    assert hub.created[0]["name"] == "model"
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    told = capsys.readouterr().err
    assert "licence: apple-amlr" in told
    assert "teacher T apple/x: apple-amlr, research only (from README.md)" in told
    assert told.index("licence") < told.index("pushed: http://127.0.0.1")
    assert b"license: apple-amlr" in hub.repositories["main"]["README.md"]


def test_an_export_arrives_with_its_papers_on_a_branch(exported: Path, hub: type[Hub]) -> None:
    assert main(["push", str(exported), "me/model", "--revision", "v1"]) == 0
    assert hub.repositories == {"v1": content(exported)}
    assert any(path == "/api/models/me/model/branch/v1" for path, _ in hub.told)
    card = hub.repositories["v1"]["README.md"].decode()
    assert "license: apple-amlr" in card
    assert "Runtime.open" in card
    assert "| text_to_image_R@1 |" in card


def test_an_export_measures_and_calibrates_itself(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = json.loads((exported / "clipdistill.json").read_text())["runtime"]
    measured = section["measured"]
    assert (measured["pictures"], measured["captions"], measured["skipped"]) == (40, 40, 0)
    assert measured["data"] == "scenes:test?n=40"
    assert measured["drawn"] is True
    assert set(measured["metrics"]) == {
        f"{way}_R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)
    }
    assert all(found["low"] <= found["value"] <= found["high"] for found in measured["metrics"].values())
    calibration = section["calibration"]
    assert "left_out" in calibration or calibration["slope"] > 0
    assert main(["doctor", str(exported)]) == 0
    told = capsys.readouterr().err
    for words in ("kind: exported model of pictures and captions", "teacher: T apple/x", "licence: apple-amlr"):
        assert words in told
    assert "text_to_image_R@1" in told
    assert "calibration: " in told


def test_doctor_knows_a_student_from_one_that_was_changed(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(student)]) == 0
    assert "kind: student of pictures and captions" in capsys.readouterr().err
    other = tmp_path / "other"
    load(str(student)).save(other)
    record = json.loads((other / "clipdistill.json").read_text())
    (other / "clipdistill.json").write_text(json.dumps({**record, "fingerprint": "0"}))
    assert main(["doctor", str(other)]) == 1
    assert "not those that were saved" in capsys.readouterr().out


def test_nothing_leaves_a_folder_with_something_wrong(
    exported: Path, tmp_path: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported, tmp_path / "broken")
    (tmp_path / "broken" / "golden.npz").unlink()
    assert main(["push", str(tmp_path / "broken"), "me/model"]) == 1
    assert "golden.npz is missing" in capsys.readouterr().err
    assert main(["push", str(tmp_path), "me/model"]) == 1
    assert "is not an exported model or a student" in capsys.readouterr().err
    assert hub.told == []


@pytest.mark.parametrize("layout", ["sentence-transformers", "transformers.js", "open-clip"])
def test_a_layout_is_well_and_arrives_until_a_file_changes(
    layout: str, student: Path, tmp_path: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    model = make_square(lambda kind: Path(shutil.copytree(student, tmp_path / kind)))
    export_layout(model, folder, layout, "scenes:test?n=3")
    assert main(["doctor", str(folder)]) == 0
    assert f"kind: model in the layout {layout} of pictures and captions" in capsys.readouterr().err
    assert main(["push", str(folder), "me/model"]) == 0
    assert hub.repositories == {"main": content(folder)}
    (folder / "tokenizer.json").write_text("{}")
    assert main(["doctor", str(folder)]) == 1
    assert "tokenizer.json is not the file that was exported" in capsys.readouterr().out
    (folder / "tokenizer.json").unlink()
    assert main(["push", str(folder), "me/model"]) == 1
    assert "tokenizer.json is missing" in capsys.readouterr().err


def test_refusals_say_what_to_do(
    student: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        assert main(["push", str(student), *words]) == 1
        return capsys.readouterr().err

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the hub refused me/model" in said("me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with monkeypatch.context() as patch:
        patch.setattr(hub, "refused", '"base_model" must be a model id')
        assert 'README.md: Invalid metadata in README.md. - "base_model" must be a model id' in said("me/model")
    assert "is no name of a repository" in said("not a name")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in said("me/model")
    monkeypatch.setattr("clipdistill.export.push.get_token", lambda: None)
    assert "hf auth login" in said("me/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in said("me/model")
    assert hub.repositories == {}


def test_what_is_public_already_is_not_pushed_as_private(
    student: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "public", True)
    assert main(["push", str(student), "me/model", "--private"]) == 1
    assert "me/model is there already and public" in capsys.readouterr().err
    assert not hub.repositories

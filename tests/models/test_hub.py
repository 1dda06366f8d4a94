"""A URI is a folder first, then a name on the hub; what is not there is said with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipdistill.errors import ModelError
from clipdistill.models import hub
from clipdistill.models.loading import load


@pytest.mark.parametrize("uri", ["file:{}", "{}"])
def test_a_local_folder_by_both_spellings(uri: str, tmp_path: Path) -> None:
    assert hub.model_folder(uri.format(tmp_path)) == tmp_path


def test_a_local_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.model_folder("org/name") == Path("org/name")


@pytest.mark.parametrize("uri", ["/no/such/folder", "file:no/such", "./missing", "nothing", "a/b/c"])
def test_a_missing_folder(uri: str) -> None:
    with pytest.raises(ModelError, match="no model folder at"):
        load(uri)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is a file; expected a model folder"):
        load(str(tmp_path / "model.safetensors"))


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config.json \(found: nothing\)"):
        load(str(tmp_path))


@pytest.mark.parametrize("uri", ["hf:org/no-such-model", "org/no-such-model", "hf:not a name"])
def test_offline_says_what_to_fetch_and_where(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"hf download .* --local-dir FOLDER"):
        load(uri)


def test_safetensors_are_fetched_before_pickled_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.extend(pattern for pattern in allow_patterns if pattern not in asked)
        if "pytorch_model*.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert hub.model_folder("hf:org/name", weights=False) == tmp_path
    assert not any(pattern.endswith(("bin", "safetensors")) for pattern in asked)
    hub.model_folder("hf:org/name")
    assert asked[-2:] == ["*.safetensors", "pytorch_model*.bin"]
    asked.clear()
    (tmp_path / "model.safetensors").touch()
    hub.model_folder("org/name")
    assert asked[-1] == "*.safetensors"

"""Code in a model's folder: it is not run, even by a user who says yes to every question."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from clipdistill.errors import ModelError
from clipdistill.models.loading import load
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from tiny_open_clip import make

CODE = """
from pathlib import Path
from transformers import CLIPImageProcessorPil, CLIPTokenizer, PreTrainedConfig
Path({ran!r}).touch()
class Words(CLIPTokenizer): pass
class Pictures(CLIPImageProcessorPil): pass
class Config(PreTrainedConfig): pass
"""
NOT_RUN = "brings its own code, which is not run"
CONFIG = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the code writes."""
    monkeypatch.setattr("builtins.input", lambda question="": "yes")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "ran"


def ask(folder: Path, ran: Path, file: str, **changes: Any) -> None:
    """Put code into a folder, and let a file there ask for it."""
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(CODE.format(ran=str(ran)))
    path = folder / file
    given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**given, **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        (
            "preprocessor_config.json",
            {"image_processor_type": "Pictures", "auto_map": {"AutoImageProcessor": "own.Pictures"}},
        ),
        ("config.json", {"vision_config": CONFIG}),
    ],
)
def test_of_a_dual_encoder(
    file: str, changes: dict[str, Any], ran: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folders["clip"], tmp_path / "model"))
    ask(folder, ran, file, **changes)
    with pytest.raises(ModelError, match=NOT_RUN):
        load(str(folder))
    assert not ran.exists()


def test_of_captions_alone(ran: Path, tmp_path: Path) -> None:
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    parts = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    ask(tmp_path / "model", ran, "config.json", **CONFIG)
    (tmp_path / "model" / "modules.json").write_text(json.dumps(parts))
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    with pytest.raises(ModelError, match=NOT_RUN):
        load(str(tmp_path / "model"))
    assert not ran.exists()


def test_of_an_image_tower_of_a_student(ran: Path, model_folders: dict[str, Path], tmp_path: Path) -> None:
    ask(tmp_path / "tower", ran, "config.json", **CONFIG)
    tokenizer = hf.AutoTokenizer.from_pretrained(model_folders["clip"])
    with pytest.raises(ModelError, match=NOT_RUN):
        build(StudentSpec(preset="vit-tiny-16", vision=str(tmp_path / "tower")), tokenizer)
    assert not ran.exists()


def test_of_a_text_tower_of_open_clip(ran: Path, model_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "bert", model_folders)
    ask(tmp_path / "model-text", ran, "config.json", **CONFIG)
    with pytest.raises(ModelError, match=NOT_RUN):
        load(str(folder))
    assert not ran.exists()


def test_of_a_tokenizer_that_open_clip_is_told_to_trust(
    ran: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = make(tmp_path / "model", "siglip", model_folders)
    ask(folder, ran, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Words"]})
    about = json.loads((folder / "open_clip_config.json").read_text())
    about["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["trust_remote_code"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(str(folder))
    assert not ran.exists()


def test_classes_that_transformers_has_are_used_instead(
    ran: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folders["clip"], tmp_path / "model"))
    ask(folder, ran, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Words"]})
    assert load(str(folder)).fingerprint == load(str(model_folders["clip"])).fingerprint
    assert not ran.exists()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "checkpoint_path"),
        ({"model_args": {"pretrained": True}}, "pretrained"),
        ({"architecture": "local-dir:evil"}, "the architecture local-dir:evil"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_timm_opens_no_other_file(
    inside: bool, changes: dict[str, Any], found: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Some versions of timm unpickle what they are told to open, which runs what is in it."""
    tower = {"model_type": "timm_wrapper", "architecture": "resnet18", **changes}
    folder = shutil.copytree(model_folders["clip"], tmp_path / "m")
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "vision_config": tower} if inside else tower
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"config.json: {found} makes timm open other files"):
        load(str(folder))

"""A saved student: every tool opens it, its record is complete, and it is written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
)

from clipdistill.errors import ModelError
from clipdistill.models.bundle import save_bundle
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.loading import load
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer

CAPTIONS = ["a red square", "两只狗在海滩上", "A large STAR, left of a circle"]
CARD = {
    "name": "Scenes student",
    "teachers": {"T": "hf:openai/clip-vit-base-patch32", "U": "runs/teacher"},
    "recipe": {"name": "clip-kd", "terms": []},
    "data": {"uri": "scenes:train?n=100", "fingerprint": "abc"},
    "training": {"steps": 350, "batch_size": 128},
    "metrics": {"teacher": {"R@1": 0.8125}, "distilled": {"R@1": np.float32(0.5), "mAP": 0.25}},
    "licence": "apache-2.0",
    "licences": {"hf:openai/clip-vit-base-patch32": "mit"},
    "languages": ["en", "zh"],
    "out": Path("runs/a"),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def student() -> HuggingFaceEncoder:
    return build(StudentSpec(preset="scenes-student"), train_tokenizer(CAPTIONS, 560, 32), seed=1)


@pytest.fixture
def folder(student: HuggingFaceEncoder, tmp_path: Path) -> Path:
    student.save(tmp_path / "student", CARD)
    return tmp_path / "student"


def test_transformers_alone_gives_the_same_embeddings(student: HuggingFaceEncoder, folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 91, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    assert student.transform is not None
    pixels = {"pixel_values": torch.from_numpy(student.transform(picture)["pixel_values"])[None]}
    model = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = AutoTokenizer.from_pretrained(folder)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        for processor in (CLIPImageProcessorPil, AutoImageProcessor):
            inputs = processor.from_pretrained(folder, **_backend(processor))(images=picture, return_tensors="pt")
            torch.testing.assert_close(inputs["pixel_values"], pixels["pixel_values"], atol=1e-6, rtol=0)
            expected = model.get_image_features(**inputs).pooler_output
            torch.testing.assert_close(student.images(pixels), expected, atol=1e-6, rtol=1e-6)
        texts = model.get_text_features(**tokens).pooler_output
        torch.testing.assert_close(student.texts(student.tokenize(CAPTIONS)), texts, atol=1e-6, rtol=1e-6)


def _backend(processor: Any) -> dict[str, str]:
    return {"backend": "pil"} if processor is AutoImageProcessor else {}


def test_the_card_shows_code_that_works(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = text.split("```python")[1].split("```")[0].replace('"."', repr(str(folder)))
    Image.new("RGB", (30, 40), "red").save(folder / "a.jpg")
    printed: list[Any] = []
    exec(code.replace('"a.jpg"', repr(str(folder / "a.jpg"))), {"print": printed.append})
    assert printed[0].shape == (1, 2)
    assert type(AutoModel.from_pretrained(folder)) is CLIPModel
    assert AutoProcessor.from_pretrained(folder).tokenizer("a")["input_ids"]


def test_the_record_holds_the_card_and_what_the_model_is(student: HuggingFaceEncoder, folder: Path) -> None:
    record = json.loads((folder / "clipdistill.json").read_text(encoding="utf-8"))
    assert {key: record[key] for key in ("teachers", "recipe", "data", "licences")} == {
        key: CARD[key] for key in ("teachers", "recipe", "data", "licences")
    }
    assert record["metrics"]["distilled"]["R@1"] == 0.5
    assert record["out"] == "runs/a"
    assert record["fingerprint"] == student.fingerprint == load(str(folder)).fingerprint
    assert student.transform is not None
    assert record["inputs"]["transform"] == student.transform.to_dict()
    assert record["inputs"]["text"] == {"padding": "longest", "length": 32, "lower_case": False}
    assert record["schema"] == 1
    assert {"clipdistill", "torch", "transformers"} <= set(record["packages"])


def test_the_model_card_has_the_header_that_the_hub_reads(folder: Path) -> None:
    _, header, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["library_name"] == "transformers"
    assert fields["pipeline_tag"] == "zero-shot-image-classification"
    assert fields["tags"] == ["clip", "knowledge-distillation"]
    assert fields["license"] == "apache-2.0"
    assert fields["language"] == ["en", "zh"]
    assert fields["base_model"] == ["openai/clip-vit-base-patch32"]
    assert "base_model_relation" not in fields
    for line in (
        "# Scenes student",
        "- recipe: clip-kd",
        "- steps: 350",
        "| R@1 | 0.8125 | 0.5 |",
        "| mAP |  | 0.25 |",
    ):
        assert line in body


def test_a_card_from_a_pretrained_student_names_it(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    student.save(tmp_path / "a", {"pretrained": "hf:org/small", "metrics": {"R@1": 0.5}})
    text = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    fields = yaml.safe_load(text.split("---\n")[1])
    assert (fields["base_model"], fields["base_model_relation"]) == ("org/small", "finetune")
    assert fields["tags"] == ["clip"]
    assert "| R@1 | 0.5 |" in text


def test_a_card_names_no_folder_as_a_model_of_the_hub(
    student: HuggingFaceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "here").mkdir(parents=True)
    teachers = {"T": "hf:org/large", "U": "models/here"}
    for pretrained in ("models/here", str(tmp_path), "runs/a/stage-1/student", "open_clip:ViT-B-32/x", "org/small"):
        student.save(tmp_path / "a", {"pretrained": pretrained, "teachers": teachers})
        text = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
        base = yaml.safe_load(text.split("---\n")[1])["base_model"]
        assert base == ("org/small" if pretrained == "org/small" else ["org/large"])


def test_siglip_cards_pad_to_the_fixed_length(model_folders: dict[str, Path], tmp_path: Path) -> None:
    load(str(model_folders["siglip"])).save(tmp_path / "siglip")
    card = (tmp_path / "siglip" / "README.md").read_text(encoding="utf-8")
    assert 'padding="max_length", max_length=64' in card


def test_a_previous_bundle_is_replaced_whole(student: HuggingFaceEncoder, folder: Path) -> None:
    (folder / "leftover.txt").touch()
    student.save(folder, {"name": "second"})
    assert json.loads((folder / "clipdistill.json").read_text(encoding="utf-8"))["name"] == "second"
    assert not (folder / "leftover.txt").exists()
    assert names(folder.parent) == ["student"]


def test_an_empty_folder_is_filled_and_others_can_read_it(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    (tmp_path / "deep" / "empty").mkdir(parents=True)
    student.save(tmp_path / "deep" / "empty")
    assert (tmp_path / "deep" / "empty" / "model.safetensors").is_file()
    plain = tmp_path / "plain"
    plain.mkdir()
    assert (tmp_path / "deep" / "empty").stat().st_mode == plain.stat().st_mode


def test_foreign_folders_and_files_are_refused(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ModelError, match=r"it holds files and no clipdistill.json"):
        student.save(tmp_path)
    with pytest.raises(ModelError, match="it is a file"):
        student.save(tmp_path / "thesis.txt")
    assert names(tmp_path) == ["thesis.txt"]


class Broken:
    """An encoder whose disk is full half-way."""

    uri, width, fingerprint = "broken", 4, "f"

    def input_rules(self) -> dict[str, Any]:
        return {}

    def write_files(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")


def test_nothing_half_written_stays(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for target in (folder, folder.parent / "new"):
        with pytest.raises(OSError, match="no space left"):
            save_bundle(Broken(), target, {})
    assert names(folder.parent) == ["student"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_previous_bundle_comes_back_if_the_last_rename_fails(
    student: HuggingFaceEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target == folder and self.name != "previous":
            raise OSError("busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="busy"):
        student.save(folder, {"name": "second"})
    assert json.loads((folder / "clipdistill.json").read_text(encoding="utf-8"))["name"] == "Scenes student"
    assert names(folder.parent) == ["student"]


@pytest.mark.parametrize(
    "record", [{"files": {}}, {"inputs": {}, "runtime": {}}, {"inputs": {}, "layout": "immich"}, []]
)
def test_a_folder_of_another_kind_is_left_alone(student: HuggingFaceEncoder, record: Any, tmp_path: Path) -> None:
    """Indexes and exports have records of the same name."""
    (tmp_path / "clipdistill.json").write_text(json.dumps(record))
    (tmp_path / "mine.npy").touch()
    with pytest.raises(ModelError, match=r"will not replace .*no clipdistill\.json of a saved model"):
        student.save(tmp_path)
    assert (tmp_path / "mine.npy").is_file()

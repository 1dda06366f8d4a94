"""Folders of other libraries that hold weights, each opened by the library it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray
from PIL import Image

from clipdistill.cli import main
from clipdistill.errors import ConfigError, ModelError
from clipdistill.export import layouts
from clipdistill.export.layout_rows import Rows, unmended
from clipdistill.export.layouts import LAYOUTS, export_layout
from clipdistill.export.parity import model_images, model_texts
from clipdistill.models.loading import load
from export.layout_models import left_in, make_square
from tiny_open_clip import make

SMALL = "scenes:test?n=3"
CAPTIONS = ["A Red circle", "x", "两只狗在海滩上", "two dogs run along the beach " * 9]


def drawn() -> list[Image.Image]:
    noise = np.random.default_rng(5)
    return [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((40, 60), (33, 32))]


def same(found: Any, expected: NDArray[np.float32]) -> None:
    assert np.abs(np.asarray(found) - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 1e-2  # rows that all look alike would prove nothing


def test_transformers_classifies_with_a_huggingface_folder(make_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, out = make_model("clip"), tmp_path / "out"
    parity = export_layout(model, out, "huggingface", SMALL)
    assert min(parity.image or 0, parity.text or 0) >= 0.99999
    encoder = load(str(model))
    assert isinstance(hf.AutoModel.from_pretrained(out), hf.CLIPModel)
    classify = hf.pipeline("zero-shot-image-classification", str(out), backend="pil")
    found = {one["label"]: one["score"] for one in classify(drawn()[0], CAPTIONS[:3], hypothesis_template="{}")}
    logits = encoder.scale * model_images(encoder, drawn()[:1]) @ model_texts(encoder, CAPTIONS[:3]).T
    wanted = torch.from_numpy(logits[0]).softmax(dim=0).tolist()
    assert [found[caption] for caption in CAPTIONS[:3]] == pytest.approx(wanted, abs=1e-4)
    assert "AutoModel.from_pretrained" in (out / "README.md").read_text()


@pytest.mark.parametrize("kind", ["chinese_clip", "siglip2-square"])
def test_sentence_transformers_encodes_texts_and_pictures(
    kind: str, make_model: Callable[[str], Path], tmp_path: Path
) -> None:
    import sentence_transformers

    model, out = make_model(kind), tmp_path / "out"
    export_layout(model, out, "sentence-transformers", SMALL)
    encoder = load(str(model))
    opened = sentence_transformers.SentenceTransformer(str(out), device="cpu", local_files_only=True)
    same(opened.encode(CAPTIONS), model_texts(encoder, CAPTIONS))
    same(opened.encode(drawn()), model_images(encoder, drawn()))
    assert opened.encode("x").shape == (encoder.width,)
    assert "SentenceTransformer(" in (out / "README.md").read_text()


@torch.no_grad()
def test_open_clip_opens_a_student_of_transformers(make_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, out = make_square(make_model), tmp_path / "out"
    export_layout(model, out, "open-clip", SMALL)
    encoder = load(str(model))
    opened, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    opened.eval()
    pixels = torch.stack([preprocess(picture) for picture in drawn()])
    same(opened.encode_image(pixels, normalize=True), model_images(encoder, drawn()))
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(CAPTIONS)
    same(opened.encode_text(tokens, normalize=True), model_texts(encoder, CAPTIONS))
    assert "open_clip.create_model_and_transforms" in (out / "README.md").read_text()
    assert {path for path in left_in(out) if "/" in path} == set()


def test_captions_that_open_clip_would_mend_are_not_compared() -> None:
    assert unmended(["a cat", "“two” cats", "a &amp; b", " a", "狗，猫"]) == ["a cat"]


def test_a_model_that_a_layout_cannot_hold_is_refused(make_model: Callable[[str], Path], tmp_path: Path) -> None:
    chinese = make_model("chinese_clip")
    with pytest.raises(ModelError, match=r"layout open-clip: it is a chinese_clip.*that can: huggingface, sentence"):
        export_layout(chinese, tmp_path / "out", "open-clip")
    with pytest.raises(ConfigError, match=r"no layout 'opn-clip'. Did you mean 'open-clip'\?"):
        export_layout(chinese, tmp_path / "out", "opn-clip")
    theirs = make(tmp_path / "theirs", "bpe")
    for layout in ("huggingface", "sentence-transformers", "transformers.js"):
        with pytest.raises(ModelError, match=rf"layout {layout}: it is .*Layouts that can: open-clip, immich"):
            export_layout(theirs, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "able"),
    [
        ("clip", {"huggingface", "sentence-transformers", "transformers.js"}),  # resized to 36, cut to 32
        ("siglip2", {"huggingface"}),
        ("vision-text-dual-encoder", {"huggingface", "sentence-transformers", "immich"}),
        ("pictures", {"huggingface"}),
        ("captions", {"huggingface"}),
    ],
)
def test_which_layouts_hold_which_model(kind: str, able: set[str], make_model: Callable[[str], Path]) -> None:
    encoder = load(str(make_model(kind)))
    assert {name for name, layout in LAYOUTS.items() if layout.refuse(encoder) is None} == able


def test_what_differs_is_not_published(
    make_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = make_model("clip"), tmp_path / "out"
    export_layout(model, out, "huggingface", SMALL)
    first = {name: (out / name).read_bytes() for name in left_in(out)}

    def drifting(opened: Any) -> Rows:
        with torch.no_grad():
            for parameter in opened.module.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        return whole(opened)

    whole = layouts.model_rows
    monkeypatch.setattr(layouts, "model_rows", drifting)
    with pytest.raises(ModelError, match=r"layout huggingface does not give the rows.* picture \d+ has cosine 0\.\d+"):
        export_layout(model, out, "huggingface", SMALL)
    assert {name: (out / name).read_bytes() for name in left_in(out)} == first
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}


def test_the_command_keeps_the_record_and_replaces_only_a_layout(
    make_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(str(make_model("clip")))
    run, out = tmp_path / "run", tmp_path / "layouts" / "hf"
    card = {"teachers": {"T": "hf:org/teacher"}, "recipe": "clip-kd", "metrics": {"r1": 0.5}}
    model.save(run / "student", card)
    words = ["export", str(run), "--layout", "huggingface", "--data", SMALL, "--out"]
    assert main([*words, str(out)]) == 0
    assert "text rows: cosine with the model" in capsys.readouterr().err
    assert main([*words, str(out)]) == 0  # an earlier one is replaced
    record = json.loads((out / "clipdistill.json").read_text())
    assert {key: record[key] for key in card} == card
    assert (record["layout"], record["fingerprint"]) == ("huggingface", model.fingerprint)
    weights = (run / "student" / "model.safetensors").read_bytes()
    assert main([*words, str(run / "student")]) == 1
    assert "no exported layout" in capsys.readouterr().err
    assert (run / "student" / "model.safetensors").read_bytes() == weights


def test_a_layout_keeps_the_licence_and_a_link(
    make_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out, link = make_model("clip"), tmp_path / "real", tmp_path / "link"
    (model / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    out.mkdir()
    link.symlink_to(out)
    assert main(["export", str(model), "--layout", "huggingface", "--data", SMALL, "--out", str(link)]) == 0
    assert "cc-by-nc-4.0, research only" in capsys.readouterr().err
    assert "license: cc-by-nc-4.0" in (out / "README.md").read_text()
    assert "exported with clipdistill" in (out / "README.md").read_text()
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} <= {"real", "link", "model"}


def test_a_damaged_record_is_told(
    make_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model("clip")
    for content in ('{"schema": 1, "teach', "[1]"):
        (model / "clipdistill.json").write_text(content)
        for words in (["--layout", "huggingface"], []):
            assert main(["export", str(model), *words, "--data", SMALL, "--out", str(tmp_path / "out")]) == 1
            assert "clipdistill.json is damaged" in capsys.readouterr().err

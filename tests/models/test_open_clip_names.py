"""What opens by the names that open_clip gives its models, and what each name that leads nowhere says."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clipdistill.errors import ModelError
from clipdistill.models import hub
from clipdistill.models.loading import load, look_up
from clipdistill.models.open_clip import OpenClipEncoder
from tiny_open_clip import PLAIN, check_same, make


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("open_clip")
    return {kind: make(root / kind, kind, model_folders) for kind in ("clip", "siglip")}


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> Callable[..., None]:
    """Give open_clip a small architecture, ``tiny``, with published weights."""

    def publish(**tags: dict[str, Any]) -> None:
        plain = {"mean": [0.1] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest", "url": ""}
        known = {tag: {**plain, "hf_hub": f"org/{tag}/", **more} for tag, more in tags.items()}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", PLAIN)
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", known)

    def download(repo_id: str, filename: str, **kwargs: Any) -> str:
        assert repo_id == "org/laion"
        assert filename == "open_clip_model.safetensors"
        return str(folders["clip"] / filename)

    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", download)
    return publish


def test_published_weights_by_tag_with_their_activation_and_preparation(
    published: Callable[..., None], folders: dict[str, Path], pictures: list[Image.Image], captions: list[str]
) -> None:
    published(laion={}, openai={"quick_gelu": True, "hf_hub": "org/laion/"})
    assert look_up("open_clip:tiny/laion") is None
    encoder = load("open_clip:tiny/laion")
    module, preprocess = open_clip.create_model_from_pretrained("tiny", "laion")
    pixels = preprocess(pictures[0])[None]
    assert encoder.transform is not None
    np.testing.assert_array_equal(encoder.transform(pictures[0])["pixel_values"], pixels[0].numpy())
    assert encoder.transform.mean == (0.1, 0.1, 0.1)
    quick = load("open_clip:tiny/openai")
    right = open_clip.create_model("tiny", "openai", force_quick_gelu=True).eval()
    with torch.no_grad():
        assert torch.equal(encoder.images({"pixel_values": pixels}), module.eval().encode_image(pixels))
        assert torch.equal(quick.images({"pixel_values": pixels}), right.encode_image(pixels))
    assert isinstance(quick, OpenClipEncoder)
    assert quick.config["quick_gelu"] is True
    assert quick.fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    ("tags", "mean"),
    [
        ({}, open_clip.OPENAI_DATASET_MEAN),
        ({"a": {}, "b": {}}, (0.1,) * 3),
        ({"a": {}, "b": {"mean": [0.5] * 3}}, open_clip.OPENAI_DATASET_MEAN),
    ],
    ids=["no tags", "tags agree", "tags differ"],
)
def test_a_local_checkpoint_is_fed_as_the_published_ones_where_they_agree(
    tags: dict[str, Any], mean: Any, published: Callable[..., None], folders: dict[str, Path], tmp_path: Path
) -> None:
    published(**tags)
    weights = load_file(folders["clip"] / "open_clip_model.safetensors")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "e.pt"
    )
    encoder = load(f"open_clip:tiny/{tmp_path}/e.pt")
    assert encoder.transform is not None
    assert encoder.transform.mean == pytest.approx(mean)
    saved = load(str(folders["clip"])).module.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in encoder.module.state_dict().items())


def test_a_repository_on_the_hub(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Any, captions: Any
) -> None:
    cache, asked = tmp_path / "cache", []

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert name == "org/model"
        assert "open_clip_model.safetensors" not in ignore_patterns
        asked.extend(pattern for pattern in allow_patterns if pattern not in asked)
        cache.mkdir(exist_ok=True)
        for path in folders["clip"].iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", lambda filename, **_: str(cache / filename))
    assert look_up("hf-hub:org/model") is None
    assert [path.name for path in cache.iterdir()] == ["open_clip_config.json"]
    check_same(load("hf-hub:org/model"), f"local-dir:{folders['clip']}", pictures, captions)
    assert "open_clip_pytorch_model.bin" not in asked
    assert isinstance(load("hf:org/model"), OpenClipEncoder)


# --- what cannot be opened ---


def edit(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a model with another configuration."""
    shutil.copytree(folder, target)
    path = target / "open_clip_config.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    return target


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no model_cfg": (lambda about: about.pop("model_cfg"), "not a configuration of open_clip with a model_cfg"),
    "half a model_cfg": (
        lambda about: about["model_cfg"].pop("text_cfg"),
        "expected embed_dim, vision_cfg and text_cfg",
    ),
    "CoCa": (lambda about: about["model_cfg"].update(multimodal_cfg={}), "is a CoCa, which also writes captions"),
    "unknown setting": (
        lambda about: about["model_cfg"].update(naflex=True),
        r"open_clip \S+ cannot open it \(TypeError",
    ),
    "other sizes": (lambda about: about["model_cfg"]["vision_cfg"].update(width=48), "size mismatch"),
    "small vocabulary": (
        lambda about: about["model_cfg"]["text_cfg"].update(hf_tokenizer_name="nowhere/on-the-hub"),
        "holds no tokenizer",
    ),
    "words at random": (
        lambda about: about["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"reduction_mask": "random"}),
        "leaves out words at random",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_configuration_that_does_not_fit(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    change, message = CHANGES[name]
    with pytest.raises(ModelError, match=message):
        load(str(edit(folders["clip"], tmp_path / "model", change)))


def test_a_tokenizer_of_more_words_than_the_tower_reads(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = edit(
        folders["siglip"], tmp_path / "model", lambda about: about["model_cfg"]["text_cfg"].pop("hf_tokenizer_name")
    )
    with pytest.raises(ModelError, match=r"its tokenizer gives id 49407, the text tower reads 64 ids"):
        load(str(folder))


def test_no_weights_damaged_weights_and_code_in_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["clip"], folder)
    (folder / "open_clip_model.safetensors").rename(tmp_path / "whole")
    with pytest.raises(ModelError, match=r"holds no weights \(found: open_clip_config.json\)"):
        load(str(folder))
    (folder / "open_clip_model.safetensors").write_bytes((tmp_path / "whole").read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot open it"):
        load(str(folder))
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"weights": Path("/")}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read as tensors alone"):
        load(str(folder))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("open_clip:tinny/laion", "no architecture 'tinny'. Did you mean 'tiny'?"),
        ("open_clip:tiny", "names no weights.* tags: laion"),
        ("open_clip:tiny/", "names no weights.* tags: laion"),
        ("open_clip:tiny/lion", "neither a tag .* nor a file .* Did you mean 'laion'?"),
        ("open_clip:tiny/laion", "hf download org/laion --include .* name the model local-dir:FOLDER"),
        ("open_clip:tiny/file", "hf download org/file weights.bin .* name the model open_clip:tiny/FOLDER/weights.bin"),
        ("hf-hub:org/model", "hf download org/model --local-dir FOLDER"),
        ("local-dir:no/such", "no model folder at no/such"),
        ("local-dir:{clip}", "no open_clip_config.json"),
    ],
)
def test_names_that_lead_nowhere(
    uri: str,
    message: str,
    published: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    model_folders: dict[str, Path],
) -> None:
    def offline(**arguments: Any) -> str:
        raise OSError("no network")

    published(laion={}, file={"hf_hub": "org/file/weights.bin"})
    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=message):
        load(uri.format(**model_folders))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModelError, match=r"pip install 'clipdistill\[open-clip\]'"):
        load(str(folders["clip"]))

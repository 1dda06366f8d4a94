"""What licence a model has, and what a student inherits of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from clipdistill.models.bundle import model_card
from clipdistill.models.licences import (
    FREE,
    RESEARCH,
    TERMS,
    UNKNOWN,
    Link,
    as_card,
    chain,
    inherited,
    licence_of,
    of_record,
    use_of,
    warnings,
)


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("header", "licence", "use", "address"),
    [
        ("license: mit", "mit", FREE, ""),
        ("license: [Apache-2.0]", "apache-2.0", FREE, ""),
        ("license: apple-amlr", "apple-amlr", RESEARCH, ""),
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0", RESEARCH, ""),
        ("license: other\nlicense_name: dinov3-license\nlicense_link: L.md", "dinov3-license", TERMS, "L.md"),
        ("license: other", "other", UNKNOWN, ""),
        ("license: other\nlicense_name: fair-noncommercial-research-license", "fair-*", RESEARCH, ""),
        ("license: [mit, cc-by-nc-4.0]", "cc-by-nc-4.0", RESEARCH, ""),
        ("license: [apache-2.0, gpl-3.0]", "gpl-3.0", TERMS, ""),
        ("license: [mit, other]\nlicense_name: mine-for-research", "mine-for-research", RESEARCH, ""),
    ],
)
def test_the_card_says(tmp_path: Path, header: str, licence: str, use: str, address: str) -> None:
    folder = write(tmp_path / "m", README_md=f"---\n{header}\ntags: [clip]\n---\n\n# A model\n")
    link = licence_of(str(folder), "teacher T")
    assert (link.role, link.model, link.source) == ("teacher T", str(folder), "README.md")
    assert link.licence.startswith(licence.rstrip("*"))
    assert (link.use, link.address) == (use, address)


@pytest.mark.parametrize(
    "card", ["no header\n", "---\n: [broken\n---\n", "---\ntags: [clip]\n---\n", "---\n- a\n---\n"]
)
def test_a_card_that_says_nothing_is_unknown(tmp_path: Path, card: str) -> None:
    link = licence_of(str(write(tmp_path / "openai" / "clip-vit-base-patch32", README_md=card)))
    assert (link.licence, link.use) == (UNKNOWN, UNKNOWN)  # what a folder is called on this disk proves nothing


@pytest.mark.parametrize(
    ("words", "licence", "use"),
    [
        ("MIT License\n\nCopyright (c) 2021\n\nPermission is hereby granted, free of charge, to any", "mit", FREE),
        ("   Apache License\n  Version 2.0, January 2004", "apache-2.0", FREE),
        ("This model may be used for scientific   research only.", "other", RESEARCH),
        ("Ask us.", "other", UNKNOWN),
    ],
)
def test_a_licence_file_says(tmp_path: Path, words: str, licence: str, use: str) -> None:
    folder = write(tmp_path / "m")
    (folder / "LICENSE.txt").write_text(words)
    assert (licence_of(str(folder)).licence, licence_of(str(folder)).use) == (licence, use)


@pytest.mark.parametrize(
    ("uri", "licence", "use"),
    [
        ("hf:openai/clip-vit-base-patch32", "mit", FREE),
        ("open_clip:ViT-B-32/openai", "mit", FREE),
        ("open_clip:ViT-L-14/laion400m_e32", "mit", FREE),
        ("open_clip:MobileCLIP-S1/datacompdr", "apple-amlr", RESEARCH),
        ("open_clip:ViT-B-32-quickgelu/metaclip_400m", "cc-by-nc-4.0", RESEARCH),
        ("hf:facebook/dinov3-vits16", "dinov3-license", TERMS),
        ("hf:google/siglip2-base-patch16-224", "apache-2.0", FREE),
        ("hf:wkcn/TinyCLIP-ViT-8M-16-Text-3M-YFCC15M", "mit", FREE),
        ("ms:damo/multi-modal_clip-vit-base-patch16_zh", "mit", FREE),
        ("hf:someone/clip", UNKNOWN, UNKNOWN),
    ],
)
def test_what_is_not_here_is_known_by_name(
    uri: str, licence: str, use: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("clipdistill.models.hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    assert (licence_of(uri).licence, licence_of(uri).use) == (licence, use)


@pytest.mark.parametrize("scheme", ["", "file:", "local-dir:"])
def test_a_path_proves_nothing_but_a_checkpoint_has_its_name(scheme: str, tmp_path: Path) -> None:
    assert licence_of(f"{scheme}{write(tmp_path / 'tinyclip-mine')}").use == UNKNOWN
    (tmp_path / "tinyclip" / "own").mkdir(parents=True)
    (tmp_path / "tinyclip" / "own" / "mine.bin").touch()
    for weights in ("laion-mine.pt", "datacomp/w.safetensors", str(tmp_path / "tinyclip" / "own" / "mine.bin")):
        assert licence_of(f"open_clip:ViT-B-32/{weights}").use == UNKNOWN
    checkpoint = write(tmp_path / "c") / "clip_cn_vit-b-16.pt"
    checkpoint.touch()
    assert scheme == "local-dir:" or licence_of(f"{scheme}{checkpoint}").licence == "mit"


def test_a_folder_knows_the_name_it_was_fetched_under(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", config_json='{"_name_or_path": "openai/clip-vit-base-patch32"}')
    assert licence_of(str(folder)).licence == "mit"


def test_a_students_student_inherits_through_the_chain(tmp_path: Path) -> None:
    apple = write(tmp_path / "apple", README_md="---\nlicense: apple-amlr\n---\n")
    free = write(tmp_path / "free", README_md="---\nlicense: mit\n---\n")
    first = as_card(chain([("teacher T", str(apple)), ("teacher U", str(free))]))
    assert first["licence"] == "apple-amlr"
    student = write(tmp_path / "student", clipdistill_json=json.dumps(first))
    links = chain([("teacher T", str(student))])
    assert [link.role for link in links] == ["teacher T", "teacher T < teacher T", "teacher T < teacher U"]
    assert [link.model for link in links] == [str(student), str(apple), str(free)]
    assert links[0].source == "clipdistill.json"
    assert as_card(links)["licence"] == "apple-amlr"
    assert of_record(json.loads(json.dumps(as_card(links)))) == links


def link(licence: str, use: str | None = None) -> Link:
    return Link("teacher T", "m", licence, use or use_of(licence), "README.md")


def test_the_strictest_binds_and_an_unknown_one_leaves_it_open() -> None:
    def found(*names: str) -> str | None:
        binding = inherited([link(name) for name in names])
        return binding.licence if binding else None

    assert found("mit", "dinov3-license") == "dinov3-license"
    assert found("dinov3-license", "cc-by-nc-4.0", "mit") == "cc-by-nc-4.0"
    assert found("mit", UNKNOWN) is None
    assert found(UNKNOWN, "apple-amlr") == "apple-amlr"  # nothing unknown can make that freer
    assert found() is None


def test_each_restriction_is_told() -> None:
    told = warnings([link("mit"), link("apple-amlr"), link(UNKNOWN), link("gemma")])
    assert len(told) == 3
    assert "for research only" in told[0]
    assert "unknown" in told[1]
    assert "Its terms bind the student too" in told[2]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("apple-amlr", {"license": "apple-amlr"}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license", "license_link": "L.md"}),
        (None, {}),
    ],
)
def test_the_students_card_says_it(name: str | None, header: dict[str, str]) -> None:
    chained = Link("teacher T", "hf:a/b", name or UNKNOWN, use_of(name or ""), "README.md", "L.md")
    record = {"width": 8, "inputs": {"text": {}, "transform": {}}, "library": "onnx", **as_card([chained])}
    text = model_card(record)
    told = yaml.safe_load(text.split("---\n")[1])
    assert {key: told[key] for key in told if key.startswith("license")} == header
    assert f"- teacher T `hf:a/b`: {name or UNKNOWN}" in text
    assert ("**For research only**" in text) == (name == "apple-amlr")

"""Chinese-CLIP's feature files: ids and captions of a split, and every damaged line by its number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_rows import close, naive_unit, random_rows, stored

from clipdistill.cli import main
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, StoreError
from clipdistill.teachers.foreign import features, import_store
from clipdistill.teachers.store import EmbeddingStore
from tiny_runs import write_chinese_clip

SAMPLES = 6


def write_features(split: Path, width: int = 8) -> None:
    """Write what extract_features writes for a split: ``json.dumps`` of an id and the row's numbers per line."""
    lines = split.with_name(f"{split.name}_texts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = random_rows(len(lines), width, seed=1)
    texts = [
        json.dumps({"text_id": json.loads(line)["text_id"], "feature": row.tolist()})
        for line, row in zip(lines, rows, strict=True)
    ]
    split.with_name(f"{split.name}_texts.txt_feat.jsonl").write_text("".join(f"{line}\n" for line in texts))
    images = [
        json.dumps({"image_id": number, "feature": row.tolist()})
        for number, row in enumerate(random_rows(SAMPLES, width, seed=2))
    ]
    split.with_name(f"{split.name}_imgs.img_feat.jsonl").write_text("".join(f"{line}\n" for line in images))


@pytest.fixture
def split(tmp_path: Path) -> Path:
    path = write_chinese_clip(tmp_path / "photos" / "train", f"scenes:train?n={SAMPLES}&lang=zh")
    write_features(path)
    return path


def check_rows_of(store: EmbeddingStore, split: Path) -> None:
    images = stored(store, "I")
    assert list(images) == [str(number) for number in range(SAMPLES)]
    assert all(close(images[str(n)], naive_unit(row)) for n, row in enumerate(random_rows(SAMPLES, seed=2)))
    words = stored(store, "T")
    source = pairs(split)
    said = [caption for at in range(len(source)) for caption in source[at].captions]
    assert set(words) == set(said)
    assert not store.missing("T", said)
    rows = random_rows(len(said), seed=1)
    assert all(close(words[caption], naive_unit(rows[said.index(caption)])) for caption in said)


@pytest.mark.parametrize("named", ["folder", "split"])
def test_a_split_has_pictures_by_id_and_texts_by_caption(
    split: Path, tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "LINES", 4)
    path = split.parent if named == "folder" else split
    assert main(["store", "import", str(path), "--out", str(tmp_path / "store")]) == 0
    check_rows_of(EmbeddingStore.open(tmp_path / "store"), split)


def test_the_texts_may_be_elsewhere(split: Path, tmp_path: Path) -> None:
    for path in split.parent.glob("*_feat.jsonl"):
        (tmp_path / "features").mkdir(exist_ok=True)
        path.rename(tmp_path / "features" / path.name)
    with pytest.raises(StoreError, match=r"numbers its texts, and .*train_texts\.jsonl, .* not there.*--data SPLIT"):
        import_store(tmp_path / "features", tmp_path / "store")
    alone = import_store(tmp_path / "features" / "train_imgs.img_feat.jsonl", tmp_path / "alone")
    assert (alone.sides, len(alone)) == ("I", SAMPLES)
    store = import_store(tmp_path / "features", tmp_path / "store", data=split)
    check_rows_of(store, split)
    assert store.manifest.source.samples == SAMPLES


def test_several_splits_must_be_told_apart(split: Path, tmp_path: Path) -> None:
    write_chinese_clip(split.with_name("valid"), f"scenes:train?n={SAMPLES}&lang=zh")
    write_features(split.with_name("valid"))
    with pytest.raises(StoreError, match=r"several feature files .*train_imgs.*valid_imgs"):
        import_store(split.parent, tmp_path / "store")
    assert len(import_store(split.with_name("valid"), tmp_path / "store")) == SAMPLES
    with pytest.raises(ConfigError, match="no columns to choose ids from: leave --id key out"):
        import_store(split, tmp_path / "other", id_column="key")


def change(number: int, **values: Any) -> Callable[[list[str]], None]:
    def changing(lines: list[str]) -> None:
        lines[number] = json.dumps({**json.loads(lines[number]), **values})

    return changing


def cut(lines: list[str]) -> None:
    lines[-1] = lines[-1][:30]


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("imgs.img", cut, r"train_imgs\.img_feat\.jsonl:6: not JSON in UTF-8"),
        ("imgs.img", change(2, feature=[0.5] * 7), r"feat\.jsonl:3: the feature has 7 numbers, others 8"),
        ("imgs.img", change(2, feature=[0.0] * 8), r"feat\.jsonl, line 3: the row of '2' is zero"),
        ("imgs.img", change(2, feature=[np.nan] * 8), r"feat\.jsonl, line 3: the row of '2' is not finite"),
        ("imgs.img", change(2, feature=["0.5"] * 8), r'feat\.jsonl:3: found .*expected {"image_id": 1, "feature"'),
        ("imgs.img", change(2, image_id=0), r"feat\.jsonl, line 3: the id '0' is there before, at .*line 1"),
        ("imgs.img", change(2, image_id=1.5), r"feat\.jsonl, line 3: the id is 1\.5, expected a string"),
        ("texts.txt", change(1, text_id=99), r"txt_feat\.jsonl:2: the split's texts have no text_id 99"),
    ],
)
def test_damage_is_named_by_line(
    split: Path, tmp_path: Path, kind: str, damage: Callable[[list[str]], None], message: str
) -> None:
    path = split.with_name(f"train_{kind}_feat.jsonl")
    lines = path.read_text().splitlines()
    damage(lines)
    path.write_text("\n".join(lines))
    with pytest.raises(StoreError, match=message):
        import_store(split, tmp_path / "store")
    assert not (tmp_path / "store").exists()

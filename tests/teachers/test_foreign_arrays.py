"""Plain arrays with ids, in every kind of file, and ids wherever they may be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from foreign_rows import close, naive_unit, random_rows, stored, unit_rows
from safetensors.torch import save_file

from clipdistill.data.samples import Sample
from clipdistill.data.sources import from_samples
from clipdistill.errors import StoreError
from clipdistill.teachers.foreign import arrays, import_store
from clipdistill.teachers.foreign.known import Known

IDS = ["a/1.jpg", "2", "三"]
ROWS = random_rows(3)


def write_npy(folder: Path) -> Path:
    np.save(folder / "clip.npy", ROWS)
    return folder / "clip.npy"


def write_npz(folder: Path) -> Path:
    np.savez(folder / "clip.npz", ids=np.array(IDS), embeddings=ROWS)
    return folder / "clip.npz"


def write_safetensors(folder: Path) -> Path:
    save_file({"embeddings": torch.tensor(ROWS)}, folder / "clip.safetensors")
    return folder / "clip.safetensors"


def write_parquet(folder: Path, kind: Any = None) -> Path:
    rows = pa.array(ROWS.tolist(), kind or pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": IDS, "emb": rows}), folder / "clip.parquet", row_group_size=2)
    return folder / "clip.parquet"


def write_fixed(folder: Path) -> Path:
    return write_parquet(folder, pa.list_(pa.float64(), 8))


def write_ids(path: Path) -> None:
    if path.suffix == ".txt":
        path.write_text("\n".join(IDS) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(IDS))
    else:
        np.save(path, np.array(IDS))


@pytest.mark.parametrize("write", [write_npy, write_npz, write_safetensors, write_parquet, write_fixed])
def test_every_kind_of_file(tmp_path: Path, write: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "ROWS", 2)
    (tmp_path / "from").mkdir()
    write_ids(tmp_path / "from" / "ids.txt")
    store = import_store(write(tmp_path / "from"), tmp_path / "store")
    found = stored(store, "I")
    assert list(found) == IDS
    assert all(close(found[name], naive_unit(row)) for name, row in zip(IDS, ROWS, strict=True))
    assert (store.sides, store.views) == ("I", None)


@pytest.mark.parametrize("name", ["ids.txt", "ids.json", "ids.npy", "clip.ids.txt", "clip_ids.json", "image_ids.npy"])
def test_ids_beside_an_array(tmp_path: Path, name: str) -> None:
    write_ids(tmp_path / name)
    store = import_store(write_npy(tmp_path), tmp_path / "store")
    assert list(store.keys("I")) == IDS


def test_ids_of_a_file_with_the_line_ends_of_windows(tmp_path: Path) -> None:
    path = write_npy(tmp_path)
    write_ids(tmp_path / "ids.txt")
    expected = list(import_store(path, tmp_path / "one").keys("I"))
    (tmp_path / "ids.txt").write_bytes((tmp_path / "ids.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert list(import_store(path, tmp_path / "other").keys("I")) == expected


def test_pairs_of_sides(tmp_path: Path) -> None:
    image, text = unit_rows(3), unit_rows(3, seed=1)
    np.savez(tmp_path / "a.npz", ids=np.arange(3), image=image, text=text)
    np.savez(tmp_path / "b.npz", image_ids=np.arange(3), text_ids=np.arange(2, -1, -1), image=image, text=text[::-1])
    tensors = {"image": torch.tensor(image), "text": torch.tensor(text), "ids": torch.arange(3)}
    save_file(tensors, tmp_path / "c.safetensors")
    columns = {"uid": ["0", "1", "2"], "image_emb": image.tolist(), "text_emb": text.tolist()}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    for path in [*tmp_path.glob("?.*")]:
        store = import_store(path, tmp_path / "store" / path.stem)
        assert store.manifest.sides["text"].by == "id"
        assert np.array_equal(store.rows("I", ["2", "0"]), image[[2, 0]])
        assert np.array_equal(store.rows("T", ["2", "0"]), text[[2, 0]])


def test_text_rows_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", unit_rows(3))
    write_ids(tmp_path / "text.ids.txt")
    assert import_store(tmp_path / "text.npy", tmp_path / "store").sides == "T"


def test_bfloat16_tensors(tmp_path: Path) -> None:
    save_file({"embeddings": torch.tensor(ROWS).bfloat16(), "ids": torch.arange(3)}, tmp_path / "a.safetensors")
    rounded = torch.tensor(ROWS).bfloat16().float().numpy()
    assert close(
        import_store(tmp_path / "a.safetensors", tmp_path / "store").rows("I", ["1"])[0], naive_unit(rounded[1])
    )


def save(file: str, /, **values: Any) -> Callable[[Path], Path]:
    def saving(folder: Path) -> Path:
        if file.endswith(".npz"):
            np.savez(folder / file, **values)
        elif file.endswith(".parquet"):
            pq.write_table(pa.table(values), folder / file)
        else:
            save_file(values, folder / file)
        return folder / file

    return saving


def text_file(folder: Path) -> Path:
    (folder / "clip.npy").write_text("not an array")
    return folder / "clip.npy"


def few_ids(folder: Path) -> Path:
    (folder / "ids.txt").write_text("a\nb\n")
    return write_npy(folder)


def empty_id(folder: Path) -> Path:
    (folder / "ids.txt").write_text("a\n\nc\n")
    return write_npy(folder)


OBJECTS = np.array(["a", "b", None], object)
RAGGED = [[1.0, 2.0], [1.0], [0.5, 1.0]]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_npy, r"nothing says whose rows these are.*clip\.ids\.txt"),
        (text_file, r"clip\.npy cannot be read as an array"),
        (few_ids, r"ids\.txt has 2 ids, 'clip' in .*clip\.npy has 3 rows"),
        (empty_id, r"ids\.txt, entry 1: the id is '', expected a string or a whole number"),
        (save("a.npz", ids=OBJECTS, embeddings=ROWS), r"a\.npz cannot be read .*np\.asarray\(ids, str\)"),
        (
            save("a.npz", ids=np.array(["a", "b", "a"]), embeddings=ROWS),
            r"row 2: the id 'a' is there before, at .*row 0",
        ),
        (save("a.npz", ids=np.arange(3), one=ROWS, two=ROWS), "'one' and 'two' could both be image embeddings"),
        (save("a.npz", ids=np.arange(3)), "there are no embeddings"),
        (save("a.npz", ids=np.arange(3), embeddings=np.ones((3, 4), int)), r"'embeddings' is int64 \[3, 4\], expected"),
        (
            save("a.npz", ids=np.arange(3), embeddings=ROWS * [[1], [0], [1]]),
            "embeddings, row 1: the row of '1' is zero",
        ),
        (save("a.parquet", id=["a", "b", "c"], emb=RAGGED), r"column 'emb', row 1: found 1 numbers, expected 2"),
        (save("a.parquet", id=["a", "b", None], emb=[[1.0]] * 3), r"column 'id', row 2: the id is None"),
        (save("a.parquet", id=["a", "b"], emb=[[1.0, 2.0], [None, 1.0]]), "1 numbers are missing between rows 0 and 1"),
        (save("a.parquet", name=["a"], emb=[[1.0]]), r"no column of ids, .*Choose one with --id COLUMN"),
        (save("a.safetensors", embeddings=torch.ones(3)), r"'embeddings' is \[3\], expected floating-point"),
    ],
)
def test_damage_is_named(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    path = write(tmp_path)
    with pytest.raises(StoreError, match=message):
        import_store(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_parquet_column_is_chosen(tmp_path: Path) -> None:
    path = save("a.parquet", name=["a", "b"], id=[7, 7], emb=unit_rows(2).tolist())(tmp_path)
    assert list(import_store(path, tmp_path / "store", id_column="name").keys("I")) == ["a", "b"]
    with pytest.raises(StoreError, match=r"no column 'nam'. Did you mean 'name'\?"):
        import_store(path, tmp_path / "other", id_column="nam")


def known(*ids: str) -> Known:
    return Known(from_samples([Sample(name, None) for name in ids], "made"))


def test_names_of_pictures_are_recognised() -> None:
    find = known("dogs/1.jpg", "dogs/2.jpg", "cats/2.jpg", "0003/00037.png").find
    assert find("dogs/1.jpg") == find("/data/photos/dogs/1.jpg") == find("dogs/1") == find("1") == "dogs/1.jpg"
    assert find("00037") == "0003/00037.png"
    assert find("2") is None
    assert find("birds/1.jpg") is None
    assert find("/other/photos/dogs/1.jpg") is None
    assert find("/data/photos/cats/2.webp") == "cats/2.jpg"

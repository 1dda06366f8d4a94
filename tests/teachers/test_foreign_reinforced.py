"""MobileCLIP's reinforced shards: rows, captions and crops as recorded; what cannot be replayed is said."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_rows import close, naive_unit, random_rows, unit_rows
from PIL import Image

from clipdistill.cli import main
from clipdistill.data.views import View
from clipdistill.errors import StoreError
from clipdistill.teachers.check_store import check_store
from clipdistill.teachers.foreign import import_store
from clipdistill.teachers.store import EmbeddingStore

WIDTH, AUGMENTATIONS = 8, 3
SIZE = (40, 20)
#: Crops alone, with a flip, and with a RandAugment that did nothing: top, left, height, width.
CROPS = [[[2, 10, 10, 20], False, None], [[0, 0, 20, 40], True, None], [[5, 30, 8, 10], True, [[0, 0.0], [0, 0.0]]]]
#: As DataCompDR records them.
RAND_AUGMENT = [[[14, 3, 5, 7], [[0, 0.0], [6, 0.27]]], [[1, 1, 9, 8], [[13, 0.0], [1, -0.09]]], [[0, 0, 4, 4], None]]


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def pth_gz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    torch.save({name: torch.tensor(rows, dtype=torch.bfloat16) for name, rows in arrays.items()}, stream)
    return gzip.compress(stream.getvalue())


def jpeg(size: tuple[int, int] = SIZE, orientation: int = 1) -> bytes:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (200, 30, 30)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def sample(number: int, crops: Any = CROPS, **changes: bytes | None) -> dict[str, bytes]:
    """The files of one sample with a real and two synthetic captions; ``changes`` add files or take them out."""
    rows = npz(image_emb=images(number), text_emb=texts(number))
    files: dict[str, bytes | None] = {
        "url.txt": b"http://example.org/a.jpg",
        "txt": f"real {number}".encode(),
        "syn.json": json.dumps({"syn_text": [f"syn {number} a", f"syn {number} b"]}).encode(),
        "paug.json": json.dumps({"param_aug": json.dumps(crops)}).encode(),
        "npz": rows,
        "json": json.dumps({"uid": f"uid{number}", "sha256": f"sha{number}"}).encode(),
        "jpg": jpeg(),
        **{name.replace("_", "."): data for name, data in changes.items()},
    }
    return {name: data for name, data in files.items() if data is not None}


def images(number: int) -> Any:
    return random_rows(AUGMENTATIONS, WIDTH, seed=number)


def texts(number: int) -> Any:
    return random_rows(3, WIDTH, seed=100 + number)


def write_shard_file(path: Path, samples: list[dict[str, bytes]], first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, files in enumerate(samples, first):
            for kind, data in files.items():
                info = tarfile.TarInfo(f"{number:08d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    write_shard_file(folder / "00000000.tar", [sample(0), sample(1)])
    write_shard_file(folder / "00000001.tar", [sample(2)], first=2)
    return folder


def test_every_augmentation_and_caption_has_its_row(shards: Path, tmp_path: Path) -> None:
    store = import_store(shards, tmp_path / "store", scale=70.0)
    assert list(store.keys("I")) == ["uid0", "uid1", "uid2"]
    assert list(store.keys("T")) == [f"{kind}" for n in range(3) for kind in (f"real {n}", f"syn {n} a", f"syn {n} b")]
    for number in range(3):
        for view in range(AUGMENTATIONS):
            assert close(store.rows("I", [f"uid{number}"], view)[0], naive_unit(images(number)[view]))
        for caption, row in zip((f"real {number}", f"syn {number} a", f"syn {number} b"), texts(number), strict=True):
            assert close(store.rows("T", [caption])[0], naive_unit(row))
    assert check_store(tmp_path / "store").findings == []


def test_captions_are_stripped_where_the_data_strip_them(tmp_path: Path) -> None:
    told = json.dumps({"syn_text": [" syn a", "syn b "]}).encode()
    path = write_shard_file(tmp_path / "a.tar", [sample(0, txt=b" real 0 \n", syn_json=told)])
    assert list(import_store(path, tmp_path / "store").keys("T")) == ["real 0", " syn a", "syn b "]


def test_crops_and_flips_are_explicit_views(shards: Path, tmp_path: Path) -> None:
    store = import_store(shards, tmp_path / "store")
    assert (store.manifest.views.count, store.manifest.views.explicit) == (3, True)
    assert store.views is not None
    seen = [store.views.view("uid2", epoch, SIZE) for epoch in range(3)]
    assert seen == [
        View((10 / 40, 2 / 20, 30 / 40, 12 / 20), False),
        View((0.0, 0.0, 1.0, 1.0), True),
        View((30 / 40, 5 / 20, 1.0, 13 / 20), True),
    ]


def test_a_crop_shows_the_pixels_that_were_recorded(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    write_shard_file(tmp_path / "a.tar", [sample(0, jpg=None, png=stream.getvalue())])
    store = import_store(tmp_path / "a.tar", tmp_path / "store")
    assert store.views is not None
    box = store.views.view("uid0", 0, SIZE).box  # type: ignore[union-attr]
    left, top, right, bottom = box[0] * 40, box[1] * 20, box[2] * 40, box[3] * 20
    same = Image.fromarray(pixels).resize((20, 10), Image.Resampling.NEAREST, box=(left, top, right, bottom))
    assert np.array_equal(np.asarray(same), pixels[2:12, 10:30])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"crops": RAND_AUGMENT}, "RandAugment did Brightness, in .*sample 00000001"),
        ({"crops": [[[1, 1, 4, 4], [3, 2, 5, 5]]] * 3}, "2 crops are recorded"),
        ({"crops": [[224, [1, 1, 4, 4]]] * 3}, "an operation with the parameters 224"),
        ({"paug_json": None}, "they are not recorded"),
        ({"jpg": None}, "pictures whose size the shards do not tell"),
    ],
)
def test_what_cannot_be_replayed_is_said_and_marked(
    tmp_path: Path, changes: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard_file(tmp_path / "a.tar", [sample(0), sample(1, **changes)])
    store = import_store(tmp_path / "a.tar", tmp_path / "store")
    said = capsys.readouterr().err
    assert "a run must write STORE?views=any" in said
    assert re.search(reason, said)
    assert (store.manifest.views.count, store.manifest.views.known) == (3, False)
    assert close(store.rows("I", ["uid1"], 2)[0], naive_unit(images(1)[2]))
    with pytest.raises(StoreError, match=r"views=any"):
        store.views  # noqa: B018


def test_sizes_may_come_from_the_metadata(tmp_path: Path) -> None:
    about = json.dumps({"uid": "x", "width": 40, "height": 20}).encode()
    write_shard_file(tmp_path / "a.tar", [sample(0, jpg=None, json=about)])
    store = import_store(tmp_path / "a.tar", tmp_path / "store")
    assert store.views is not None
    assert store.views.view("x", 0, SIZE) == View((0.25, 0.1, 0.75, 0.6), False)


def test_pictures_that_a_viewer_turns_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard_file(tmp_path / "a.tar", [sample(0), sample(1, jpg=jpeg(orientation=6))])
    store = import_store(tmp_path / "a.tar", tmp_path / "store")
    assert list(store.keys("I")) == ["uid0"]
    assert "1 pictures that their EXIF tag turns" in capsys.readouterr().err


def test_bfloat16_tensors_are_read_as_tensors_alone(tmp_path: Path) -> None:
    tensors = pth_gz(image_emb=images(0), text_emb=texts(0))
    write_shard_file(tmp_path / "a.tar", [sample(0, npz=None, pth_gz=tensors)])
    store = import_store(tmp_path / "a.tar", tmp_path / "store")
    rounded = torch.tensor(images(0)).bfloat16().float().numpy()
    assert close(store.rows("I", ["uid0"], 1)[0], naive_unit(rounded[1]))
    stream = io.BytesIO()
    torch.save({"image_emb": images(0)}, stream)  # a numpy array, which only unpickling would bring back
    write_shard_file(tmp_path / "b.tar", [sample(0, npz=None, pth_gz=gzip.compress(stream.getvalue()))])
    with pytest.raises(StoreError, match=r"its \.pth\.gz cannot be read: .* a pickle can run code"):
        import_store(tmp_path / "b.tar", tmp_path / "other")
    write_shard_file(tmp_path / "c.tar", [sample(0, npz=npz(image_emb=np.array([{}], object)))])
    with pytest.raises(StoreError, match=r"c\.tar, sample 00000000: its \.npz cannot be read: Object arrays"):
        import_store(tmp_path / "c.tar", tmp_path / "other")


def test_columns_take_one_teacher(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert main(["store", "import", str(shards), "--out", str(out), "--columns", "5:8", "--id", "sha256"]) == 0
    assert main(["store", "import", str(shards), "--out", str(tmp_path / "other"), "--columns", "5"]) == 1
    store = EmbeddingStore.open(out)
    assert store.width == 3
    assert close(store.rows("I", ["sha1"], 1)[0], naive_unit(images(1)[1, 5:8]))
    assert close(store.rows("T", ["syn 1 b"])[0], naive_unit(texts(1)[2, 5:8]))


def test_real_captions_may_be_missing_and_come_from_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard_file(tmp_path / "a.tar", [sample(0, txt=None), sample(1, txt=None)])
    store = import_store(tmp_path / "a.tar", tmp_path / "store")
    assert list(store.keys("T")) == ["syn 0 a", "syn 0 b", "syn 1 a", "syn 1 b"]
    assert close(store.rows("T", ["syn 1 a"])[0], naive_unit(texts(1)[1]))
    assert "2 rows of real captions that the shards do not hold" in capsys.readouterr().err
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"uid{number}.jpg").write_bytes(jpeg())
        (photos / f"uid{number}.txt").write_text(f"told {number}\n")
    joined = import_store(tmp_path / "a.tar", tmp_path / "joined", data=photos)
    assert list(joined.keys("I")) == ["uid0.jpg", "uid1.jpg"]
    assert close(joined.rows("T", ["told 1"])[0], naive_unit(texts(1)[0]))


def test_captions_of_several_captioners(tmp_path: Path) -> None:
    captions = json.dumps({"syn_text": ["one", "two"], "syn_text_other": ["three"]}).encode()
    rows = {"image_emb": images(0), "text_emb": unit_rows(1), "syn_text_emb": unit_rows(2, seed=1)}
    rows["syn_text_other_emb"] = unit_rows(1, seed=2)
    write_shard_file(tmp_path / "a.tar", [sample(0, npz=npz(**rows), syn_json=captions)])
    store = import_store(tmp_path / "a.tar", tmp_path / "store")
    assert np.array_equal(store.rows("T", ["real 0"])[0], unit_rows(1)[0])
    assert np.array_equal(store.rows("T", ["two"])[0], unit_rows(2, seed=1)[1])
    assert np.array_equal(store.rows("T", ["three"])[0], unit_rows(1, seed=2)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"npz": None}, r"a\.tar, sample 00000001 has no embeddings: expected a \.npz or \.pth\.gz"),
        ({"npz": b"PK no zip"}, r"sample 00000001: its \.npz cannot be read"),
        ({"npz": npz(image_emb=images(1)[:2], text_emb=texts(1))}, "2 image embeddings, 3 in the first sample"),
        ({"npz": npz(image_emb=images(1), text_emb=texts(1)[:2])}, "2 rows in text_emb for 3 captions"),
        ({"npz": npz(image_emb=images(1) * np.nan)}, "sample 00000001: the row of 'uid1' is not finite"),
        ({"crops": CROPS[:2]}, "2 augmentations for 3 image embeddings"),
        ({"jpg": jpeg((30, 20))}, r"the crop \[0, 0, 20, 40\] .* not within the picture of 30 x 20"),
        ({"jpg": b"no picture"}, "sample 00000001: the picture cannot be read"),
        ({"syn_json": b"{"}, r"its \.syn\.json is not JSON"),
        ({"syn_json": b"[" * 100_000}, r"its \.syn\.json is not JSON"),
        ({"paug_json": b'{"param_aug": "["}'}, r"param_aug in its \.paug\.json is not JSON"),
        ({"json": b'{"uid": "uid0"}'}, "the id 'uid0' is there before, at .*sample 00000000"),
    ],
)
def test_damage_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_shard_file(tmp_path / "a.tar", [sample(0), sample(1, **changes)])
    with pytest.raises(StoreError, match=message):
        import_store(tmp_path / "a.tar", tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_cut_shard_is_named(shards: Path, tmp_path: Path) -> None:
    path = shards / "00000000.tar"
    data = path.read_bytes()
    for size in (0, 100, 512, len(data) // 3, len(data) // 2, len(data) // 2 + 512):
        path.write_bytes(data[:size])
        with pytest.raises(StoreError, match=r"00000000\.tar: not a tar file that can be read"):
            import_store(shards, tmp_path / "store")

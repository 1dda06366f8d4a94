"""Datasets of the datasets library open like any other data: saved to disk, as parquet, and from a hub."""

from __future__ import annotations

import io
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipdistill.data.check import check
from clipdistill.data.images import content_hash, decode, fetch
from clipdistill.data.samples import Sample
from clipdistill.data.sources import pairs
from clipdistill.data.sources.arrow_rows import ArrowPicture
from clipdistill.errors import ConfigError, DataError

Rows = dict[str, list[Any]]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def jpeg(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (colour, 255 - colour, 20)).save(stream, format="JPEG")
    return stream.getvalue()


def held(*colours: int) -> list[dict[str, Any]]:
    return [{"bytes": jpeg(colour), "path": f"{colour}.jpg"} for colour in colours]


ROWS: Rows = {
    "image": held(1, 120, 250),
    "caption": [["A dog.", "One dog.", "A dog."], ["A cat."], []],
    "label": [0, 1, -1],
    "group": ["g", None, ""],
    "key": ["a", "b", "c"],
}
FEATURES = {
    "image": datasets.Image(),
    "caption": datasets.List(datasets.Value("string")),
    "label": datasets.ClassLabel(names=["dog", "cat"]),
    "group": datasets.Value("string"),
    "key": datasets.Value("string"),
}
TOLD = [
    ("0", ["A dog.", "One dog."], "dog", "g"),
    ("1", ["A cat."], "cat", None),
    ("2", [], None, None),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def dataset(rows: Rows | None = None, **changes: Any) -> datasets.Dataset:
    rows = (ROWS if rows is None else rows) | changes
    features = datasets.Features({name: FEATURES[name] for name in rows}) if rows.keys() <= FEATURES.keys() else None
    return datasets.Dataset.from_dict(rows, features)


def write_parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def samples(uri: Path | str) -> list[Sample]:
    source = pairs(uri)
    return [source[index] for index in range(len(source))]


def told(uri: Path | str) -> list[tuple[Any, ...]]:
    return [(sample.id, sample.captions, sample.label, sample.group) for sample in samples(uri)]


def problem(uri: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        pairs(uri)
    return str(caught.value)


# Saved to disk


def test_a_saved_dataset(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved")
    assert told(tmp_path / "saved") == TOLD
    for sample, colour in zip(samples(tmp_path / "saved"), (1, 120, 250), strict=True):
        assert isinstance(sample.image, ArrowPicture)  # neither decoded nor read before it is asked for
        assert fetch(sample.image) == jpeg(colour)
        assert sample.image.size == len(jpeg(colour))
        assert content_hash(sample.image) == content_hash(jpeg(colour))
        assert decode(sample.image).size == (9, 7)
    assert [name for name, *_ in told(f"{tmp_path / 'saved'}?id=key")] == ["a", "b", "c"]
    assert "one alone was saved here" in problem(f"{tmp_path / 'saved'}?split=train")


def test_splits(tmp_path: Path) -> None:
    parts = {"train": dataset(), "test": dataset().select([1])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    for name, part in parts.items():
        part.to_parquet(tmp_path / "files" / "data" / f"{name}-00000-of-00001.parquet")
    for folder in (tmp_path / "saved", tmp_path / "files"):
        test = [("test/0", ["A cat."], "cat", None)]
        train = [(f"train/{name}", *more) for name, *more in TOLD]
        assert told(f"{folder}?split=train") == train
        assert told(f"{folder}?split=test") == test
        assert told(f"{folder}?split=train+test") == [*train, *test]
        assert told(f"{folder}?split=test,train,test") == [*test, *train]
        assert [name for name, *_ in told(f"{folder}?split=test&id=key")] == ["b"]
        assert len({pairs(f"{folder}?split={name}").fingerprint for name in ("train", "test", "train,test")}) == 3
        assert "holds several splits. Choose ?split=train or ?split=test" in problem(folder)
        assert "unknown split 'tets'. Did you mean 'test'?" in problem(f"{folder}?split=tets")


def test_parts_that_the_card_names(tmp_path: Path) -> None:
    """A folder fetched from the hub, with the card that says which files belong together."""
    for name in ("en", "zh"):
        write_parquet(tmp_path / name / "part.parquet", image=pa.array(held(1), PICTURE), text=[name])
    parts = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("en", "zh"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    assert [captions for _, captions, *_ in told(f"{tmp_path}?config=zh")] == [["zh"]]
    assert "pick one among the available configs: ['en', 'zh']" in problem(tmp_path)


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    def saved(name: str, **changes: Any) -> str:
        dataset(**changes).save_to_disk(tmp_path / name)
        return pairs(tmp_path / name).fingerprint

    first = saved("a")
    dataset().map(lambda row: row, keep_in_memory=True, new_fingerprint="random").save_to_disk(tmp_path / "mapped")
    dataset().to_parquet(tmp_path / "a.parquet")
    assert {saved("again"), pairs(tmp_path / "mapped").fingerprint, pairs(tmp_path / "a.parquet").fingerprint} == {
        first
    }
    changes: Rows = {
        "image": [*held(1, 120), {"bytes": b"longer" * 99, "path": None}],
        "caption": [["A dog."], ["A cat."], ["A car."]],
        "label": [1, 1, 1],
        "group": ["g", "h", "i"],
    }
    others = {saved(f"with {name}", **{name: values}) for name, values in changes.items()}
    others |= {pairs(f"{tmp_path / 'a'}?{choice}").fingerprint for choice in ("id=key", "caption=none", "caption=key")}
    assert len(others | {first}) == 8


def read(task: tuple[Any, int]) -> tuple[str, bytes]:
    source, index = task
    return source[index].id, source[index].picture.read_bytes()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])  # a fork would take other tests' threads along
def test_other_processes_read_it_too(tmp_path: Path, method: str) -> None:
    dataset().save_to_disk(tmp_path / "saved")
    source = pairs(tmp_path / "saved")
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(read, [(source, index) for index in (2, 0, 1, 2)])
    assert found == [("2", jpeg(250)), ("0", jpeg(1)), ("1", jpeg(120)), ("2", jpeg(250))]


# Columns


SENTENCES: list[Any] = [
    "A dog.",
    ["A dog."],
    [{"raw": "A dog.", "sentid": 1}],
    {"raw": "A dog.", "tokens": ["A", "dog", "."]},
    {"raw": ["A dog."], "sentid": [1]},
]


@pytest.mark.parametrize("value", SENTENCES, ids=str)
def test_captions_come_in_many_forms(tmp_path: Path, value: Any) -> None:
    datasets.Dataset.from_dict({"img": held(1), "sentences": [value]}).save_to_disk(tmp_path / "saved")
    assert told(tmp_path / "saved") == [("0", ["A dog."], None, None)]


@pytest.mark.parametrize("name", ["image", "img", "jpg", "webp", "anything"])
@pytest.mark.parametrize("form", ["struct", "bytes"])
def test_pictures_are_found_by_name_or_alone(tmp_path: Path, name: str, form: str) -> None:
    column = pa.array(held(1), PICTURE) if form == "struct" else pa.array([jpeg(1)], pa.binary())
    path = write_parquet(tmp_path / "a.parquet", filepath=["x.jpg"], text=["A dog."], **{name: column})
    (sample,) = samples(f"{path}?image={name}")
    assert fetch(sample.picture) == jpeg(1)
    if name != "anything":
        (sample,) = samples(path)
        assert fetch(sample.picture) == jpeg(1)


def test_columns_are_chosen_or_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    columns = {"image": held(1, 2), "mask": held(3, 4), "alt": ["x", "y"], "syn_text": [["s"], ["t"]], "n": [5, 6]}
    datasets.Dataset.from_dict(columns).save_to_disk(path)
    first, second = samples(f"{path}?image=mask&caption=alt&label=n&group=alt")
    assert (fetch(first.picture), first.texts, first.label, first.group) == (
        jpeg(3),
        {"": ["x"], "syn": ["s"]},
        "5",
        "x",
    )
    assert fetch(second.picture) == jpeg(4)
    assert samples(f"{path}?caption=none")[1].texts == {}
    assert samples(path)[0].texts == {"syn": ["s"]}
    assert [(s.image, s.texts) for s in samples(f"{path}?image=none&caption=alt&synthetic=alt")] == [
        (None, {"": ["x"], "syn": ["x"]}),
        (None, {"": ["y"], "syn": ["y"]}),
    ]


def test_labels_without_captions(tmp_path: Path) -> None:
    dataset({name: ROWS[name] for name in ("image", "label")}).save_to_disk(tmp_path / "saved")
    assert [(s.label, s.texts) for s in samples(tmp_path / "saved")] == [("dog", {}), ("cat", {}), (None, {})]
    assert "no column for captions. Found: image (struct<bytes: binary, path: string>), label (int64). Exp" in problem(
        f"{tmp_path / 'saved'}?image=none"
    )


BAD: list[tuple[str, str]] = [
    ("caption=captoin", "there is no column 'captoin', chosen by caption=captoin. Did you mean 'caption'?"),
    ("image=url", "the column 'url' chosen by image= holds int64, expected pictures"),
    (
        "caption=image",
        "the column 'image' chosen by caption= holds struct<bytes: binary, path: string>, expected a cap",
    ),
    ("label=caption", "the column 'caption' chosen by label= holds list"),
    ("id=nope", "there is no column 'nope', chosen by id=nope"),
    ("id=twice", "2 rows have the id 'x' in the column 'twice'; ids must differ"),
    ("id=half", "1 rows have no id in the column 'half'"),
    ("sep=tab", "sep=tab is for .csv and .tsv files only"),
    ("revision=main", "revision=main is for datasets on the Hugging Face hub only"),
    ("images=x", "images=x is for annotation files only"),
]


@pytest.mark.parametrize(("choice", "message"), BAD)
def test_choices_that_do_not_fit(tmp_path: Path, choice: str, message: str) -> None:
    columns = {"image": held(1, 2), "caption": [["x"], ["y"]], "url": [1, 2], "twice": ["x", "x"], "half": ["x", None]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    assert message in problem(f"{tmp_path / 'saved'}?{choice}")


@pytest.mark.parametrize("name", ["image_url", "URL"])
def test_links_are_no_pictures(tmp_path: Path, name: str) -> None:
    datasets.Dataset.from_dict({name: ["https://e.org/a.jpg"], "caption": ["x"]}).save_to_disk(tmp_path / "saved")
    message = problem(tmp_path / "saved")
    assert f"no column for pictures. Found: {name} (string), caption (string)" in message
    assert "img2dataset" in message
    assert samples(f"{tmp_path / 'saved'}?image=none")[0].captions == ["x"]


def test_choices_of_other_data(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    assert "split=train is for Karpathy's annotation files and datasets" in problem(f"{tmp_path}?split=train")
    assert "id=key is for datasets of Hugging Face only" in problem(f"{tmp_path}?id=key")


# Parquet


def test_img2datasets_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that could not be downloaded have no picture; beside each file lies one of figures."""
    for shard in ("00000", "00001"):
        write_parquet(
            tmp_path / f"{shard}.parquet",
            url=["https://e.org/a.jpg", "https://e.org/b.jpg", "https://e.org/c.jpg"],
            caption=["one", "two", "three"],
            key=[f"{shard}0", f"{shard}1", f"{shard}2"],
            status=["success", "failed_to_download", "success"],
            jpg=pa.array([jpeg(10), None, jpeg(30)], pa.binary()),
        )
        (tmp_path / f"{shard}_stats.json").write_text('{"count": 3, "successes": 2}')
    expected = [(name, [text]) for name, text in (("0", "one"), ("2", "three"), ("3", "one"), ("5", "three"))]
    several = (tmp_path, tmp_path / "*.parquet", tmp_path / "{00000..00001}.parquet")
    joined = f"{tmp_path / '00000.parquet'}::{tmp_path / '00001.parquet'}"
    for uri in (*several, joined):
        assert [(sample.id, sample.captions) for sample in samples(uri)] == expected
        assert "2 of 6 rows have no picture and are left out" in capsys.readouterr().err
    assert [sample.id for sample in samples(f"{tmp_path}?id=key")] == ["000000", "000002", "000010", "000012"]
    assert [sample.id for sample in samples(tmp_path / "00001.parquet")] == ["0", "2"]
    assert fetch(samples(tmp_path)[3].picture) == jpeg(30)
    assert check(pairs(tmp_path)).errors == []


def test_img2datasets_files(tmp_path: Path) -> None:
    for name in ("000000000", "000000002"):
        (tmp_path / "00000").mkdir(exist_ok=True)
        (tmp_path / "00000" / f"{name}.jpg").write_bytes(jpeg(1))
        (tmp_path / "00000" / f"{name}.txt").write_text("a dog")
        (tmp_path / "00000" / f"{name}.json").write_text('{"caption": "a dog"}')
    write_parquet(tmp_path / "00000.parquet", url=["https://e.org/a.jpg"], caption=["a dog"])
    assert [(sample.id, sample.captions) for sample in samples(tmp_path)] == [
        ("00000/000000000.jpg", ["a dog"]),
        ("00000/000000002.jpg", ["a dog"]),
    ]


def test_parquet_of_paths(tmp_path: Path) -> None:
    """One file that names pictures is a table; several are read like one."""
    for number in (0, 1):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
        write_parquet(tmp_path / "list" / f"{number}.parquet", image=[f"../{number}.jpg"], text=[f"number {number}"])
    found = samples(tmp_path / "list")
    assert [(sample.captions, fetch(sample.picture)) for sample in found] == [
        (["number 0"], jpeg(0)),
        (["number 1"], jpeg(1)),
    ]
    assert [sample.id for sample in samples(tmp_path / "list" / "0.parquet")] == ["../0.jpg"]
    first = pairs(tmp_path / "list").fingerprint
    (tmp_path / "0.jpg").write_bytes(b"other")
    assert pairs(tmp_path / "list").fingerprint != first


def test_a_picture_may_be_a_file_beside_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    column = pa.array([*held(1), {"bytes": None, "path": "b.jpg"}, {"bytes": None, "path": None}, None], PICTURE)
    path = write_parquet(tmp_path / "a.parquet", image=column, text=list("abcd"))
    assert [(sample.id, fetch(sample.picture)) for sample in samples(path)] == [("0", jpeg(1)), ("1", jpeg(2))]


def test_captions_in_several_files(tmp_path: Path) -> None:
    for number in (0, 1):
        write_parquet(tmp_path / f"{number}.parquet", text=[f"number {number}"])
    assert [(sample.image, sample.captions) for sample in samples(tmp_path)] == [
        (None, ["number 0"]),
        (None, ["number 1"]),
    ]


def test_parquet_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    found = []
    for text in ("before", "after it"):
        write_parquet(path, image=pa.array(held(1), PICTURE), text=[text])
        found += told(path)
    assert [captions for _, captions, *_ in found] == [["before"], ["after it"]]


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "0.parquet", image=pa.array(held(1), PICTURE), text=["x"])
    assert f"{tmp_path / '1.parquet'} is not there" in problem(tmp_path / "{0..1}.parquet")
    assert "is no parquet file" in problem(f"{path}::{__file__}")
    (tmp_path / "1.parquet").write_bytes(path.read_bytes()[:200])
    message = problem(tmp_path)
    assert message.startswith(f"{tmp_path}: the dataset cannot be opened: ")
    assert "arquet magic bytes" in message
    write_parquet(tmp_path / "1.parquet", image=pa.array([None], PICTURE), text=["x"])
    assert problem(tmp_path / "1.parquet").endswith("none of the 1 rows has a picture")
    pq.ParquetWriter(tmp_path / "1.parquet", pa.schema([("image", PICTURE), ("text", pa.string())])).close()
    assert "corresponds to no data" in problem(tmp_path / "1.parquet")
    dataset().save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    assert f"{tmp_path / 'saved'}: the dataset cannot be opened" in problem(tmp_path / "saved")


def test_a_damaged_picture_is_met_when_it_is_read(tmp_path: Path) -> None:
    dataset({"image": [{"bytes": b"no", "path": None}], "caption": [["x"]]}).save_to_disk(tmp_path / "saved")
    source = pairs(tmp_path / "saved")
    with pytest.raises(DataError, match=r"saved: row 0: not a picture"):
        decode(source[0].picture)
    assert check(source).unreadable["0"].startswith("not a picture")


# The hub


def test_without_a_network_it_is_said_what_to_fetch() -> None:
    message = problem("hf:org/photos?split=train")
    assert message.startswith("hf:org/photos?split=train: the dataset cannot be opened: Couldn't reach 'org/photos'")
    assert "HF_HUB_OFFLINE is set" in message
    assert "hf download org/photos --repo-type dataset --local-dir FOLDER" in message


def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "found 'parquet', expected the name of a dataset on the hub, such as hf:org/name" in problem("hf:parquet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "photos").mkdir(parents=True)
    assert "there is a folder org/photos here. Name it without hf:" in problem("hf:org/photos")
    assert "images=x is for annotation files only" in problem("hf:org/other?images=x")


def test_without_datasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", image=pa.array(held(1), PICTURE), text=["x"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    for uri in (tmp_path / "a.parquet", tmp_path, "hf:org/photos"):
        with pytest.raises(ConfigError, match=r"pip install 'clipdistill\[data\]'"):
            pairs(uri)

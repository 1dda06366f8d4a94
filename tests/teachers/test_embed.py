"""The embedding job: the rows a model gives, whoever makes them and however often they are stopped."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray
from PIL import Image

from clipdistill.cli import main
from clipdistill.data.images import decode
from clipdistill.data.samples import Source
from clipdistill.data.sources import pairs
from clipdistill.data.views import Augmentation, draw
from clipdistill.errors import ClipdistillError, ConfigError, DataError, InterruptedRunError, StoreError
from clipdistill.models.loading import load
from clipdistill.teachers import embed as job
from clipdistill.teachers.check_store import check_store
from clipdistill.teachers.embed import embed
from clipdistill.teachers.store import EmbeddingStore

DATA = "scenes:train?n=30"
AUGMENTATION = Augmentation(crop=(0.3, 0.8), flip=0.5, colour=0.5)
HALF = 2e-3  # rows in float16


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store, but for the settings of the job."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != "embed.json"}


def unit(rows: torch.Tensor) -> NDArray[Any]:
    return np.asarray((rows / rows.norm(dim=1, keepdim=True)).detach().numpy())


def photos(folder: Path, broken: int = 0, count: int = 10) -> Source:
    source = pairs(f"scenes:train?n={count}")
    folder.mkdir()
    for index in range(count):
        pixels = source[index].image
        assert isinstance(pixels, np.ndarray)
        if index < broken:
            (folder / f"{index}.png").write_bytes(b"\x89PNG not at all")
        else:
            Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(source[index].captions[0])
    return pairs(folder)


def test_whole_pictures_and_captions_are_what_the_model_gives(small_model: str, tmp_path: Path) -> None:
    store = embed(DATA, small_model, tmp_path / "s", shard_size=7)
    assert store is not None
    source, encoder = pairs(DATA), load(small_model)
    assert (len(store), store.sides, store.views, store.scale) == (30, "IT", None, encoder.scale)
    assert [len(block) for block in store.blocks("I")] == [7, 7, 7, 7, 2]
    assert encoder.transform is not None
    for index in (0, 8, 29):
        sample = source[index]
        pixels = torch.from_numpy(encoder.transform(decode(sample.picture))["pixel_values"])[None]
        assert np.allclose(store.rows("I", [sample.id]), unit(encoder.images({"pixel_values": pixels})), atol=HALF)
        tokens = encoder.tokenize(sample.captions)
        assert np.allclose(store.rows("T", sample.captions), unit(encoder.texts(tokens)), atol=HALF)
    manifest = store.manifest
    assert (manifest.model.fingerprint, manifest.source.fingerprint) == (encoder.fingerprint, source.fingerprint)
    assert (manifest.source.samples, manifest.skipped, manifest.precision) == (30, 0, "float32")
    assert {"torch", "numpy"} <= set(manifest.packages)


def test_a_stored_view_is_the_drawn_one(small_model: str, tmp_path: Path) -> None:
    """Each row is recomputed from nothing but seed, id and view."""
    store = embed(DATA, small_model, tmp_path / "s", views=3, seed=5, augmentation=AUGMENTATION, dtype="float32")
    assert store is not None
    source, encoder = pairs(DATA), load(small_model)
    assert encoder.transform is not None
    for index in (0, 17):
        sample = source[index]
        image, rows = decode(sample.picture), []
        for view in range(3):
            look = encoder.transform(image, draw(5, sample.id, view, AUGMENTATION, image.size))
            rows.append(unit(encoder.images({"pixel_values": torch.from_numpy(look["pixel_values"])[None]})))
            assert np.allclose(store.rows("I", [sample.id], view), rows[view], atol=1e-5)
        assert np.abs(rows[0] - rows[1]).max() > 1e-3


def test_every_caption_of_every_text_view_is_stored_once(small_model: str, tmp_path: Path) -> None:
    lines = [
        {"file_name": "0.png", "text": ["a cat", "a dog"], "syn_text": ["made up"]},
        {"file_name": "1.png", "text": ["a cat", " "], "syn_text": []},
    ]
    photos(tmp_path / "photos", count=2)
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    store = embed(tmp_path / "photos", small_model, tmp_path / "s")
    assert store is not None
    assert list(store.keys("T")) == ["a cat", "a dog", "made up"]


def test_sides_are_those_asked_for_or_all_there_are(small_model: str, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a cat\na dog\n")
    words = embed(tmp_path / "captions.txt", small_model, tmp_path / "words")
    assert words is not None
    assert (words.sides, len(words), list(words.keys("T"))) == ("T", 0, ["a cat", "a dog"])
    pictures = embed(DATA, small_model, tmp_path / "pictures", sides="I")
    assert pictures is not None
    assert pictures.sides == "I"
    with pytest.raises(ConfigError, match=r"image embeddings are asked for, but the data .* no image side"):
        embed(tmp_path / "captions.txt", small_model, tmp_path / "x", sides="IT")


def test_a_model_and_data_that_do_not_meet_are_said(small_model: str, tmp_path: Path) -> None:
    config: Any = load(small_model).module.config
    hf.CLIPVisionModelWithProjection(config.vision_config).save_pretrained(tmp_path / "seeing")
    for file in Path(small_model).glob("preprocessor_config.json"):
        (tmp_path / "seeing" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "captions.txt").write_text("a cat\na dog\n")
    with pytest.raises(
        ConfigError, match=r"seeing embeds pictures, the data .*captions\.txt have captions alone: there"
    ):
        embed(tmp_path / "captions.txt", str(tmp_path / "seeing"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def statuses(target: Callable[..., None], *arguments: Sequence[Any]) -> list[int | None]:
    """How processes that run side by side end, one for each of ``arguments``."""
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=target, args=tuple(words)) for words in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def command(*words: str) -> None:
    sys.exit(main(list(words)))


def embed_and_die(call: int, model: str, out: Path) -> None:
    """A job that is killed when it writes for the ``call``-th time."""
    from clipdistill.teachers import job as folder
    from clipdistill.teachers import shards, store

    put, calls = shards.put, itertools.count(1)

    def put_or_die(path: Path, write: Any) -> None:
        if next(calls) == call:
            path.with_name(f".{path.name}.tmp").write_bytes(b"half of")
            os.kill(os.getpid(), signal.SIGKILL)
        put(path, write)

    for module in (folder, shards, store):
        module.put = put_or_die  # type: ignore[attr-defined]
    embed(DATA, model, out, views=2, shard_size=8, workers=1)


@pytest.mark.parametrize("call", [1, 4, 6, 24, 28])
def test_a_job_killed_at_any_moment_goes_on_to_the_same_bytes(call: int, small_model: str, tmp_path: Path) -> None:
    """Killed while the settings, the record or rows of a shard, an index and the manifest are written."""
    whole = embed(DATA, small_model, tmp_path / "whole", views=2, shard_size=8, workers=0)
    out = tmp_path / "killed"
    assert statuses(embed_and_die, (call, small_model, out)) == [-signal.SIGKILL]
    with pytest.raises(StoreError, match="is not a store" if call == 1 else "is unfinished"):
        EmbeddingStore.open(out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/0*.json")}
    store = embed(DATA, small_model, out, views=2, shard_size=8, workers=0)
    assert store is not None
    assert whole is not None
    assert contents(out) == contents(tmp_path / "whole")
    assert store.fingerprint == whole.fingerprint
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(kept) == {1: 0, 4: 0, 6: 1, 24: 7, 28: 8}[call]


def test_three_processes_make_the_same_store_as_one(small_model: str, tmp_path: Path) -> None:
    words = ["embed", DATA, "--model", small_model, "--views", "2", "--shard-size", "4", "--workers", "0"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    words += ["--out", str(tmp_path / "three")]
    assert statuses(command, *([*words, "--shard", f"{part}/3"] for part in (1, 2, 3))) == [0, 0, 0]
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


def test_torchruns_rank_says_which_part_is_ours(
    small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, finished in ((1, False), (0, True)):
        monkeypatch.setenv("RANK", str(rank))
        store = embed(DATA, small_model, tmp_path / "s", sides="I", shard_size=8, workers=0)
        assert (store is not None) is finished
        done = {path.stem for path in (tmp_path / "s" / "image").glob("0*.json")}
        assert done == ({"00000", "00001", "00002", "00003"} if finished else {"00001", "00003"})


def test_a_finished_job_is_left_as_it_is(small_model: str, tmp_path: Path) -> None:
    embed(DATA, small_model, tmp_path / "s")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()}
    assert embed(DATA, small_model, tmp_path / "s") is not None
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("gone", ["image/00001.npy", "text/00002.ids.jsonl", "image/index.npy"])
def test_what_a_finished_store_has_lost_is_made_again(small_model: str, tmp_path: Path, gone: str) -> None:
    store = embed(DATA, small_model, tmp_path / "s", shard_size=8)
    assert store is not None
    ids, rows = list(store.keys("I")), [*store.blocks("I")]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("0*.npy") if path.stem[:5] not in gone}
    (tmp_path / "s" / gone).unlink()
    again = embed(DATA, small_model, tmp_path / "s")
    assert again is not None
    assert list(again.keys("I")) == ids
    assert np.array_equal(np.concatenate(rows), np.concatenate([*again.blocks("I")]))
    assert np.array_equal(again.rows("I", ids[::-1]), np.concatenate(rows)[::-1])
    assert kept
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "what is there is not made again"
    assert check_store(tmp_path / "s").findings == []


def test_a_full_disk_is_said_with_the_file(small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, array: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StoreError, match=r"image/00000.npy cannot be written \(No space left on device\)"):
        embed(DATA, small_model, tmp_path / "s")
    monkeypatch.undo()
    assert embed(DATA, small_model, tmp_path / "s") is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "scenes:train?n=31"}, r"source: was scenes:train\?n=30 \(.*now scenes:train\?n=31 \("),
        ({"views": 3}, r'views: was .*"count": 2.*now .*"count": 3'),
        ({"augmentation": AUGMENTATION}, r"views: was .*0.9.*now .*0.3"),
        ({"dtype": "float32"}, "dtype: was float16, now float32"),
        ({"shard_size": 9}, "shard_size: was 8, now 9"),
        ({"sides": "I"}, "sides: was IT, now I"),
        ({"precision": "bfloat16"}, "precision: was float32, now bfloat16"),
        ({"model": 1}, r"model: was .*model0 \(\w+\), now .*model1 \(\w+\)"),
    ],
)
def test_a_job_is_not_continued_as_another(
    change: dict[str, Any], message: str, small_models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"data": DATA, "model": 0, "views": 2, "shard_size": 8, "workers": 0}
    monkeypatch.setattr(job, "_work", lambda *_: None)
    embed(**{**given, "model": str(small_models[0])}, out=tmp_path / "s")
    changed = {**given, **change}
    with pytest.raises(StoreError, match=message):
        embed(**{**changed, "model": str(small_models[changed["model"]])}, out=tmp_path / "s")


def test_a_folder_with_anything_else_is_left_alone(small_model: str, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(StoreError, match="is not empty"):
        embed(DATA, small_model, tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        embed(DATA, small_model, tmp_path / "diary.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float8"}, "unknown dtype 'float8'. Did you mean 'float32'"),
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"views": -1}, "views is -1"),
        ({"sides": "IX"}, "sides are 'IX'"),
        ({"shard": (4, 3)}, "shard 4/3 is no part"),
        ({"augmentation": AUGMENTATION}, "--views 8"),
        ({"device": "abacus"}, "device=abacus"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(
    change: dict[str, Any], message: str, small_model: str, tmp_path: Path
) -> None:
    with pytest.raises(ClipdistillError, match=message):
        embed(**{"data": DATA, "model": small_model, "out": tmp_path / "s", **change})
    assert not (tmp_path / "s").exists()


def test_broken_pictures_are_left_out_recorded_and_counted(
    small_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = photos(tmp_path / "photos", broken=3)
    given: dict[str, Any] = {"data": source, "model": small_model, "out": tmp_path / "s", "shard_size": 2}
    with pytest.raises(DataError, match=r"3 pictures of .* 2 are allowed.*--max-broken"):
        embed(**given, views=2, max_broken=2)
    store = embed(**given, views=2, max_broken=3)
    assert store is not None
    assert "skipped 0.png: truncated or damaged" in capsys.readouterr().err
    assert (store.manifest.skipped, len(store), store.manifest.sides["image"].rows) == (3, 7, 14)
    assert store.missing("I", [f"{number}.png" for number in range(10)]) == ["0.png", "1.png", "2.png"]
    record = json.loads((tmp_path / "s" / "image" / "00000.json").read_text())
    assert [name for name, _ in record["skipped"]] == ["0.png", "1.png"]
    assert store.rows("I", ["9.png"], 1).shape == (1, store.width)
    assert len(store.missing("T", source[0].captions)) == 0


def test_a_store_without_one_picture_is_not_finished(small_model: str, tmp_path: Path) -> None:
    """Its captions alone would train nothing, and nobody would know until then."""
    source = photos(tmp_path / "photos", broken=3, count=3)
    with pytest.raises(StoreError, match=r"none of the 3 pictures could be read.*delete the folder"):
        embed(source, small_model, tmp_path / "s")
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_ctrl_c_leaves_what_is_done_and_says_so(
    small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real interrupt, on the way to the second shard."""
    write = job.write_shard

    def write_one(folder: Path, side: str, number: int, *rest: Any) -> None:
        if number == 1:
            signal.raise_signal(signal.SIGINT)  # to this thread: the one that works
        write(folder, side, number, *rest)

    words = ["embed", DATA, "--model", small_model, "--out", str(tmp_path / "s"), "--shard-size", "8"]
    monkeypatch.setattr(job, "write_shard", write_one)
    # A shell starts its background jobs, and so this test at times, with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(words) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped: 1 of 8 shards" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(words) == 0
    assert len(EmbeddingStore.open(tmp_path / "s")) == 30
    assert "rows/s" in capsys.readouterr().err


def test_an_interrupt_is_an_error_of_its_own_in_python(
    small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "write_shard", stop)
    with pytest.raises(InterruptedRunError, match="0 of 2 shards"):
        embed(DATA, small_model, tmp_path / "s", workers=0)


def test_a_row_without_direction_is_an_error(
    small_models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(uri: str, device: str = "cpu") -> Any:
        encoder = load(uri, device)
        monkeypatch.setattr(encoder, "images", lambda pixels: torch.zeros(len(pixels["pixel_values"]), encoder.width))
        return encoder

    monkeypatch.setattr(job, "load", broken)
    with pytest.raises(ClipdistillError, match=r"zero or not finite for '.+'\. Try the precision float32"):
        embed(DATA, str(small_models[0]), tmp_path / "s", workers=0)


def test_the_command_line_sets_everything(small_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["embed", DATA, "augment.crop=[0.3,0.8]", "augment.flip=0.5", "augment.colour=0.5", "--model", small_model]
    words += ["--sides", "image", "--views", "2", "--seed", "5", "--dtype", "f32", "--precision", "bfloat16"]
    assert main([*words, "--out", str(tmp_path / "s")]) == 0
    manifest = EmbeddingStore.open(tmp_path / "s").manifest
    assert (manifest.views.count, manifest.views.seed, manifest.views.augmentation) == (2, 5, AUGMENTATION)
    assert (manifest.dtype, manifest.precision, list(manifest.sides)) == ("float32", "bfloat16", ["image"])
    start = ["embed", DATA, "--model", small_model, "--out", str(tmp_path / "x")]
    for more, message in (
        (["--sides", "images"], "Did you mean 'image'?"),
        (["--shard", "3of4"], "for instance 3/16"),
        (["augment.crp=1"], "unknown key 'augment.crp'. Did you mean 'crop'?"),
        (["augment.crop=[0.5,2]"], "crop is a range"),
        (["train.lr=1"], "only augment.KEY=VALUE"),
    ):
        assert main([*start, *more]) == 1
        assert message in capsys.readouterr().err

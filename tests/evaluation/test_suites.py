"""Benchmarks by name: miniatures in their real layouts, figures recomputed from the embeddings, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdistill.data.sources import pairs
from clipdistill.errors import DataError
from clipdistill.evaluation.class_folders import cifar100, imagenet
from clipdistill.evaluation.evaluate import Evaluation, embed_texts
from clipdistill.evaluation.suites import SUITES, evaluate_suite, open_suite
from clipdistill.evaluation.zeroshot import TEMPLATES
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer
from tiny_runs import TINY, write_chinese_clip

MISSILE, PROJECTILE, TENCH = "n03773504", "n04008634", "n01440764"


@pytest.fixture(scope="module")
def student() -> HuggingFaceEncoder:
    texts = ["a big red circle, a photo of the tench fish", "草地上大红色条纹圆形在小蓝色方块左边"]
    return build(StudentSpec(**TINY), train_tokenizer(texts, 520, 32), 16, 0)


def run(name: str, folder: Path, student: HuggingFaceEncoder) -> Evaluation:
    (found,) = evaluate_suite(name, open_suite(name, folder), {"s": student}).evaluations
    return found


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((12, 10), Image.Resampling.NEAREST).save(path)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def recalls(scores: np.ndarray, answers: Sequence[set[int]], way: str) -> dict[str, float]:
    """Recall by sorting: the share of rows of which one of the answers is among the first k columns."""
    order = np.argsort(-scores, axis=1)
    return {
        f"{way}_R@{k}": 100
        * float(np.mean([bool(own & set(row[:k])) for row, own in zip(order, answers, strict=True)]))
        for k in (1, 5, 10)
    }


def both_ways(images: np.ndarray, texts: np.ndarray, owner: Sequence[int]) -> dict[str, float]:
    scores = unit(texts) @ unit(images).T
    told = [{t for t, own in enumerate(owner) if own == picture} for picture in range(len(images))]
    found = recalls(scores, [{own} for own in owner], "text_to_image") | recalls(scores.T, told, "image_to_text")
    return {**found, "mean_recall": sum(found.values()) / 6}


def karpathy(root: Path, file: str, images: str, count: int, repeat: str = "") -> tuple[list[str], list[int]]:
    """Write Karpathy's splits with two captions a picture; returns the test captions and their pictures."""
    source, entries, captions, owner = pairs(f"scenes:test?n={count}"), [], [], []
    for index in range(count):
        draw(root / images / f"{index:04d}.jpg", index)
        told = [f"{source[index].captions[0]} {index}", repeat or f"caption {index}"]
        entries.append({"filename": f"{index:04d}.jpg", "split": "test", "sentences": [{"raw": text} for text in told]})
        captions += told
        owner += [index, index]
    entries.insert(3, {"filename": "9999.jpg", "split": "train", "sentences": [{"raw": "not to be found"}]})
    (root / file).write_text(json.dumps({"images": entries}))
    return captions, owner


def test_flickr30k_counts_a_captions_own_picture_alone(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    root = tmp_path / "a & b + 50%"
    draw(tmp_path / "images" / "0000.jpg", 99)  # somebody else's, beside the benchmark
    captions, owner = karpathy(root, "dataset_flickr30k.json", "flickr30k-images", 14, repeat="two men")
    found = run("flickr30k", root, student)
    images = found.galleries["retrieval"].images
    assert found.metrics == pytest.approx(both_ways(images, embed_texts(student, captions), owner))
    assert found.galleries["retrieval"].questions[0] == captions


def test_coco_1k_is_the_mean_over_five_fifths(
    student: HuggingFaceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipdistill.evaluation.suites._FOLD", 6)
    captions, owner = karpathy(tmp_path, "dataset_coco.json", "val2014", 30)
    whole = run("coco", tmp_path, student)
    images, texts = whole.galleries["retrieval"].images, embed_texts(student, captions)
    assert whole.metrics == pytest.approx(both_ways(images, texts, owner))
    fifths = [
        both_ways(images[6 * f : 6 * f + 6], texts[12 * f : 12 * f + 12], [n // 2 for n in range(12)]) for f in range(5)
    ]
    expected = {name: float(np.mean([fold[name] for fold in fifths])) for name in fifths[0]}
    assert run("coco-1k", tmp_path, student).metrics == pytest.approx(expected)
    assert expected["mean_recall"] > whole.metrics["mean_recall"]


def test_muge_asks_each_query_once_and_any_of_its_pictures_answers(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    write_chinese_clip(tmp_path / "valid", "scenes:test?n=15&lang=zh")
    queries = {f"查询{number}": list(range(number, 15, 4)) for number in range(4)}  # 4, 4, 4 and 3 pictures
    rows = [{"text_id": n, "text": text, "image_ids": ids} for n, (text, ids) in enumerate(queries.items())]
    (tmp_path / "valid_texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("muge", tmp_path, student)
    scores = unit(embed_texts(student, list(queries))) @ unit(found.galleries["retrieval"].images).T
    expected = recalls(scores, [set(ids) for ids in queries.values()], "text_to_image")
    assert found.metrics == pytest.approx({**expected, "text_to_image_mean_recall": sum(expected.values()) / 3})


def test_chinese_benchmarks_come_in_two_layouts(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    """Chinese-CLIP's, and the text files of their authors."""
    write_chinese_clip(tmp_path / "theirs" / "test", "scenes:test?n=12&lang=zh")
    source = pairs("scenes:test?n=12&lang=zh")
    told = [(f"COCO_val2014_{n:012d}", source[n].captions[0]) for n in range(12)]
    for number, (name, _) in enumerate(told):
        draw(tmp_path / "own" / "val2014" / f"{name}.jpg", number)
    lines = [f"{name}#0\t{caption}\n" for name, caption in told]
    (tmp_path / "own" / "imageid.human-written-caption.txt").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "own" / "coco-cn_test.txt").write_text("".join(f"{name}\n" for name, _ in told[2:]))
    for folder, count in (("theirs", 12), ("own", 10)):
        found = run("coco-cn", tmp_path / folder, student)
        gallery = found.galleries["retrieval"]
        assert len(gallery.images) == count
        texts = embed_texts(student, [text for sample in gallery.samples for text in sample.captions])
        assert found.metrics == pytest.approx(both_ways(gallery.images, texts, [owner for owner, _ in gallery.told]))


def zeroshot(
    student: HuggingFaceEncoder, images: np.ndarray, own: Sequence[int], names: Sequence[str], templates: Sequence[str]
) -> dict[str, float]:
    """Zero-shot figures by sorting; of equal classes the first wins, as in a stable sort."""
    rows = [unit(unit(embed_texts(student, [t.replace("{}", n) for t in templates])).mean(0)[None])[0] for n in names]
    order = np.argsort(-np.round(unit(images) @ np.stack(rows).T, 6), axis=1, kind="stable")
    hits = [[number in row[:k] for number, row in zip(own, order, strict=True)] for k in (1, 5)]
    per_class = [np.mean([hit for hit, number in zip(hits[0], own, strict=True) if number == c]) for c in set(own)]
    values = [np.mean(hits[0]), np.mean(hits[1]), np.mean(per_class)]
    return dict(
        zip(("zeroshot_acc1", "zeroshot_acc5", "zeroshot_mean_per_class_recall"), np.array(values) * 100, strict=True)
    )


def test_imagenet_v2_tells_a_thousand_classes_apart_by_number(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    for number in range(1000):
        draw(tmp_path / "imagenetv2-matched-frequency-format-val" / str(number) / "0.jpeg", number)
    templates = ["a photo of a {}.", "{}"]
    (tmp_path / "templates.txt").write_text("\n".join(templates) + "\n")
    found = run("imagenet-v2", tmp_path, student)
    samples, images = found.galleries["zeroshot"].samples, found.galleries["zeroshot"].images
    assert [sample.id for sample in samples[:3]] == ["0/0.jpeg", "1/0.jpeg", "2/0.jpeg"]  # 10 is not after 1
    names = imagenet().names or ()
    assert found.metrics == pytest.approx(zeroshot(student, images, range(1000), names, templates), abs=0.11)


def test_the_folders_of_imagenet_r_decide_and_of_equal_names_the_first_wins(
    student: HuggingFaceEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, wnid in enumerate([TENCH, MISSILE, PROJECTILE] * 4):
        draw(tmp_path / "imagenet-r" / wnid / f"art_{number}.jpg", number)
    (tmp_path / "imagenet-r" / "README.txt").write_text("Rendition\n")
    tasks = open_suite("imagenet-r", tmp_path)["imagenet-r"]
    assert tasks.classes is not None
    assert tasks.classes.names == ("tench", "missile", "missile")
    assert tasks.classes.labels == ("tench", f"missile ({MISSILE})", f"missile ({PROJECTILE})")
    assert len(tasks.classes.templates) == 80
    found = run("imagenet-r", tmp_path, student)
    images = found.galleries["zeroshot"].images
    own = [0] * 4 + [1] * 4 + [2] * 4
    assert found.metrics == pytest.approx(zeroshot(student, images, own, tasks.classes.names, tasks.classes.templates))
    assert "found 12 pictures, the benchmark has 30,000" in capsys.readouterr().err


def test_imagenet_in_chinese_needs_a_file_of_names(tmp_path: Path) -> None:
    for wnid in imagenet().keys:
        (tmp_path / "val" / wnid).mkdir(parents=True)
        (tmp_path / "val" / wnid / "1.JPEG").touch()
    with pytest.raises(DataError, match=r"there is no label_cn\.txt"):
        open_suite("imagenet-cn", tmp_path)
    (tmp_path / "label_cn.txt").write_text("丁鲷\n金鱼\n", encoding="utf-8")
    with pytest.raises(DataError, match="found 2 names, expected one for each of 1,000 classes"):
        open_suite("imagenet-cn", tmp_path)
    (tmp_path / "label_cn.txt").write_text("".join(f"名字{n}\n" for n in range(1000)), encoding="utf-8")
    tasks = open_suite("imagenet-cn", tmp_path)["imagenet1k"]
    assert tasks.classes is not None
    assert (tasks.classes.names[999], tasks.classes.templates) == ("名字999", TEMPLATES["zh"])
    assert tasks.zeroshot is not None
    assert tasks.zeroshot[1].label == "名字1"


def cifar_archive(root: Path, count: int = 12, **changes: Any) -> np.ndarray:
    """Write the pickles of CIFAR-100 and return their pictures."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
    planes = pictures.transpose(0, 3, 1, 2).reshape(count, -1)
    test = {
        "data": planes,
        "fine_labels": [9 * n % 100 for n in range(count)],
        "filenames": ["a.png"] * count,
        **changes,
    }
    (folder / "test").write_bytes(pickle.dumps(test, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(cifar100().keys)}, protocol=2))
    return pictures


def test_cifar_100_from_its_pickles_and_from_folders(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    pictures = cifar_archive(tmp_path / "archive")
    found = run("cifar100", tmp_path / "archive", student)
    samples = found.galleries["zeroshot"].samples
    assert [sample.label for sample in samples[:2]] == ["apple", "bottle"]
    assert all(np.array_equal(sample.picture, own) for sample, own in zip(samples, pictures, strict=True))
    words = cifar100()
    own = [9 * n % 100 for n in range(12)]
    images = found.galleries["zeroshot"].images
    assert found.metrics == pytest.approx(zeroshot(student, images, own, words.names or (), words.templates))
    for number, name in enumerate(words.keys):
        draw(tmp_path / "named" / "test" / name.replace("_", " ") / "0.png", number)
        draw(tmp_path / "numbered" / f"{number:03d}" / "0.png", number)
    one, other = (run("cifar100", tmp_path / folder, student) for folder in ("named", "numbered"))
    assert one.metrics == other.metrics
    chinese = open_suite("cifar100-cn", tmp_path / "archive")["cifar100"]
    assert chinese.zeroshot is not None
    assert chinese.zeroshot[0].label == "苹果"


def test_the_pickles_of_python_2_open(tmp_path: Path) -> None:
    """The archive's own opcodes: byte strings for text and pixels, and numpy's names of that time."""
    pictures = cifar_archive(tmp_path, 2)
    pixels = pictures.transpose(0, 3, 1, 2).tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02M\x00\x0c\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    old = b"\x80\x02}(U\x04data" + array + dtype + state + b"U\x0bfine_labels](K\x03K\x07eu."
    (tmp_path / "cifar-100-python" / "test").write_bytes(old)
    source = open_suite("cifar100", tmp_path)["cifar100"].zeroshot
    assert source is not None
    assert [source[0].label, source[1].label] == ["bear", "beetle"]
    assert np.array_equal(source[1].picture, pictures[1])


def test_a_pickle_that_would_run_code_is_refused_before_it_does(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    cifar_archive(tmp_path, extra=Bomb())
    with pytest.raises(DataError, match=r"test: it asks for .*could run code"):
        open_suite("cifar100", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((12, 3), np.uint8)}, r"found data uint8 \[12, 3\], expected uint8 \[12, 3072\]"),
        ({"data": [0]}, "expected data"),
        ({"fine_labels": [100] * 12}, "found the label 100, but meta names 100 classes"),
    ],
)
def test_a_damaged_archive_is_one_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    cifar_archive(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        open_suite("cifar100", tmp_path)
    (tmp_path / "cifar-100-python" / "test").write_bytes(b"\x80\x02}q")
    with pytest.raises(DataError, match=r"test: cannot be read"):
        open_suite("cifar100", tmp_path)


def elevater(root: Path, chinese: bool) -> None:
    for data_set, names in {"mnist": "零 一 二", "oxford-flower-102": "玫瑰 百合"}.items():
        for number, _ in enumerate(names.split()):
            for picture in range(3 + number):
                draw(root / data_set / "test" / f"{number:03d}" / f"{picture}.png", 10 * number + picture)
        file, told = (
            ("label_cn.txt", names.split()) if chinese else ("label.txt", ["zero", "one", "two"][: len(names.split())])
        )
        (root / data_set / file).write_text("\n".join(told) + "\n", encoding="utf-8")


def test_elevater_is_the_mean_of_each_data_sets_own_figure(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    elevater(tmp_path, chinese=True)
    outcome = evaluate_suite("elevater-cn", open_suite("elevater-cn", tmp_path), {"s": student})
    own = {}
    for data_set, names in {"mnist": ("零", "一", "二"), "oxford-flower-102": ("玫瑰", "百合")}.items():
        images = outcome.parts[data_set][0].galleries["zeroshot"].images
        numbers = [number for number in range(len(names)) for _ in range(3 + number)]
        own[data_set] = zeroshot(student, images, numbers, names, TEMPLATES["zh"])
        assert outcome.parts[data_set][0].metrics == pytest.approx(own[data_set])
    figures = [own["mnist"]["zeroshot_acc1"], own["oxford-flower-102"]["zeroshot_mean_per_class_recall"]]
    expected = {"mean": sum(figures) / 2, "mnist": figures[0], "oxford-flower-102": figures[1]}
    assert outcome.evaluations[0].metrics == pytest.approx({f"zeroshot_{name}": x for name, x in expected.items()})
    with pytest.raises(DataError, match=r"mnist: there is no label\.txt"):
        open_suite("elevater", tmp_path)


def test_names_of_ones_own_make_a_benchmark_of_ones_own(tmp_path: Path) -> None:
    for wnid in (TENCH, MISSILE):
        draw(tmp_path / "val" / wnid / "1.png", 0)
    with pytest.raises(DataError, match=r"folders of 2 of the 1,000 classes, the first that is missing is n01443537"):
        open_suite("imagenet", tmp_path)
    (tmp_path / "classnames.txt").write_text("a fish\na rocket\n")
    classes = open_suite("imagenet", tmp_path)["imagenet1k"].classes
    assert classes is not None
    assert classes.labels == ("a fish", "a rocket")
    (tmp_path / "classnames.txt").write_text("a fish\n")
    with pytest.raises(DataError, match="found 1 names for the 2 folders"):
        open_suite("imagenet", tmp_path)
    (tmp_path / "classnames.txt").write_text("a fish\n\na rocket\n")
    with pytest.raises(DataError, match=r"classnames\.txt:2: found nothing"):
        open_suite("imagenet", tmp_path)
    (tmp_path / "classnames.txt").write_text("a fish\na rocket\n")
    (tmp_path / "templates.txt").write_text("{}\na photo\n")
    with pytest.raises(DataError, match=r"templates\.txt:2: found 'a photo', expected a sentence with {}"):
        open_suite("imagenet", tmp_path)


@pytest.mark.parametrize(
    ("suite", "files", "message"),
    [
        ("imagenet-x", [], r"there is no suite 'imagenet-x'\. Did you mean 'imagenet"),
        ("imagenet-r", ["n99999999/1.jpg"], "the folder 'n99999999' is no class here; expected n01440764 to n15075141"),
        ("imagenet-r", ["0/1.jpg"], "the folder '0' is no class here"),
        ("imagenet-v2", ["0/1.jpg", "00/1.jpg"], "the folders '0' and '00' are the same class"),
        ("imagenet-v2", ["0/1.jpg", "1000/1.jpg"], "the folder '1000' is no class here.* numbers from 0 to 999"),
        ("imagenet-a", [f"{TENCH}/1.jpg", f"{MISSILE}/notes.txt"], f"{MISSILE}: there are no pictures"),
        ("imagenet", ["val/ILSVRC2012_val_00000001.JPEG"], "1 pictures lie loose, .*; expected a folder per class"),
        ("cifar100", ["cifar-100-python.tar.gz"], "is packed: unpack it there"),
        ("cifar100", ["cifar-100-python/meta"], "meta: cannot be read"),
        ("elevater", ["mnist/label.txt", "mnist/train/0/1.png"], "mnist: there is no folder test"),
        ("elevater", ["mnist/test/0/1.png", "mnist/label.txt"], r"label\.txt: found nothing"),
        ("elevater", ["readme.md"], "there are no data sets"),
        ("flickr30k", ["images/1.jpg"], r"there is no dataset_flickr30k\.json, here or in"),
        ("coco-cn", ["test_imgs.tsv"], "needs test_texts.jsonl beside it"),
        ("flickr30k-cn", [], r"found none of test_imgs\.tsv with test_texts\.jsonl, lmdb/test, flickr30k-cn_test\.txt"),
        ("muge", ["train_imgs.tsv", "train_texts.jsonl"], r"found none of valid_imgs\.tsv"),
    ],
)
def test_a_layout_that_is_not_as_it_should_be_is_one_error(
    tmp_path: Path, suite: str, files: list[str], message: str
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(DataError, match=message):
        open_suite(suite, tmp_path)


def test_splits_without_answers_pictures_that_are_missing_and_folders_are_told(
    student: HuggingFaceEncoder, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="suite muge: there is no folder"):
        open_suite("muge", tmp_path / "nowhere")
    write_chinese_clip(tmp_path / "valid", "scenes:test?n=3&lang=zh")
    (tmp_path / "valid_texts.jsonl").write_text('{"text_id": 1, "text": "a", "image_ids": []}\n')
    with pytest.raises(DataError, match="no text names a picture"):
        open_suite("muge", tmp_path)
    karpathy(tmp_path, "dataset_flickr30k.json", "flickr30k-images", 5)
    (tmp_path / "flickr30k-images" / "0002.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 5 pictures of .* cannot be read, 0 are allowed"):
        run("flickr30k", tmp_path, student)
    karpathy(tmp_path, "dataset_flickr30k.json", "flickr30k-images", 5)
    text = (tmp_path / "dataset_flickr30k.json").read_text()
    (tmp_path / "dataset_flickr30k.json").write_text(text.replace('"test"', '"val"'))
    with pytest.raises(DataError, match="unknown split 'test'"):
        open_suite("flickr30k", tmp_path)


def test_what_ships_is_whole() -> None:
    words = imagenet()
    assert words.keys == tuple(sorted(words.keys))
    assert (len(set(words.keys)), len(words.names or ()), len(set(words.templates))) == (1000, 1000, 80)
    assert dict(zip(words.keys, words.names or (), strict=True))["n02012849"] == "crane bird"
    assert all(template.count("{}") == 1 for template in (*words.templates, *cifar100().templates))
    assert len(set(cifar100(chinese=True).names or ())) == 100
    assert {name.removesuffix("-cn") for name in SUITES} >= {"imagenet", "cifar100", "flickr30k", "coco", "elevater"}

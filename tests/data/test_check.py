"""The check of a data source: it counts rightly, and finds each thing that is wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipdistill.data.check import Report, Spread, check, render
from clipdistill.data.samples import Sample
from clipdistill.data.sources import Samples, from_samples, pairs


def jpeg(colour: int, width: int = 20, height: int = 10) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (colour, 5, 9)).save(buffer, "JPEG")
    return buffer.getvalue()


def listed(*rows: tuple[str, bytes, list[str]], label: str | None = None, uri: str = "mine") -> Samples:
    return from_samples([Sample(name, data, {"": texts}, label) for name, data, texts in rows], uri)


def test_figures() -> None:
    source = listed(("a", jpeg(1), ["a cat", "一只猫"]), ("b", jpeg(2, 40, 8), ["two dogs on a beach"]), label="x")
    report = check(source)
    assert (report.samples, report.captions, report.labels, report.labelled) == (2, 3, 1, 2)
    assert report.width == Spread(20, 30, 40)
    assert report.height == Spread(8, 9, 10)
    assert report.smallest_side == Spread(8, 9, 10)
    assert report.characters == Spread(3, 5, 19)
    assert report.words == Spread(2, 3, 5)
    assert report.chinese == pytest.approx(1 / 3)
    assert (report.errors, report.warnings) == ([], [])


def test_pictures_of_every_kind_are_measured_at_their_full_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(3, 640, 480))
    drawn = np.zeros((480, 640, 3), np.uint8)
    source = from_samples([Sample("a", path, {"": ["x"]}), Sample("b", drawn, {"": ["y"]})])
    assert check(source).width == Spread(640, 640, 640)


def test_unreadable_pictures_are_all_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.jpg").write_bytes(jpeg(1, 300, 300)[:900])
    (tmp_path / "empty.png").touch()
    (tmp_path / "good.jpg").write_bytes(jpeg(1))
    rows = [{"file_name": f"{n}", "text": n} for n in ("text.jpg", "cut.jpg", "empty.png", "good.jpg", "none.jpg")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = check(pairs(tmp_path))
    assert sorted(report.unreadable) == ["cut.jpg", "empty.png", "none.jpg", "text.jpg"]
    assert report.unreadable["none.jpg"] == "there is no such file"
    assert report.unreadable["empty.png"] == "the file is empty"
    assert report.unreadable["text.jpg"].startswith("not a picture")
    assert report.unreadable["cut.jpg"].startswith("truncated or damaged")
    assert report.errors == ["4 pictures cannot be read"]
    assert "none.jpg: there is no such file" in render(report)


def test_the_text_names_twenty_and_the_json_all() -> None:
    report = check(listed(*((f"p{n:02}", b"", [str(n)]) for n in range(25))))
    assert "p19: the file is empty" in render(report)
    assert "p20: the file is empty" not in render(report)
    assert "and 5 more" in render(report)
    assert len(json.loads(report.to_json())["unreadable"]) == 25
    assert "pixels" not in render(report)


def test_missing_and_empty_captions_are_errors() -> None:
    report = check(listed(("a", jpeg(1), []), ("b", jpeg(2), ["  "]), ("c", jpeg(3), ["x", ""])))
    assert report.without_caption == ["a"]
    assert report.with_empty_caption == ["b", "c"]
    assert report.errors == ["1 picture without a caption", "2 pictures with an empty caption"]


def test_labels_alone_need_no_captions() -> None:
    assert check(listed(("a", jpeg(1), []), label="x")).errors == []
    assert check(listed(("a", jpeg(1), []))).errors == ["1 picture without a caption"]


def test_repeated_captions_and_equal_pictures_are_warnings() -> None:
    report = check(
        listed(("a", jpeg(1), ["x", "y"]), ("b", jpeg(1), ["x"]), ("c", jpeg(1), ["x"]), ("d", jpeg(2), ["y"]))
    )
    assert report.errors == []
    assert report.repeated_captions == 3
    assert report.repeated_share == pytest.approx(3 / 5)
    assert report.repeated_most == [("x", 3), ("y", 2)]
    assert report.equal_pictures == [["a", "b", "c"]]
    assert report.warnings == [
        "3 captions equal to an earlier one (60.0%)",
        "2 pictures identical to an earlier one",
    ]


def test_leaked_pictures_are_errors_and_shared_captions_warnings() -> None:
    train = listed(("a", jpeg(1), ["x"]), ("b", jpeg(2), ["y"]))
    test = listed(("t", jpeg(2), ["x"]), ("u", b"broken", [""]), uri="test")
    report = check(train, test)
    assert report.shared_pictures == [("b", "t")]
    assert report.shared_captions == ["x"]
    assert report.errors == ["1 picture also in test (identical bytes)"]
    assert report.warnings == ["1 caption also in test"]
    assert "b is t there" in render(report)


def test_progress_reaches_the_end_and_never_goes_back(tmp_path: Path) -> None:
    source = listed(*((f"p{n}", jpeg(n % 9), [str(n)]) for n in range(150)))
    calls: list[tuple[int, int]] = []
    check(source, listed(("t", jpeg(1), ["x"])), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (151, 151)
    assert calls == sorted(calls)
    assert {total for _, total in calls} == {151}


def test_the_order_of_a_report_does_not_depend_on_the_threads() -> None:
    source = listed(*((f"p{n}", b"" if n % 3 else jpeg(n), [str(n % 5)]) for n in range(60)))
    assert check(source).to_json() == check(source).to_json()


def test_the_json_holds_everything_in_plain_values() -> None:
    report = check(listed(("猫", jpeg(1), ["一只猫"])))
    told = json.loads(report.to_json())
    assert told["width"] == {"low": 20, "median": 20, "high": 20}
    assert told["errors"] == []
    assert set(told) == set(vars(Report(""))) | {"errors", "warnings"}

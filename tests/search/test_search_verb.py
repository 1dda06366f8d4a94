"""The verb search, as it is typed: on an index that the verb index made."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdistill.cli import main
from clipdistill.cli.thumbnails import inline_for, page_of
from clipdistill.data.sources import pairs
from clipdistill.search.query import Answer, Hit
from clipdistill.search.runtime import Runtime
from search.drawn_index import jpeg

COUNT = 12
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, exported: tuple[Path, Any]) -> Path:
    """An index of twelve captioned pictures, of which the last two are one file."""
    folder = tmp_path_factory.mktemp("verb")
    source, lines = pairs(f"scenes:test?n={COUNT}"), []
    (folder / "photos").mkdir()
    for place in range(COUNT):
        sample = source[min(place, COUNT - 2)]
        Image.fromarray(np.asarray(sample.picture)).save(folder / "photos" / f"{place:02d}.png")
        entry = {
            "file_name": f"{place:02d}.png",
            "text": f"[bold]{place}[/bold] \x1b[31m",
            "label": f"kind {place % 2}",
        }
        lines.append(json.dumps(entry))
    (folder / "photos" / "metadata.jsonl").write_text("\n".join(lines))
    words = ["index", str(folder / "photos"), "--model", str(exported[0]), "--out", str(folder / "x.index")]
    assert main([*words, "--workers", "0"]) == 0
    return folder / "x.index"


@pytest.fixture
def run(index: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type the verb; gives exit status, output and talk."""

    def type_it(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["search", str(index), *words])
        return (status, *capsys.readouterr())

    return type_it


def found(run: Run, *words: str) -> Any:
    status, output, talk = run(*words, "--json")
    assert status == 0, talk
    return json.loads(output)


def test_hits_are_a_table_with_the_time_it_took(run: Run) -> None:
    status, output, talk = run("two dogs", "-k", "3", "--no-pictures")
    assert status == 0
    lines = output.splitlines()
    assert lines[0].split() == ["score", "probability", "id", "caption"]
    rows = [
        re.match(r" *(\d+) +(-?\d\.\d{3}) +(?:\d\.\d\d +)?(\d\d)(?:\.png)? +\[bold\]\d+\[/bold\]", line)
        for line in lines[1:4]
    ]
    assert [row[1] for row in rows if row] == ["1", "2", "3"]
    assert "\x1b" not in output
    assert re.search(r"3 hits in \d+\.\d ms; \w+", talk)


def test_json_is_one_object_with_what_a_naive_search_finds(run: Run, index: Path, exported: tuple[Path, Any]) -> None:
    answer = found(run, "two dogs", "-k", "5")
    runtime = Runtime.open(exported[0])
    files = sorted((index.parent / "photos").glob("*.png"))
    scores = runtime.images(files) @ runtime.texts(["two dogs"])[0]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], np.sort(scores)[::-1][:5], atol=1e-5)
    assert answer["version"] == 1
    assert set(answer["hits"][0]) == set(Hit.__dataclass_fields__)


def test_weights_negatives_pictures_and_ids_go_into_the_query(
    run: Run, index: Path, exported: tuple[Path, Any]
) -> None:
    runtime, photos = Runtime.open(exported[0]), index.parent / "photos"
    names = [hit["id"] for hit in found(run, "x", "-k", "50")["hits"]]
    like = next(name for name in names if name.startswith("03"))
    words = ["dogs^2", "cats", "--not", "night", "--image", f"{photos / '01.png'}^0.5", "--like", like]
    answer = found(run, *words, "-k", "50")
    dogs, cats, night = runtime.texts(["dogs", "cats", "night"])
    pictures = runtime.images(sorted(photos.glob("*.png")))
    row = 2 * dogs + cats - 0.5 * night + 0.5 * pictures[1] + pictures[3]
    scores = np.delete(pictures, 3, axis=0) @ (row / np.linalg.norm(row))
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], np.sort(scores)[::-1], atol=1e-5)
    assert {hit["probability"] for hit in answer["hits"]} == {None}


def test_a_filter_and_copies_leave_hits_out(run: Run) -> None:
    assert len(found(run, "x", "--where", "tags has 'kind 1'", "-k", "50")["hits"]) == COUNT // 2
    captions = [hit["caption"] for hit in found(run, "x", "--distinct", "--exact", "-k", "50")["hits"]]
    assert len({"[bold]10[/bold] \x1b[31m", "[bold]11[/bold] \x1b[31m"} & set(captions)) == 1
    status, output, _ = run("x", "--where", "tags has nothing")
    assert (status, output) == (0, "nothing matches: no picture passes the filter\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the query is empty"),
        (["x", "--where", "widht > 3"], "Did you mean 'width'"),
        (["--image", "gone.jpg"], "gone.jpg"),
        (["--like", "nobody"], "no picture with the id 'nobody'"),
        (["x", "y", "--min-precision", "0.9"], "no precision can be promised"),
    ],
)
def test_every_mistake_is_one_message(run: Run, words: list[str], said: str) -> None:
    status, output, talk = run(*words)
    assert (status, output) == (1, "")
    assert talk.startswith("error: ")
    assert said in talk
    assert "Traceback" not in talk


@pytest.mark.parametrize("browser", [True, False])
def test_hits_open_as_a_page_of_one_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, browser: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: opened.append(uri) or browser)
    status, _, talk = run("two <dogs>", "-k", "2", "--open")
    assert status == 0
    (page,) = tmp_path.glob("clipdistill-*.html")
    assert opened == [page.as_uri()]
    assert f"{'opened' if browser else 'no browser was found; open'} {page}" in talk
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,/9j/") == 2
    assert "<h1>two &lt;dogs&gt;</h1>" in text
    assert "<script" not in text
    if os.name == "posix":
        assert page.stat().st_mode & 0o077 == 0


def test_a_pages_words_are_escaped() -> None:
    hit = Hit("<b>", 0.5, 0.25, "", '"><script>alert(1)</script>', (), 1, 1)
    page = page_of("{q} & <i>", Answer((hit,), 0.0, 1, nothing_matches="<none>"), [None])
    assert "<script>" not in page
    assert "&lt;none&gt;" in page
    assert "{q} &amp; &lt;i&gt;" in page
    assert "probability 0.25" in page


def test_terminals_that_show_pictures_are_told_by_their_environment() -> None:
    kitty, iterm = inline_for({"TERM": "xterm-kitty"}), inline_for({"TERM_PROGRAM": "iTerm.app"})
    assert kitty is not None
    assert iterm is not None
    assert inline_for({"TERM": "xterm-256color"}) is None
    assert inline_for({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}) is None
    picture = jpeg(1)
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(picture))
    assert pieces[0][0].startswith("a=T,f=100,")
    assert [head[-1] for head, _ in pieces] == ["1"] * (len(pieces) - 1) + ["0"]
    decoded = Image.open(io.BytesIO(_decoded("".join(data for _, data in pieces))))
    assert (decoded.format, decoded.size) == ("PNG", (8, 6))
    match = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);[^:]*:(.*)\a", iterm(picture))
    assert match is not None
    assert (int(match[1]), _decoded(match[2])) == (len(picture), picture)


@pytest.mark.skipif(os.name != "posix", reason="there is no terminal to be had")
def test_thumbnails_are_shown_in_such_a_terminal(index: Path) -> None:
    """In a real one: as many side by side as fit, and none on demand."""
    import pty
    import termios

    shown = []
    for words in ([], ["--no-pictures"]):
        main_end, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (24, 60))
        command = [sys.executable, "-m", "clipdistill", "search", str(index), "dogs", *words]
        environment = {**os.environ, "TERM": "xterm-kitty", "OMP_NUM_THREADS": "1"}
        environment.pop("TMUX", None)
        process = subprocess.Popen(command, stdout=terminal, stderr=subprocess.DEVNULL, env=environment)
        os.close(terminal)
        shown.append(_read_all(main_end))
        assert process.wait() == 0
    assert shown[0].count(b"\x1b_Ga=T") == 60 // 17
    assert b"\x1b_G" not in shown[1]


def _read_all(end: int) -> bytes:
    parts = []
    with contextlib.suppress(OSError):  # how a terminal ends
        while part := os.read(end, 65536):
            parts.append(part)
    os.close(end)
    return b"".join(parts)


def _decoded(text: str) -> bytes:
    return base64.b64decode(text)


def test_calibrate_tells_what_probabilities_are_from(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "calibrate", str(index)]) == 0
    text, image = capsys.readouterr().out.splitlines()
    assert text.startswith("text queries: no probabilities: the index has 11 different captions, fewer than 20") or (
        text.startswith("text queries: from the model's own curve")
    )
    assert image.startswith("image queries: ")
    assert main(["index", "calibrate", str(index), "--labels", str(index / "gone.jsonl")]) == 1
    assert "gone.jsonl cannot be read" in capsys.readouterr().err

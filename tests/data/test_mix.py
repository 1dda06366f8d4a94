"""Mixes: several sources behind one URI, and batches that draw from each by its weight."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipdistill.data.block_order import BlockOrder
from clipdistill.data.convert import convert
from clipdistill.data.mix_order import MixOrder, random_order
from clipdistill.data.mixing import write_mix
from clipdistill.data.order import Order
from clipdistill.data.samples import Sample, gives
from clipdistill.data.scenes import SceneSource
from clipdistill.data.sources import from_samples, pairs
from clipdistill.data.sources.mix import Mixed
from clipdistill.data.sources.webdataset import Shards
from clipdistill.errors import DataError


def order(sizes: Sequence[int], weights: Sequence[float], batch_size: int, seed: int = 3) -> MixOrder:
    parts = tuple(Order(size, size, 100 * seed + number) for number, size in enumerate(sizes))
    return MixOrder(parts, tuple(weights), batch_size, seed)


def one_by_one(n: int, weights: Sequence[float]) -> list[int]:
    """The same rule, a draw at a time: the next is of the part that is due first."""
    exact = [Fraction(str(weight)) for weight in weights]
    counts = [0] * len(weights)
    for _ in range(n):
        due = [
            (Fraction(2 * count + 1) / weight, part)
            for part, (count, weight) in enumerate(zip(counts, exact, strict=True))
        ]
        counts[min(due)[1]] += 1
    return counts


def by_part(rows: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """The places in each part that some positions of the mix stand for."""
    found: list[list[int]] = [[] for _ in sizes]
    for row in rows:
        part = 0
        while row >= sizes[part]:
            row -= sizes[part]
            part += 1
        found[part].append(row)
    return found


WEIGHTS = st.lists(st.integers(1, 400).map(lambda n: n / 8), min_size=1, max_size=6)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 300), st.integers(1, 7))
def test_what_was_drawn_before_a_batch_is_what_drawing_one_by_one_gives(
    weights: list[float], batch: int, batch_size: int
) -> None:
    plan = order([1000] * len(weights), weights, batch_size)
    assert plan.drawn(batch) == one_by_one(batch * batch_size, weights)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 10**9))
def test_shares_are_exact_in_the_long_run_and_never_far_off(weights: list[float], batch: int) -> None:
    plan = order([1000] * len(weights), weights, 64)
    total = sum(map(Fraction, weights))
    for weight, count in zip(map(Fraction, weights), plan.drawn(batch), strict=True):
        assert abs(count - batch * 64 * weight / total) <= (1 + len(weights) * weight / total) / 2
    cycle = int(8 * total)  # samples after which whole numbers of each part come out
    for weight, count in zip(map(Fraction, weights), plan.drawn(cycle * batch), strict=True):
        assert count == 64 * batch * 8 * weight


def test_a_tenth_is_a_tenth() -> None:
    assert order([99, 99], [0.1, 0.9], 10).drawn(10**6) == [10**6, 9 * 10**6]


def test_each_part_is_walked_by_its_weight_without_repetition_within_a_pass() -> None:
    sizes, weights = [50, 9, 200], [2, 1, 1]
    plan = order(sizes, weights, 16)
    assert plan.batches_per_epoch == 259 // 16
    times = [Counter(dict.fromkeys(range(size), 0)) for size in sizes]
    for _, rows in plan.walk(0, 100):
        # Eight, four and four samples of 16 are whole numbers, so every batch has exactly its share.
        shown = by_part(rows, sizes)
        assert [len(places) for places in shown] == [8, 4, 4]
        for part, places in enumerate(shown):
            times[part].update(places)
            # Nothing comes again before all of its part came.
            assert max(times[part].values()) - min(times[part].values()) <= 1
    assert [sum(seen.values()) for seen in times] == [800, 400, 400]


def test_passes_are_whole_where_batches_divide_them() -> None:
    plan = order([8, 40], [1, 1], 8)
    shown = [by_part(rows, [8, 40]) for _, rows in plan.walk(0, 20)]
    for start in range(0, 20, 2):  # four of the small part in each batch: two batches are a pass
        assert sorted(shown[start][0] + shown[start + 1][0]) == list(range(8))
    passes = [tuple(shown[start][0]) for start in range(0, 20, 2)]
    assert len(set(passes)) > 5
    for start in (0, 10):
        assert sorted(place for batch in shown[start : start + 10] for place in batch[1]) == list(range(40))


def test_samples_that_come_again_are_shown_in_another_view() -> None:
    for sizes, weights in (([8, 80], [1, 1]), ([7, 11, 23], [1, 2, 1]), ([9, 9], [1, 1])):
        views: dict[int, list[int]] = {}
        for view, rows in order(sizes, weights, 8).walk(0, 200):
            for row in set(rows):  # where a pass ends inside a batch, twice in it
                views.setdefault(row, []).append(view)
        assert all(len(set(seen)) == len(seen) > 5 for seen in views.values())


@pytest.mark.parametrize("stored", [2, 3, 8, 16])
@pytest.mark.parametrize("sizes", [[8, 80], [8, 8], [8, 8, 8, 8]])
def test_the_views_of_a_store_take_turns(sizes: list[int], stored: int) -> None:
    views: dict[int, list[int]] = {}
    for view, rows in order(sizes, [1] * len(sizes), 8).walk(0, 16 * 4):
        for row in rows:
            views.setdefault(row, []).append(view % stored)
    for row in range(8):  # in the part that is walked most often
        assert views[row] == [number % stored for number in range(len(views[row]))]
        assert len(views[row]) >= 16


@pytest.mark.parametrize("sizes", [[50, 9, 200], [7, 7, 7]])
def test_a_walk_from_any_batch_is_the_rest_of_the_walk(sizes: list[int]) -> None:
    whole = list(order(sizes, [3, 0.5, 1], 9).walk(0, 60))
    for start in (1, 5, 17, 59):
        assert list(order(sizes, [3, 0.5, 1], 9).walk(start, 60)) == whole[start:]
    assert list(order(sizes, [3, 0.5, 1], 9, seed=4).walk(0, 60)) != whole
    assert len({tuple(sorted(rows)) for _, rows in whole}) > 50


def test_a_batch_is_shuffled_over_its_parts() -> None:
    # Were it not, the first slice of a distributed batch would be of the first part alone.
    firsts = [sum(row < 100 for row in rows[:8]) for _, rows in order([100, 100], [1, 1], 16).walk(0, 12)]
    assert 2 < sum(firsts) / len(firsts) < 6
    assert len(set(firsts)) > 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="a batch of 30 does not fit into the 20 samples of the mix"):
        order([10, 10], [1, 1], 30)
    with pytest.raises(DataError, match=r"part 2 of the mix has 5 samples, and its weight asks for 7.5 of them"):
        order([100, 5], [1, 3], 10)


# Files


def write_folder(folder: Path, names: Sequence[str], **more: str) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for number, name in enumerate(names):
        Image.new("RGB", (9, 7), (number, 90, len(folder.name))).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": f"{folder.name} {name}", **more}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def problem(uri: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        pairs(uri)
    return str(caught.value)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_folder(tmp_path / "photos", ["a.png", "b.png", "c.png"], label="photo")
    write_folder(tmp_path / "icons", ["d.png", "e.png"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_mix_is_written_relative_to_its_file_and_opens_from_anywhere(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_mix(["photos?caption=text=3", f"{desk}/icons=0.5", "scenes:train?n=4=1"], "runs/a/mix.yaml")
    assert (desk / "runs/a/mix.yaml").read_text() == (
        "mix:\n- data: ../../photos?caption=text\n  weight: 3\n"
        f"- data: {desk}/icons\n  weight: 0.5\n- data: scenes:train?n=4\n  weight: 1\n"
    )
    assert made.weights == (3.0, 0.5, 1.0)
    monkeypatch.chdir("/")
    mixed = pairs(desk / "runs/a/mix.yaml")
    assert [mixed[index].id for index in range(len(mixed))] == [
        *("a.png", "b.png", "c.png", "d.png", "e.png"),
        *(f"train/00000{number}" for number in range(4)),
    ]
    assert mixed[4].captions == ["icons e.png"]
    assert mixed[0].label == "photo"
    assert mixed[3].label is None
    assert gives(mixed) == "IT"
    with pytest.raises(IndexError, match="has 9 samples, asked for position 9"):
        mixed[9]


def test_ids_are_told_apart_only_where_they_clash(desk: Path) -> None:
    write_folder(desk / "more", ["c.png", "d.png"])
    assert write_mix(["photos=1", "icons=1"], "apart.yaml")[3].id == "d.png"
    clashing = write_mix(["photos=1", "more=1"], "clash.yaml")
    assert [clashing[index].id for index in range(5)] == ["1/a.png", "1/b.png", "1/c.png", "2/c.png", "2/d.png"]


def test_ids_are_known_without_reading_samples(tmp_path: Path) -> None:
    scenes = pairs("scenes:train?n=6&copies=2")
    assert isinstance(scenes, SceneSource)
    names = [scenes.id_of(index) for index in range(12)]
    assert not scenes._blocks  # nothing was drawn
    assert names == [scenes[index].id for index in range(12)]
    for own, name in ((False, "key {}"), (True, "dir/{}.png")):
        few = [Sample(name.format(n), None, {"": [str(n)]}) for n in range(5)]
        made = pairs(convert(from_samples(few), tmp_path / str(own), "shards", per_file=2).uri)
        assert isinstance(made, Shards)
        assert [made.id_of(index) for index in range(5)] == [one.id for one in few] == [made[n].id for n in range(5)]


def test_paths_of_every_kind_are_kept_relative(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk / "lists").mkdir()
    rows = [{"id": 1, "file_name": "a.png"}]
    told = [{"image_id": 1, "caption": "one"}]
    (desk / "lists/captions_x.json").write_text(json.dumps({"images": rows, "annotations": told}))
    write_mix(["lists/captions_x.json?images=photos=1", "scenes:test?n=2=1"], "lists/mix.yaml")
    assert "data: captions_x.json?images=../photos\n" in (desk / "lists/mix.yaml").read_text()
    monkeypatch.chdir("/")
    assert pairs(desk / "lists/mix.yaml")[0].image == desk / "lists/../photos/a.png"


def test_the_fingerprint_is_of_the_parts_and_their_weights(desk: Path) -> None:
    words = {name: write_mix(parts, f"{name}.yaml").fingerprint for name, parts in WORDS.items()}
    assert words["a"] == pairs("a.yaml").fingerprint
    assert len(set(words.values())) == 3


WORDS = {"a": ["photos=3", "icons=1"], "b": ["photos=2", "icons=1"], "c": ["icons=1", "photos=3"]}


def test_the_order_of_a_mix_follows_its_weights(desk: Path) -> None:
    mixed = write_mix(["photos=1", "icons=1"], "mix.yaml")
    plan = random_order(mixed, 4, 0)
    assert isinstance(plan, MixOrder)
    assert [sum(row < 3 for row in rows) for _, rows in plan.walk(0, 6)] == [2] * 6
    firsts = [by_part(rows, [3, 2])[0] for _, rows in plan.walk(0, 3)]
    assert sorted(place for places in firsts for place in places) == [0, 0, 1, 1, 2, 2]
    assert isinstance(random_order(pairs("photos"), 2, 0), Order)


def test_parts_of_equal_size_are_not_walked_alike() -> None:
    samples = [Sample(str(number), None, {"": ["x"]}) for number in range(40)]
    mixed = Mixed("mix", [from_samples(samples), from_samples(samples)], (1.0, 1.0), ("1/", "2/"))
    _, rows = next(random_order(mixed, 40, 0).walk(0, 1))
    one, two = by_part(rows, [40, 40])
    assert set(one) != set(two)


class Blocks:
    """A source whose samples are fetched in blocks of five."""

    uri, fingerprint, blocks = "far", "0", [5] * 40

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"far {index}", None, {"": ["x"]})


def test_a_part_that_is_fetched_in_blocks_is_walked_block_by_block() -> None:
    near = from_samples([Sample(str(number), None, {"": ["x"]}) for number in range(100)])
    mixed = Mixed("mix", [near, Blocks()], (1.0, 1.0), ("", ""))
    assert mixed.blocks == [100, *[5] * 40]
    plan = random_order(mixed, 20, 0)
    assert isinstance(plan, MixOrder)
    assert isinstance(plan.parts[1], BlockOrder)
    shown = [place for _, rows in plan.walk(0, 20) for place in by_part(rows, [100, 200])[1]]
    assert sorted(shown) == list(range(200))
    assert Mixed("mix", [near], (1.0,), ("",)).blocks is None


def test_samples_can_be_left_out_of_a_mix(desk: Path) -> None:
    write_folder(desk / "more", ["c.png", "d.png"])
    mixed = write_mix(["photos=3", "more=1"], "mix.yaml").keep([4, 0, 2])
    assert [mixed[index].id for index in range(3)] == ["1/a.png", "1/c.png", "2/d.png"]
    assert mixed.weights == (3.0, 1.0)
    with pytest.raises(DataError, match="no sample of more is left"):
        mixed.keep([0, 1])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["photos"], "photos: found no weight, expected DATA=WEIGHT"),
        (["=3"], "found no weight"),
        (["photos=x"], "photos=x: found no weight"),
        (["photos=0"], "the weight is 0.0, expected a number above 0"),
        (["photos=inf"], "expected a number above 0"),
        (
            ["photos=1", "./icons/../photos=2"],
            "./icons/../photos has the same ids, captions and sizes .* as photos; name",
        ),
        (["photos=1", "phots=1"], "part 2 .phots.: phots: there is no such file or folder. Did you mean photos"),
        (["photos=1", "photos=2"], "photos is named twice; name it once, with the sum of the weights"),
        (["photos=1", "words.txt=2"], "photos gives pictures and captions, words.txt captions alone"),
        (["photos=1", "nested.yaml=2"], "part 2 .nested.yaml.: it is a mix itself"),
        ([], "a mix needs parts"),
    ],
)
def test_a_mix_that_cannot_be_is_not_written(desk: Path, parts: list[str], message: str) -> None:
    (desk / "words.txt").write_text("a caption\n")
    (desk / "nested.yaml").write_text("mix: [{data: icons, weight: 1}]")
    with pytest.raises(DataError, match=message):
        write_mix(parts, "out/mix.yaml")
    assert not list(desk.glob("*out*"))


def test_a_file_is_not_overwritten(desk: Path) -> None:
    (desk / "mix.yaml").write_text("mine")
    with pytest.raises(DataError, match="there is such a file already"):
        write_mix(["photos=1"], "mix.yaml")
    with pytest.raises(DataError, match=r"a file that ends in \.yaml"):
        write_mix(["photos=1"], "mix.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mix: [", "not readable YAML"),
        ("- a", "found list, expected one key 'mix'"),
        ("data: photos\nrecipe: clip", "found the keys data, recipe, expected one key 'mix'"),
        ("mix: []", "expected one key 'mix' with a list"),
        ("mix: [photos]", "part 1: found photos, expected {data: URI, weight: 3}"),
        ("mix: [{data: photos, wieght: 3}]", "part 1: found"),
        ("mix: [{data: photos, weight: true}]", "the weight is True"),
        ("mix: [{data: photos, weight: -1}]", "the weight is -1, expected a number above 0"),
    ],
)
def test_a_file_that_is_no_mix(desk: Path, text: str, message: str) -> None:
    (desk / "mix.yaml").write_text(text)
    assert message in problem("mix.yaml")


def test_columns_are_chosen_in_the_parts(desk: Path) -> None:
    write_mix(["photos=1"], "mix.yaml")
    assert "choose them in its parts" in problem("mix.yaml?caption=text")


def test_commands_of_a_file_are_not_run(desk: Path) -> None:
    """Whoever wrote a mix is not who opens it."""
    command = f"pipe:touch {desk}/ran; cat x.tar"
    (desk / "mix.yaml").write_text(json.dumps({"mix": [{"data": command, "weight": 1}]}))
    assert "a command is run only where you name it yourself, and a file names this one" in problem("mix.yaml")
    with pytest.raises(DataError, match="a command is run only where you name it yourself"):
        write_mix([f"{command}=1"], "new.yaml")
    assert not (desk / "ran").exists()
    assert not (desk / "new.yaml").exists()

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from random import Random

import numpy as np
import pytest

from clipdistill.data import scene_space
from clipdistill.data.captions import CHINESE, ENGLISH, ENGLISH_JUNK, INVERSE, caption, prompts
from clipdistill.data.drawing import draw
from clipdistill.data.scene_space import Object, Scene
from clipdistill.data.scenes import BLOCK, SceneSource, open_scenes, parse
from clipdistill.errors import DataError

LEARNING = ("teacher", "train", "validation", "test")


def source(uri: str) -> SceneSource:
    opened = open_scenes(uri)
    assert isinstance(opened, SceneSource)
    return opened


def shown(uri: str) -> list[Scene]:
    opened = source(uri)
    return [opened.scene(index) for index in range(len(opened))]


def test_a_source_gives_pictures_captions_and_ids() -> None:
    opened = open_scenes("scenes:test?n=3")
    samples = list(opened)  # type: ignore[call-overload]
    assert [sample.id for sample in samples] == ["test/000000", "test/000001", "test/000002"]
    assert samples[0].image.shape == (48, 48, 3)
    assert samples[0].image.dtype == np.uint8
    assert [len(sample.captions) for sample in samples] == [1, 1, 1]
    assert {sample.group for sample in samples} == {sample.label for sample in samples} == {None}
    assert opened[-1].id == "test/000002"
    with pytest.raises(IndexError):
        opened[3]


def test_the_same_uri_gives_the_same_data_in_another_process() -> None:
    uri = "scenes:train?n=20&lang=both&captions=2"
    script = (
        "import sys, hashlib\n"
        "from clipdistill.data.scenes import open_scenes\n"
        f"opened = open_scenes({uri!r})\n"
        "parts = [repr(s.captions).encode() + s.image.tobytes() for s in map(opened.__getitem__, range(20))]\n"
        "print(hashlib.sha256(b''.join(parts)).hexdigest(), opened.fingerprint, 'torch' in sys.modules)"
    )
    answers = {subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout for _ in "ab"}
    assert len(answers) == 1
    assert answers.pop().decode().split()[1:] == [open_scenes(uri).fingerprint, "False"]


def test_another_seed_gives_other_data_and_another_fingerprint() -> None:
    one, two = source("scenes:train?n=50"), source("scenes:train?n=50&seed=1")
    assert [one.scene(i) for i in range(50)] != [two.scene(i) for i in range(50)]
    assert one.fingerprint != two.fingerprint
    assert one.fingerprint != open_scenes("scenes:train?n=50&drop=0.2").fingerprint


def test_a_picture_does_not_depend_on_how_many_are_asked_for() -> None:
    few, many = (
        source("scenes:train?n=7"),
        source(f"scenes:train?n={BLOCK + 9}&captions=3&copies=2&lang=both"),
    )
    for index in range(7):
        assert few.scene(index) == many.scene(2 * index)
        assert np.array_equal(few[index].image, many[2 * index].image)  # type: ignore[arg-type]
        assert few[index].captions[0] == many[2 * index].captions[0]


def test_a_picture_depends_on_its_own_scene_alone() -> None:
    codes = scene_space.part("train", 2)[:6]
    scenes = [scene_space.scene(int(code)) for code in codes]
    swapped = [scenes[0], *scenes[3:], *scenes[1:3]]
    one, two = draw(scenes, np.random.default_rng(5)), draw(swapped, np.random.default_rng(5))
    assert np.array_equal(one[0], two[0])
    assert not np.array_equal(one[1], two[1])


def test_parts_cover_the_space_and_never_share_a_scene() -> None:
    for objects, total in ((1, 56 * 6 * 6), (2, 1_330_560)):
        codes = np.concatenate([scene_space.part(name, objects) for name in LEARNING])
        assert len(codes) == len(np.unique(codes)) == total
        shares = [len(scene_space.part(name, objects)) / total for name in LEARNING]
        assert shares == pytest.approx([0.4, 0.4, 0.1, 0.1], abs=0.001)


def test_splits_never_share_a_scene_whatever_the_seed() -> None:
    sets = {name: set(shown(f"scenes:{name}?n=1000&seed={seed}")) for seed, name in enumerate(LEARNING)}
    for name in LEARNING:
        others = set().union(*(sets[other] for other in LEARNING if other != name))
        assert not sets[name] & others
    zeroshot = set(shown("scenes:zeroshot?seed=9"))
    assert not zeroshot & (sets["teacher"] | sets["train"] | sets["validation"])


def test_validation_and_test_show_no_scene_twice() -> None:
    for name in ("validation", "test"):
        for seed in (0, 1):
            assert len(set(shown(f"scenes:{name}?seed={seed}"))) == 1000


def test_every_split_has_the_same_share_of_single_objects() -> None:
    for uri in ("teacher?n=6000", "train", "train?n=6000&seed=3", "validation", "test", "test?n=100"):
        scenes = shown(f"scenes:{uri}")
        assert sum(len(scene.objects) == 1 for scene in scenes) / len(scenes) == pytest.approx(0.2)


def test_held_out_combinations_appear_in_zeroshot_alone() -> None:
    held = {(thing.shape, thing.colour) for thing in scene_space.OBJECTS if thing.held_out}
    assert len(held) == 8
    for name in LEARNING:
        scenes = shown(f"scenes:{name}?n=1000")
        assert not held & {(thing.shape, thing.colour) for scene in scenes for thing in scene.objects}
    zeroshot = [scene.objects for scene in shown("scenes:zeroshot")]
    assert {len(objects) for objects in zeroshot} == {1}
    assert sum(objects[0].held_out for objects in zeroshot) == 200
    assert {(objects[0].shape, objects[0].colour) for objects in zeroshot if objects[0].held_out} == held


def test_the_two_objects_of_a_scene_differ_in_shape_or_colour() -> None:
    for scene in shown("scenes:train?n=2000"):
        if len(scene.objects) == 2:
            first, second = scene.objects
            assert (first.shape, first.colour) != (second.shape, second.colour)


def test_copies_share_scene_and_group_but_not_pixels() -> None:
    opened = source("scenes:test?n=4&copies=2")
    assert len(opened) == 8
    assert [opened[i].id for i in range(3)] == ["test/000000-1", "test/000000-2", "test/000001-1"]
    for index in range(0, 8, 2):
        one, two = opened[index], opened[index + 1]
        assert one.group == two.group == f"test/{index // 2:06d}"
        assert opened.scene(index) == opened.scene(index + 1)
        assert not np.array_equal(one.image, two.image)  # type: ignore[arg-type]


def test_zeroshot_labels_are_the_classes_of_the_prompts() -> None:
    labels, ensembles = prompts()
    assert len(labels) == len(set(labels)) == 48
    opened = source("scenes:zeroshot")
    counts = Counter(opened[index].label for index in range(len(opened)))
    assert set(counts) == set(labels)
    assert opened[0].label == opened.scene(0).objects[0].label
    for language in ("en", "zh"):
        assert [len(set(texts)) for texts in ensembles[language]] == [48] * 48
    big_red_plain = labels.index("big red plain")
    assert "a big red plain circle on grass" in ensembles["en"][big_red_plain]
    assert "草地上的大红色纯色圆形" in ensembles["zh"][big_red_plain]


# Captions.

CONCEPT = {word: concept for concept, ways in ENGLISH.items() for way in ways for word in way.split()}
LINKS = {way: concept for concept in ("left", "right", "above", "below") for way in ENGLISH[concept]}


def mentions(text: str) -> list[set[str]]:
    """The concepts of each noun phrase of an English caption: one set per article, the background in the last."""
    groups: list[set[str]] = []
    for word in text.split():
        if word in ("a", "an"):
            groups.append(set())
        elif word not in ("to", "the", "of", "on", "left", "right", "above", "over", "below", "under", "and"):
            groups[-1].add(CONCEPT[word])
    return groups


def concepts(thing: Object) -> set[str]:
    return {thing.size, thing.colour, thing.texture, thing.shape}


def relation_of(text: str) -> str:
    padded = f" {text} "
    found = {concept for way, concept in LINKS.items() if f" {way} " in padded}
    assert len(found) == 1
    return found.pop()


def test_full_captions_agree_with_the_scene() -> None:
    opened = source("scenes:test?captions=3")
    inverse = 0
    for index in range(0, 1000, 3):
        scene = opened.scene(index)
        for text in opened[index].captions:
            said, objects = mentions(text), list(scene.objects)
            if scene.relation is not None and relation_of(text) != scene.relation:
                assert relation_of(text) == INVERSE[scene.relation]
                objects, inverse = objects[::-1], inverse + 1
            assert len(said) == len(objects)
            assert scene.background in said[-1]
            said[-1].discard(scene.background)
            for words, thing in zip(said, objects, strict=True):
                # "plain" may go without saying.
                assert words | {"plain"} == concepts(thing) | {"plain"}
                assert ("plain" in words) <= (thing.texture == "plain")
    assert 0.28 < inverse / (3 * 334 * 0.8) < 0.39


def test_careless_captions_say_less_but_nothing_false() -> None:
    opened = source("scenes:train?n=500&mismatch=0&fill=0")
    full = 0
    for index in range(500):
        scene, said = opened.scene(index), mentions(opened[index].captions[0])
        allowed = set().union(*map(concepts, scene.objects)) | {"shape", scene.background}
        assert set().union(*said) <= allowed
        full += len(said) == len(scene.objects)
    assert 0.7 < full / 500 < 0.85  # a fifth single, four fifths with both objects said in 70%


def test_junk_stands_in_the_asked_share_of_captions() -> None:
    opened = open_scenes("scenes:test?n=500&fill=0.5&drop=0")
    junk = sum(bool(set(ENGLISH_JUNK) & set(opened[index].captions[0].split())) for index in range(500))
    assert 0.43 < junk / 500 < 0.57


def test_noisy_is_the_share_of_careless_captions() -> None:
    opened = open_scenes("scenes:teacher?n=500&fill=1")
    junk = [bool(set(ENGLISH_JUNK) & set(text.split())) for i in range(500) for text in opened[i].captions]
    assert len(junk) == 2000
    assert 0.27 < np.mean(junk) < 0.33


def test_mismatched_captions_have_the_asked_share() -> None:
    opened = source("scenes:validation?mismatch=0.2")
    wrong = 0
    for index in range(1000):
        scene = opened.scene(index)
        allowed = set().union(*map(concepts, scene.objects)) | {scene.background}
        wrong += not set().union(*mentions(opened[index].captions[0])) <= allowed
    assert 0.16 < wrong / 1000 < 0.24


def test_english_uses_the_right_article() -> None:
    opened = open_scenes("scenes:train?n=500&fill=0")
    texts = [opened[index].captions[0] for index in range(500)]
    assert not [text for text in texts if " a orange" in f" {text}"]
    assert [text for text in texts if "an orange" in text]


def test_chinese_captions_tell_the_scene_too() -> None:
    opened = source("scenes:test?n=200&lang=zh")
    for index in range(200):
        scene, text = opened.scene(index), opened[index].captions[0]
        assert not any("a" <= letter <= "z" for letter in text)
        for concept in (
            scene.background,
            *(c for thing in scene.objects for c in concepts(thing) - {"plain"}),
        ):
            assert any(way in text for way in CHINESE[concept])
        if scene.relation is not None:
            ways = CHINESE[scene.relation] + CHINESE[INVERSE[scene.relation]]
            assert text.endswith(ways)


def test_chinese_grammar_by_eye() -> None:
    red, blue = Object("big", "red", "striped", "triangle"), Object("small", "blue", "striped", "diamond")
    pair = Scene((red, blue), "left", "sky")
    usual = {word for way in ("左边", "左侧") for word in [f"天空中大红色条纹三角形在小蓝色条纹菱形{way}"]}
    inverse = {f"天空中小蓝色条纹菱形在大红色条纹三角形{way}" for way in ("右边", "右侧")}
    told = {caption(pair, "zh", Random(seed)) for seed in range(200)}
    assert usual | inverse <= told
    assert "天空中的大红色条纹三角形" in {caption(Scene((red,), None, "sky"), "zh", Random(s)) for s in range(50)}


def test_both_languages_stand_side_by_side() -> None:
    both = open_scenes("scenes:teacher?n=1&lang=both&captions=2")[0].captions
    english = open_scenes("scenes:teacher?n=1&captions=2")[0].captions
    chinese = open_scenes("scenes:teacher?n=1&lang=zh&captions=2")[0].captions
    assert both == english + chinese


# Errors.


def test_defaults_differ_by_split() -> None:
    split, options = parse("scenes:teacher?seed=4")
    assert (split, options.n, options.captions, options.noisy, options.seed) == ("teacher", 24000, 4, 0.3, 4)
    assert parse("scenes:train")[1].mismatch == 0.1


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("scenes:trian", "no split 'trian'.*Did you mean 'train'"),
        ("scenes:", "no split ''.*Known: teacher, test"),
        ("scenes:train?size=3", "no option 'size'.*Known: captions, copies"),
        ("scenes:train?caption=3", "Did you mean 'captions'"),
        ("scenes:train?n=many", "n=many should be a whole number"),
        ("scenes:train?n=", "n= should be a whole number"),
        ("scenes:train?n=0", "n=0 should be 1 or more"),
        ("scenes:train?drop=1.5", "drop=1.5 should be a share from 0 to 1"),
        ("scenes:train?drop=nan", "drop=nan should be a share"),
        ("scenes:train?lang=fr", "no language 'fr'.*Known: both, en, zh"),
        ("scenes:validation?n=5000", "can supply 1009 scenes at most"),
    ],
)
def test_a_wrong_uri_is_a_clear_error(uri: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_scenes(uri)


def test_the_largest_unique_split_is_still_unique() -> None:
    assert len(set(shown("scenes:validation?n=1009"))) == 1009

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdistill.errors import DataError
from clipdistill.evaluation.retrieval import image_image, matches, pictures_of_texts, text_image, texts_of_pictures

AXES = np.eye(4)


def test_perfect_embeddings_find_everything() -> None:
    result = text_image(AXES, AXES[[0, 0, 1, 2, 3]], [0, 0, 1, 2, 3])
    assert set(result) == {
        *(f"{way}_R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)),
        "mean_recall",
    }
    assert set(result.values()) == {100.0}


def test_two_captions_of_a_picture_by_eye() -> None:
    # Caption 1 of picture 0 lies on picture 1; picture 0 is still found by its other caption.
    result = text_image(AXES[:2], AXES[[0, 1, 1]] + 0.01 * AXES[[2, 2, 3]], [0, 0, 1])
    assert result["text_to_image_R@1"] == pytest.approx(200 / 3)
    assert result["image_to_text_R@1"] == pytest.approx(50)  # picture 1: captions 1 and 2 are equally near
    assert result["mean_recall"] == pytest.approx((200 / 3 + 50 + 4 * 100) / 6)


def test_equal_captions_and_equal_groups_are_positives() -> None:
    texts = AXES[[1, 0, 2]]  # captions 0 and 1 point at each other's picture
    owner = [0, 1, 2]
    assert text_image(AXES[:3], texts, owner)["text_to_image_R@1"] == pytest.approx(100 / 3)
    for extra in ({"captions": ["A  dog", "a dog ", "a cat"]}, {"groups": ["g", "g", None]}):
        result = text_image(AXES[:3], texts, owner, **extra)  # type: ignore[arg-type]
        assert result["text_to_image_R@1"] == result["image_to_text_R@1"] == 100
    apart = text_image(AXES[:3], texts, owner, groups=["g", "h", None], captions=["a", "b", "c"])
    assert apart["text_to_image_R@1"] == pytest.approx(100 / 3)


def test_a_picture_without_captions_is_in_the_gallery_but_asks_nothing() -> None:
    result = text_image(AXES[[0, 1, 1]], AXES[:2], [0, 1])
    assert result["image_to_text_R@1"] == 100
    assert result["text_to_image_R@1"] == 50  # picture 2 is as near to caption 1 as its own picture


def naive_hit(similarities: list[float], positives: set[int], k: int) -> bool:
    best = max(similarities[i] for i in positives)
    return 1 + sum(x >= best for i, x in enumerate(similarities) if i not in positives) <= k


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 12), kinds=st.integers(1, 12))
def test_agrees_with_double_loops(seed: int, size: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    images, texts = rng.standard_normal((size, 3)), rng.standard_normal((2 * size, 3))
    owner = rng.permutation(np.arange(2 * size) % size)
    captions = [f"caption {i}" for i in rng.integers(0, 3 * kinds, 2 * size)]
    groups = [None if i == 0 else f"group {i}" for i in rng.integers(0, kinds, size).tolist()]

    def related(text: int, picture: int) -> bool:
        own = int(owner[text])
        told = {captions[other] for other in range(2 * size) if owner[other] == picture}
        return own == picture or (groups[own] == groups[picture] != None) or captions[text] in told  # noqa: E711

    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts)]
    cosines = (unit[1] @ unit[0].T).tolist()
    asked_by_text = [naive_hit(cosines[t], {p for p in range(size) if related(t, p)}, 1) for t in range(2 * size)]
    asked_by_image = [
        naive_hit([row[p] for row in cosines], {t for t in range(2 * size) if related(t, p)}, 1) for p in range(size)
    ]
    keys = (
        [(number, name) for number, name in enumerate(groups)] if seed % 2 else groups
    )  # a key of its own says nothing
    keys = [(number,) if name is None else key for number, (name, key) in enumerate(zip(groups, keys, strict=True))]
    result = text_image(images, texts, owner, groups=keys, captions=captions)
    assert result["text_to_image_R@1"] == pytest.approx(100 * np.mean(asked_by_text))
    assert result["image_to_text_R@1"] == pytest.approx(100 * np.mean(asked_by_image))


def test_image_to_image_by_eye() -> None:
    angles = np.radians([0, 10, 30, 90, 100])
    images = np.stack([np.cos(angles), np.sin(angles)], 1)
    keys = ["a", "a", "b", "b", None]
    # 0 finds 1 at once, 1 finds 0 at once, 2 finds 3 third after 1 and 0, 3 finds 2 second after 4.
    result = image_image(images, keys)
    assert result["image_to_image_R@1"] == pytest.approx(50)
    assert result["image_to_image_R@5"] == pytest.approx(100)
    assert result["image_to_image_mAP"] == pytest.approx(100 * (1 + 1 + 1 / 3 + 1 / 2) / 4)
    assert result["image_to_image_left_out"] == 1


def test_a_key_of_its_own_has_nothing_to_find() -> None:
    assert image_image(AXES, ["a", "a", "b", None])["image_to_image_left_out"] == 2
    assert image_image(AXES, ["a", "b", None, None]) == {"image_to_image_left_out": 4}


def test_lengths_that_do_not_fit_are_errors() -> None:
    with pytest.raises(DataError, match="1 owners, not 2"):
        text_image(AXES, AXES[:2], [0])
    with pytest.raises(DataError, match="1 captions, not 2"):
        text_image(AXES, AXES[:2], [0, 1], captions=["a"])
    with pytest.raises(DataError, match="owners go from 0 to 4, but there are only 4"):
        text_image(AXES, AXES[:2], [0, 4])
    with pytest.raises(DataError, match="4 pictures but 1 keys"):
        image_image(AXES, ["a"])


def test_positives_that_are_the_same_are_held_once() -> None:
    """Of 100,000 pictures in few classes each would else hold an array as long as its class."""
    keys = [(f"bytes {number}", ("label", number % 3)) for number in range(60)]
    alike = matches(keys)
    assert [own.tolist() for own in alike] == [list(range(number % 3, 60, 3)) for number in range(60)]
    assert len(set(map(id, alike))) == 3
    captions = [f"caption {number}" if number < 30 else "a picture" for number in range(60)]
    answers = pictures_of_texts(range(60), keys, captions)
    everything = sorted({*range(30, 60), *range(0, 60, 3)})
    assert answers[3].tolist() == alike[3].tolist()
    assert answers[33].tolist() == everything
    assert len(set(map(id, answers))) == 6
    texts = texts_of_pictures(answers, 61)
    naive = [[text for text in range(60) if picture in answers[text]] for picture in range(61)]
    assert [own.tolist() for own in texts] == naive
    assert len(set(map(id, texts))) == 7

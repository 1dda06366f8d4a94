from __future__ import annotations

import numpy as np
import pytest

from clipdistill.errors import ConfigError, DataError
from clipdistill.evaluation.zeroshot import TEMPLATES, class_embeddings, classify, prompts_for

AXES = np.eye(6)


def test_every_picture_on_its_class_is_right() -> None:
    assert classify(AXES, AXES, range(6)) == {
        "zeroshot_acc1": 100.0,
        "zeroshot_acc5": 100.0,
        "zeroshot_mean_per_class_recall": 100.0,
    }


def test_mean_per_class_recall_weighs_classes_equally() -> None:
    images = AXES[[0, 0, 0, 5]]
    result = classify(images, AXES, [0, 0, 0, 1])  # three of class 0 right, one of class 1 wrong
    assert result["zeroshot_acc1"] == 75
    assert result["zeroshot_mean_per_class_recall"] == 50


def test_top_five_and_ties_by_eye() -> None:
    image = np.array([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    assert [classify(image, AXES, [c])["zeroshot_acc5"] for c in range(6)] == [100] * 5 + [0]
    assert classify(np.ones((1, 6)), AXES, [3])["zeroshot_acc1"] == 0
    assert classify(np.ones((1, 6)), AXES, [3])["zeroshot_acc5"] == 0


def test_labels_must_fit() -> None:
    with pytest.raises(DataError, match="labels go from 0 to 6, but there are 6 classes"):
        classify(AXES[:2], AXES, [0, 6])
    with pytest.raises(DataError, match="2 pictures but 1 labels"):
        classify(AXES[:2], AXES, [0])


def test_a_class_is_the_mean_of_its_unit_prompts() -> None:
    prompts = np.array([[10.0, 0.0], [0.0, 1.0], [0.0, 3.0]])  # the long first row counts no more than the second
    expected = np.array([[0.5**0.5, 0.5**0.5], [0.0, 1.0]])
    assert class_embeddings(prompts, [2, 1]) == pytest.approx(expected)
    for sizes in ([2, 2], [3, 0]):
        with pytest.raises(DataError, match="3 prompts cannot be 2 classes"):
            class_embeddings(prompts, sizes)


def test_prompts_put_each_name_into_each_template() -> None:
    english = prompts_for(["dog", "cat"], "en")
    assert len(english) == 2
    assert "a photo of a dog." in english[0]
    assert "a photo of a cat." in english[1]
    assert prompts_for(["狗"], "zh")[0][1] == "一张狗的照片。"
    for language, templates in TEMPLATES.items():
        assert all(template.count("{}") == 1 for template in templates)
        assert len(set(prompts_for(["x"], language)[0])) == len(templates)
    with pytest.raises(ConfigError, match=r"no prompt templates in 'fr'.*Known: en, zh"):
        prompts_for(["chien"], "fr")

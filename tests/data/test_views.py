"""Views: drawn alike everywhere, within their ranges, and applied the same way by every model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from clipdistill.data.views import Augmentation, Drawn, Transform, View, draw, pick
from clipdistill.errors import ModelError

PLAIN = Transform((16, 16), rescale=1.0)


def ramp() -> Image.Image:
    values = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
    return Image.fromarray(values)


def test_a_draw_never_changes() -> None:
    view = draw(7, "猫/cat.jpg", 3, Augmentation(crop=(0.5, 1.0), flip=0.5, colour=1.0), (640, 480))
    assert view.flip is True
    box = (0.22213637768644715, 0.04610240913772001, 0.9141199998369955, 0.9267082284606728)
    assert view.box == pytest.approx(box, abs=1e-12)
    assert view.gain == pytest.approx(1.0184467329035731, abs=1e-12)
    assert pick(7, "猫/cat.jpg", 3, 1000) == 97


def test_draws_differ_by_seed_sample_and_view() -> None:
    keys = [(seed, name, view) for seed in (0, 1) for name in ("a", "b") for view in (0, 1)]
    boxes = {draw(*key, Augmentation(crop=(0.3, 1.0)), (100, 100)).box for key in keys}
    assert len(boxes) == len(keys)


@pytest.mark.parametrize("size", [(100, 100), (640, 480), (300, 400), (1, 500), (5000, 1)])
def test_boxes_lie_within_the_picture_and_the_ranges(size: tuple[int, int]) -> None:
    augmentation = Augmentation(crop=(0.3, 0.8))
    for number in range(300):
        x0, y0, x1, y1 = draw(0, "a", number, augmentation, size).box
        assert 0.0 <= x0 < x1 <= 1.0
        assert 0.0 <= y0 < y1 <= 1.0
        ratio = (x1 - x0) * size[0] / ((y1 - y0) * size[1])
        assert 3 / 4 - 1e-9 <= ratio <= 4 / 3 + 1e-9
        assert (x1 - x0) * (y1 - y0) <= 0.8 + 1e-9 or 1.0 in (x1 - x0, y1 - y0)


def test_when_nothing_fits_the_box_is_the_largest_in_the_centre() -> None:
    box = draw(0, "a", 0, Augmentation(crop=(0.9, 1.0)), (400, 100)).box
    assert box == pytest.approx((1 / 3, 0.0, 2 / 3, 1.0))


def test_colour_and_flip_have_the_stated_distributions() -> None:
    views = [draw(1, "a", n, Augmentation(flip=0.3, colour=2.0), (10, 10)) for n in range(4000)]
    gains = np.array([view.gain for view in views])
    biases = np.array([view.bias for view in views])
    assert abs(np.mean([view.flip for view in views]) - 0.3) < 0.03
    assert abs(gains.mean() - 1) < 0.02
    assert abs(gains.std() - 0.3) < 0.015
    assert np.abs(biases.mean(0)).max() < 0.006
    assert np.abs(biases.std(0) - 0.1).max() < 0.005
    assert np.abs(np.corrcoef(np.column_stack([gains, biases]).T) - np.eye(4)).max() < 0.06


def test_no_augmentation_in_colour_is_exactly_none() -> None:
    view = draw(0, "a", 0, Augmentation(), (10, 10))
    assert (view.flip, view.gain, view.bias) == (False, 1.0, (0.0, 0.0, 0.0))


def test_picks_are_uniform_and_in_range() -> None:
    picks = [pick(0, f"sample {n}", 0, 3) for n in range(3000)]
    assert set(picks) == {0, 1, 2}
    assert min(np.bincount(picks)) > 900
    assert pick(0, "a", 0, 1) == 0


def test_a_view_of_the_whole_picture_equals_the_plain_transform() -> None:
    transform = Transform((16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    expected = transform(ramp())["pixel_values"]
    given = transform(ramp(), View())["pixel_values"]
    assert given.dtype == np.float32
    assert given.shape == (3, 16, 16)
    assert np.allclose(given, expected, atol=1e-5)


def test_the_box_is_what_is_seen() -> None:
    right_half = PLAIN(ramp(), View(box=(0.5, 0.0, 1.0, 1.0)))["pixel_values"]
    expected = np.asarray(ramp().resize((16, 16), 3, box=(32, 0, 64, 64)), np.float32)
    assert np.array_equal(right_half, expected.transpose(2, 0, 1))


def test_flip_mirrors_and_colour_acts_before_normalising() -> None:
    plain = PLAIN(ramp(), View())["pixel_values"]
    assert np.array_equal(PLAIN(ramp(), View(flip=True))["pixel_values"], plain[:, :, ::-1])
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    view = View(gain=1.2, bias=(0.1, -0.1, 0.3))
    given = Transform((16, 16), mean=mean, std=std)(ramp(), view)["pixel_values"]
    columns = [np.array(v).reshape(3, 1, 1) for v in (view.bias, mean, std)]
    expected = (plain / 255 * 1.2 + columns[0] - columns[1]) / columns[2]
    assert np.allclose(given, expected, atol=1e-5)


def test_two_models_see_the_same_part_at_their_own_size() -> None:
    view = View(box=(0.25, 0.25, 0.75, 0.75))
    small = Transform((8, 8), resample=Image.Resampling.BOX.value)(ramp(), view)["pixel_values"]
    large = Transform((32, 32), resample=Image.Resampling.BOX.value)(ramp(), view)["pixel_values"]
    assert np.allclose(large.reshape(3, 8, 4, 8, 4).mean((2, 4)), small, atol=1 / 255)


def test_patches_of_a_view_keep_its_shape() -> None:
    transform = Transform(None, patch_size=8, max_num_patches=20)
    values = transform(ramp(), View(box=(0.0, 0.25, 1.0, 0.75)))
    assert values["spatial_shapes"].tolist() == [3, 6]
    assert values["pixel_values"].shape == (20, 192)
    assert values["pixel_attention_mask"].sum() == 18
    assert not values["pixel_values"][18:].any()


def test_sizes() -> None:
    assert Transform(256, (224, 200)).size == (224, 200)
    assert Transform((30, 40)).size == (30, 40)
    assert Transform(None, patch_size=16, max_num_patches=256).size == (256, 256)


def test_a_transform_survives_json() -> None:
    for transform in (
        Transform(32, (32, 32), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)),
        Transform(None, patch_size=16, max_num_patches=64, rescale=None),
    ):
        assert Transform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": 224}, "no crop gives pictures of different sizes"),
        ({"resize": None}, "no crop"),
        ({"patch_size": 16}, "both patch_size and max_num_patches"),
        ({"crop": (8, 8), "mean": (0.0, 0.0, 0.0)}, "both mean and std"),
    ],
)
def test_a_transform_without_one_output_size_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Transform(**fields)  # type: ignore[arg-type]


def test_the_normal_numbers_are_never_infinite() -> None:
    views = [draw(0, "b", n, Augmentation(colour=1.0), (5, 5)) for n in range(2000)]
    assert all(math.isfinite(view.gain) for view in views)


def test_drawn_views_are_new_each_epoch_or_come_round_again() -> None:
    augmentation, size = Augmentation(crop=(0.3, 1.0)), (100, 80)
    always, thrice = Drawn(augmentation, 4), Drawn(augmentation, 4, 3)
    for epoch in range(7):
        assert always.view("a", epoch, size) == draw(4, "a", epoch, augmentation, size)
        assert thrice.view("a", epoch, size) == draw(4, "a", epoch % 3, augmentation, size)

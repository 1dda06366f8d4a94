"""Selection: the scores worked out pair by pair, draws that follow them, and planted pairs that are found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipdistill.algebra.rows import unit
from clipdistill.errors import ConfigError, TrainingError
from clipdistill.training.selection import Metric, learnability, select

METRICS: list[Metric] = ["softmax", "sigmoid"]
EASY, LEARNABLE, NOISE = range(120), range(120, 160), range(160, 200)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(size: int, seed: int) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed))


def naive_loss(z: list[list[float]], i: int, chosen: list[int], metric: str) -> float:
    """The loss of pair i in a batch of itself and the chosen."""
    others = [j for j in (chosen or (range(len(z)) if metric == "softmax" else [])) if j != i]
    if metric == "sigmoid":
        loss = math.log(1 + math.exp(-z[i][i]))
        for j in others:
            loss += math.log(1 + math.exp(z[i][j])) + math.log(1 + math.exp(z[j][i]))
        return loss
    to_texts = to_images = math.exp(z[i][i])
    for j in others:
        to_texts += math.exp(z[i][j])
        to_images += math.exp(z[j][i])
    return (math.log(to_texts) + math.log(to_images)) / 2 - z[i][i]


def planted(metric: Metric, seed: int = 0, scale: float = 20.0) -> tuple[Tensor, Tensor]:
    """200 pairs: easy for both models; captions the reference alone understands; wrong captions, wrong for both."""
    generator = torch.Generator().manual_seed(seed)
    images, texts, misread = (unit(torch.randn(200, 64, generator=generator)) for _ in range(3))
    texts[: len(EASY) + len(LEARNABLE)] = images[: len(EASY) + len(LEARNABLE)]
    read = texts.clone()
    read[list(LEARNABLE)] = misread[list(LEARNABLE)]
    # The student is a slightly other model everywhere.
    seen, read = (unit(rows + 0.04 * torch.randn(200, 64, generator=generator)) for rows in (images, read))
    bias = 0 if metric == "softmax" else -10
    return scale * seen @ read.T + bias, scale * images @ texts.T + bias


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("chosen", [[], [4], [6, 0, 3]])
def test_scores_are_those_of_a_double_loop(metric: Metric, chosen: list[int]) -> None:
    student, reference = 3 * noise(7, 1), 3 * noise(7, 2)
    z, r = student.tolist(), reference.tolist()
    hard = [naive_loss(z, i, chosen, metric) for i in range(7)]
    left = [hard[i] - naive_loss(r, i, chosen, metric) for i in range(7)]
    assert torch.allclose(learnability(student, None, chosen, metric), torch.tensor(hard), atol=1e-5)
    assert torch.allclose(learnability(student, reference, chosen, metric), torch.tensor(left), atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_draws_follow_the_exponential_of_the_score(metric: Metric) -> None:
    """First and second row of many draws, against the probabilities."""
    student, reference = noise(5, 1), noise(5, 2)
    first, second = np.zeros(5), np.zeros(5)
    rng = draw()
    for _ in range(4000):
        one, two = select(student, reference, 2, rng, blocks=2, metric=metric)
        first[one] += 1 / 4000
        second[two] += 1 / 4000
    expected = learnability(student, reference, [], metric).softmax(0)
    after = torch.zeros(5)
    for row in range(5):
        scores = learnability(student, reference, [row], metric)
        scores[row] = -torch.inf
        after += expected[row] * scores.softmax(0)
    assert np.abs(first - expected.numpy()).max() < 0.03
    assert np.abs(second - after.numpy()).max() < 0.03


def shares(metric: Metric, blocks: int, with_reference: bool) -> list[float]:
    """Of 20 chosen in each of ten super-batches: the shares that are easy, learnable and noise."""
    chosen: list[int] = []
    for seed in range(10):
        student, reference = planted(metric, seed)
        chosen += select(student, reference if with_reference else None, 20, draw(seed), blocks, metric).tolist()
    return [sum(row in kind for row in chosen) / 200 for kind in (EASY, LEARNABLE, NOISE)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("blocks", [1, 4, 16, 100])
def test_learnable_pairs_are_found_and_noise_is_avoided(metric: Metric, blocks: int) -> None:
    """By chance both shares are a fifth."""
    _, learnable, noisy = shares(metric, blocks, with_reference=True)
    assert learnable > 0.85
    assert noisy < 0.05


@pytest.mark.parametrize("metric", METRICS)
def test_without_a_reference_hard_pairs_are_found_noise_included(metric: Metric) -> None:
    easy, learnable, noisy = shares(metric, 4, with_reference=False)
    assert easy < 0.05
    assert learnable > 0.3
    assert noisy > 0.3


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_choose_pairs_that_are_hard_for_each_other(metric: Metric) -> None:
    """20 clusters whose members the student confuses: alone all pairs are equally hard, together they are not."""
    cluster = torch.arange(200) // 10
    student = 10.0 * (cluster[:, None] == cluster) - 5.0 * torch.eye(200) - 5.0 * (cluster[:, None] != cluster)
    reference = 20 * torch.eye(200) - 5
    alone, joint = (
        len(set((select(student, reference, 20, draw(), blocks, metric) // 10).tolist())) for blocks in (1, 20)
    )
    assert alone >= 9
    assert joint <= 4


@pytest.mark.parametrize("metric", METRICS)
def test_all_rows_are_chosen_where_all_are_asked_for(metric: Metric) -> None:
    student, reference = planted(metric)
    assert sorted(select(student, reference, 200, draw(), 16, metric).tolist()) == list(range(200))
    assert select(student[:1, :1], None, 1, draw(), metric=metric).tolist() == [0]


def test_the_same_generator_gives_the_same_pairs() -> None:
    student, reference = noise(50, 1), noise(50, 2)
    one, two, three = (select(student, reference, 17, draw(seed), 4) for seed in (0, 0, 1))
    assert one.tolist() == two.tolist() != three.tolist()
    assert len(set(one.tolist())) == 17
    assert one.dtype == np.int64


def test_half_precision_and_large_logits_do_not_overflow() -> None:
    for scale in (20.0, 1000.0):
        student, reference = planted("softmax", scale=scale)
        chosen = set(select(student.half(), reference.half(), 20, draw(), 4).tolist())
        assert len(chosen & set(LEARNABLE)) >= 17


def test_logits_may_need_a_gradient_and_stay_as_they_are() -> None:
    student, reference = planted("softmax")
    before = student.clone()
    select(student.requires_grad_(), reference, 20, draw())
    assert torch.equal(student, before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": 9}, ConfigError, "cannot choose 9 of 8 pairs"),
        ({"size": 0}, ConfigError, "cannot choose 0 of 8"),
        ({"blocks": 0}, ConfigError, "0 blocks"),
        ({"metric": "sigmiod"}, ConfigError, "Did you mean 'sigmoid'"),
        ({"reference": torch.zeros(4, 4)}, TrainingError, r"\[8, 8\], the reference's \[4, 4\]"),
        ({"student": torch.zeros(8, 4)}, TrainingError, r"found \[8, 4\]"),
        ({"student": torch.eye(8).log() * -1 + torch.nan}, TrainingError, "pair 0 .* not finite"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"student": torch.zeros(8, 8), "reference": torch.zeros(8, 8), "size": 4, "rng": draw()}
    with pytest.raises(error, match=message):
        select(**given | change)

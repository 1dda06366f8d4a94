"""What several processes cannot share: the statistics of batch normalisation."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipdistill.errors import ConfigError
from clipdistill.training.ranks import Ranks
from clipdistill.training.setup import prepare
from tiny_runs import TINY, tiny_run

CNN = {"preset": "scenes-cnn", "vocab_size": 520}


def test_batch_normalisation_over_shares_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tiny_run(tmp_path, student=CNN), Ranks(0, 2))
    told = capsys.readouterr().err
    assert told.count("warning") == 1
    assert "each of 2 processes over its own share: 8 of 16 samples (torch.nn.SyncBatchNorm is not used)" in told


@pytest.mark.parametrize(
    ("student", "world"), [(CNN, 1), (TINY, 2), ({**CNN, "freeze": "image"}, 2)], ids=["alone", "no norm", "frozen"]
)
def test_nothing_is_told_where_it_makes_no_difference(
    student: dict[str, object], world: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tiny_run(tmp_path, student=student), Ranks(0, world))
    assert "warning" not in capsys.readouterr().err


SELF_KD = {"recipe": "self-kd", "teachers": {"T": "self"}, "train": {"ema": 0.9}}


def test_an_average_that_each_process_would_have_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a teacher called self, 2 processes and a student that normalises"):
        prepare(tiny_run(tmp_path, student=CNN, **SELF_KD), Ranks(0, 2))
    for student, world in ((CNN, 1), (TINY, 2), ({**CNN, "freeze": "image"}, 2)):
        prepare(tiny_run(tmp_path, student=student, **SELF_KD), Ranks(0, world))

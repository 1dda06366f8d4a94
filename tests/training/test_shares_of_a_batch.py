"""What several processes cannot share: the statistics of batch normalisation."""

from __future__ import annotations

from pathlib import Path

import pytest

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

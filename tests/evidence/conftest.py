"""Shared by the tests of reports: pictures, and three models measured on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_fakes import NASTY, fake

from clipdistill.data.samples import Sample
from clipdistill.data.sources import pairs
from clipdistill.evaluation.evaluate import Evaluation


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Forty drawn scenes with three labels, one group, a Chinese caption, and one that would like to be a script."""
    source = pairs("scenes:test?n=40")
    drawn = [replace(source[index], label=f"class {index % 3}") for index in range(len(source))]
    texts = [{"": [f"caption {index}"]} for index in range(40)]
    texts[1] = {"": ["沙滩上的两只狗", "two dogs"]}
    texts[2] = {"": [NASTY]}
    groups = [f"group {index // 20}" if index in (5, 6) else None for index in range(40)]
    return [replace(s, texts=t, group=g) for s, t, g in zip(drawn, texts, groups, strict=True)]


@pytest.fixture(scope="session")
def trio(samples: list[Sample]) -> list[Evaluation]:
    """A teacher, a baseline and a distilled model between them; the noise of their embeddings is all there is."""
    return [
        fake("teacher", samples, 0.6, params=86_192_640),
        fake("baseline", samples, 2.0),
        fake("distilled", samples, 1.1),
    ]

"""Rows split over real processes: the same losses, and after averaging the same gradients, as in one.

Once with every matrix stored, and once in strips of two rows: a rank with one row has them too.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_every_recipe import BANK_KEYS, COUNT, RECIPES, Case
from torch import Tensor, distributed, multiprocessing

from clipdistill.algebra import strips

#: How the five rows lie on the ranks; not evenly, as when a picture cannot be read.
SPLITS = {2: [3, 2], 4: [1, 2, 1, 1]}
SETTING = "narrow student, keys"
WAYS = ("whole", "in strips")
Found = dict[str, dict[str, Tensor]]


def outcome(name: str, own: slice, world: int) -> dict[str, Tensor]:
    """Losses, weights and averaged gradients of one recipe on this rank's rows."""
    case = Case(name, SETTING)
    rows = {
        node: matrix if "@bank" in node or "@classes" in node else matrix[own] for node, matrix in case.rows.items()
    }
    keys = None if case.keys is None else case.keys[own]
    more = {"labels": case.labels[own], "bank_keys": torch.tensor(BANK_KEYS)}
    losses = case.graph(rows, case.scales, keys, case.biases, **more)
    losses.total.backward()
    found = {"total": losses.total.detach(), "measured": case.graph.measured, **losses.terms}
    for leaf, tensor in case.tensors.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            if world > 1:
                distributed.all_reduce(gradient)
            found[f"gradient of {leaf}"] = gradient / world
    return {key: value.detach() for key, value in found.items()}


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/meeting-{world}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    start = sum(SPLITS[world][:rank])
    own = slice(start, start + SPLITS[world][rank])
    for way in WAYS:
        if way == "in strips":
            strips.WHOLE, strips.STRIP, strips.LOWEST = 0, 11, 1
        found = {name: outcome(name, own, world) for name in RECIPES}
        torch.save(found, Path(folder) / f"{way}-{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> Found:
    return {name: outcome(name, slice(0, COUNT), 1) for name in RECIPES}


@pytest.mark.parametrize("world", sorted(SPLITS))
def test_the_number_of_ranks_changes_nothing(world: int, alone: Found, tmp_path: Path) -> None:
    fork: Any = multiprocessing.start_processes  # type: ignore[attr-defined]
    fork(work, (world, str(tmp_path)), nprocs=world, start_method="forkserver")
    for rank, way in itertools.product(range(world), WAYS):
        found: Found = torch.load(tmp_path / f"{way}-{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            assert found[name].keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(
                    found[name][key],
                    value,
                    rtol=1e-9,
                    atol=1e-11,
                    equal_nan=False,
                    msg=f"{name}, {key}, rank {rank}, {way}",
                )

"""No code in a checkpoint is run: programs are recognised and refused, pickles read as tensors alone."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from clipdistill.errors import ModelError
from clipdistill.models.loading import load
from clipdistill.models.torch_files import OPENAI, read_tensors


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript archive, as OpenAI publishes its models."""
    path = tmp_path_factory.mktemp("program") / "program.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the format
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    return path


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        *((name, f"The same weights as tensors alone: {instead}") for name, instead in OPENAI.items()),
        ("RN50x4.pt", "OpenAI's ResNets have no counterpart in transformers; .* openai/clip-vit-base-patch32"),
        ("mine.pt", "OpenAI's models as tensors alone: openai/clip-vit-base-patch32 .ViT-B-32.pt., "),
    ],
)
def test_a_program_is_refused_with_the_safe_alternative(
    program: Path, tmp_path: Path, name: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(program.read_bytes())
    monkeypatch.setattr(torch, "load", lambda *arguments, **named: pytest.fail("it was opened"))
    monkeypatch.setattr(torch.jit, "load", lambda *arguments, **named: pytest.fail("it was opened"))
    with pytest.raises(ModelError, match=f"is a TorchScript archive: a program, which is not run here. {instead}"):
        load(str(path))


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.mkdir, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, zipped: bool) -> None:
    path, sprung = tmp_path / "trap.pt", tmp_path / "sprung"
    torch.save({"state_dict": {"a": torch.ones(2)}, "x": Trap(sprung)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"cannot be read as tensors alone .*could run code and are not opened"):
        read_tensors(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)  # it would have
    assert sprung.exists()


def test_objects_and_damage_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "made.pt"
    torch.save({"state_dict": {"a": torch.ones(2000)}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(ModelError, match=r"torch.save\({'state_dict'"):
        read_tensors(path)
    torch.save({"a": torch.ones(2000)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="It is damaged, or holds Python objects"):
        read_tensors(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="It is damaged"):
        read_tensors(path)


@pytest.mark.parametrize("held", [[1, 2], {"epoch": 1, "model": {"a": torch.ones(1)}}, {"state_dict": {}}])
def test_no_state_dict(tmp_path: Path, held: Any) -> None:
    torch.save(held, tmp_path / "made.pt")
    with pytest.raises(ModelError, match="expected a state dict of tensors, bare or under 'state_dict'"):
        read_tensors(tmp_path / "made.pt")


@pytest.mark.parametrize("content", [b"Repository not found", b"upstream error", b"bad gateway", b"<html>", b"PK"])
def test_what_is_no_checkpoint_at_all_is_said_to_be_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be read as tensors alone.*Download it again"):
        read_tensors(tmp_path / "weights.pt")


def test_an_archive_whose_list_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(2)}, path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at : at + 4] = b"none"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as tensors alone"):
        read_tensors(path)

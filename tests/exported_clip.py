"""What takes seconds to export and is exported once: a small CLIP for all tests that search, and equal graphs."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of an exported CLIP (read only), and the model in torch."""
    import torch

    from clipdistill.export.onnx import export
    from clipdistill.models.loading import load
    from models.conftest import MAKERS, TOWER

    root = tmp_path_factory.mktemp("exported")
    torch.manual_seed(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOWER, "num_hidden_layers", 1)  # half the time of an export
        MAKERS["clip"](root / "model")
    export(root / "model", root / "onnx", precision="float32")
    return root / "onnx", load(str(root / "model"))


@pytest.fixture
def graphs_once(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what comes after: a tower that was written before is copied."""
    from clipdistill.export import graphs, layout_immich, layout_javascript, onnx

    folder = tmp_path_factory.getbasetemp() / "graphs"
    folder.mkdir(exist_ok=True)

    def once(encoder: Any, side: Any, inputs: Any, path: Path, own_length: bool) -> None:
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in inputs.items()}
        settings = getattr(encoder.module, "config", None)
        digest = hashlib.sha256(f"{encoder.module} {settings} {side} {shapes} {own_length}".encode())
        for name, tensor in encoder.module.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        written = folder / f"{digest.hexdigest()}.onnx"
        if not written.exists():
            graphs.write_graph(encoder, side, inputs, written, own_length)
        shutil.copyfile(written, path)

    for module in (layout_immich, layout_javascript, onnx):
        monkeypatch.setattr(module, "write_graph", once)

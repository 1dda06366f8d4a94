"""One small CLIP, exported once for all tests of a process that search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of an exported CLIP (read only), and the model in torch."""
    import torch

    from clipdistill.export.onnx import export
    from clipdistill.models.huggingface import load
    from models.conftest import MAKERS, TOWER

    root = tmp_path_factory.mktemp("exported")
    torch.manual_seed(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOWER, "num_hidden_layers", 1)  # half the time of an export
        MAKERS["clip"](root / "model")
    export(root / "model", root / "onnx", precision="float32")
    return root / "onnx", load(str(root / "model"))

"""A torchvision that does not load: it is kept from transformers, and what cannot do without it says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BROKEN = "operator torchvision::nms does not exist"


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], str]:
    """Run a program where the torchvision that is installed raises as it is imported."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({BROKEN!r})")

    def run(program: str) -> str:
        lines = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{program}"
        done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_it_is_kept_from_transformers_before_models_are_asked_for(run: Callable[[str], str]) -> None:
    assert "CLIPModel" in run("import clipdistill\nfrom transformers import CLIPModel\nprint(CLIPModel)\n")


def test_where_transformers_came_first_models_say_what_to_do(run: Callable[[str], str]) -> None:
    attempt = "try:\n    clipdistill.load_model\nexcept clipdistill.errors.ModelError as error:\n    print(error)\n"
    told = run(f"import transformers\nimport clipdistill.errors\n{2 * attempt}").splitlines()
    assert len(told) == 2
    assert all(BROKEN in line and "Import clipdistill first" in line for line in told)


def test_a_library_that_needs_it_says_why_it_does_not_load(run: Callable[[str], str]) -> None:
    for package in ("open_clip", "timm"):
        program = (
            "import clipdistill.models.huggingface\n"
            "from clipdistill.errors import ModelError\n"
            f"try:\n    clipdistill.models.import_library('{package}')\n"
            "except ModelError as error:\n    print(error)\n"
        )
        message = run(program)
        assert message.startswith(f"{package} cannot be imported here: ")
        assert f"torchvision does not load (RuntimeError: {BROKEN})" in message
        assert "clipdistill[" not in message  # it is installed

"""transformers.js, for the tests that run in JavaScript what was exported; fetched by whichever of them comes first."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

NODE = Path(__file__).parent / "export" / "node"


def installed() -> Path:
    """The folder of node's modules; skips the test where there is no node, or nothing can be fetched."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is not installed")
    modules = NODE / "node_modules"
    with FileLock(Path(tempfile.gettempdir()) / "clipdistill-tests-node.lock"):
        if not (modules / "@huggingface" / "transformers").is_dir():
            words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(words, cwd=NODE, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"npm could not fetch transformers.js: {done.stderr[-300:]}")
    return modules

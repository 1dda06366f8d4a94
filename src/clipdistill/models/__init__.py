"""Models of every library behind one interface.

transformers, open_clip and timm import torchvision wherever it is installed, and a torchvision that was built for
another torch raises as it is imported. Nothing here needs it, so one that does not load counts as not installed.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder


class _Watch(MetaPathFinder):
    """Waits for the first import of transformers: until then torchvision, and so torch, need not be imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find nothing; look at torchvision when transformers is about to be found."""
        if name == "transformers" and self in sys.meta_path:
            sys.meta_path.remove(self)
            _hide_broken_torchvision()


def _hide_broken_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass  # not installed, which every library understands
    except Exception:  # operators that are not there: RuntimeError, OSError, AttributeError, by version
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # how Python marks what must not be imported


if "transformers" not in sys.modules:
    sys.meta_path.insert(0, _Watch())

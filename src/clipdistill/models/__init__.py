"""Models of every library behind one interface.

transformers, open_clip and timm import torchvision wherever it is installed, and a torchvision that was built for
another torch raises as it is imported. Nothing here needs it, so one that does not load counts as not installed:
that has to be settled before transformers looks, which it does once.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from clipdistill.errors import ModelError

#: Why torchvision counts as not installed although it is.
_broken: list[Exception] = []


class _Watch:
    """A finder that waits for the first import of transformers: until then torchvision, and torch, are not needed.

    Where transformers came before this package, it waits for the first module of models. It has no base class:
    importlib.abc, where that is, would be the slowest import of the command line.
    """

    def __init__(self) -> None:
        self.looked = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find nothing; look at torchvision when transformers, or what needs it, is about to be found."""
        late = "transformers" in sys.modules
        if not self.looked and (name.startswith(f"{__name__}.") if late else name == "transformers"):
            _hide_broken_torchvision(late)
            self.looked = True


def _hide_broken_torchvision(late: bool) -> None:
    """Mark a torchvision that does not load as not installed; raise ModelError where transformers knows of it."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass  # not installed, which every library understands
    except Exception as error:  # operators that are not there: RuntimeError, OSError, AttributeError, by version
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        if late:
            raise ModelError(
                f"the torchvision that is installed does not load ({_told(error)}), and transformers, which was "
                "imported before clipdistill, would use it. Import clipdistill first: it keeps transformers from "
                "that; or remove torchvision: pip uninstall torchvision"
            ) from error
        _broken.append(error)
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # how Python marks what must not be imported


def import_library(package: str) -> ModuleType:
    """Import open_clip or timm; raises :class:`ModelError` where it, or the torchvision it needs, does not load."""
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"the package '{package}' is needed here and is not installed. "
            "Install it with: pip install 'clipdistill[open-clip]'"
        )
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError, AttributeError, OSError) as error:  # a torchvision built for another torch
        why = f", because torchvision does not load ({_told(_broken[0])})" if _broken else ""
        import torch

        raise ModelError(
            f"{package} cannot be imported here: {_told(error)}{why}. It needs a torchvision that was built for torch "
            f"{torch.__version__}: install both from the same index."
        ) from error


def _told(error: Exception) -> str:
    """Name an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


sys.meta_path.insert(0, _Watch())

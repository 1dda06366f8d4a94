"""When timm is needed, and its import: transformers wraps any model of timm in one of its own."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

from clipdistill.models import import_library

#: How runs name a model of timm: ``timm:resnet50``.
TIMM = "timm:"
#: The model type under which transformers wraps any model of timm.
WRAPPER = "timm_wrapper"


def import_timm() -> ModuleType:
    """Import timm; see :func:`clipdistill.models.import_library`."""
    return import_library("timm")


def import_for(path: Path) -> None:
    """Import timm if the model of a config.json, or its image tower, is one of timm; see :func:`import_timm`."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if WRAPPER in (config.get("model_type"), (config.get("vision_config") or {}).get("model_type")):
        import_timm()

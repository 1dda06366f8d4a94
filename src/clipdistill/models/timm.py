"""When timm is needed, and its import: transformers wraps any model of timm in one of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from clipdistill.errors import ModelError
from clipdistill.models import import_library

#: How runs name a model of timm: ``timm:resnet50``.
TIMM = "timm:"
#: The model type under which transformers wraps any model of timm.
WRAPPER = "timm_wrapper"
#: How the arguments begin by which timm's models read files.
_OPENING = ("checkpoint", "pretrained", "cache_dir")


def import_timm() -> ModuleType:
    """Import timm; see :func:`clipdistill.models.import_library`."""
    return import_library("timm")


def import_for(path: Path) -> None:
    """Import timm if the model of a config.json, or its image tower, is one of timm; see :func:`import_timm`.

    Raises :class:`ModelError` for one that has timm open files that are not the model's.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config.get("vision_config") or {}):
        _refuse_files(part, path)
        if part.get("model_type") == WRAPPER:
            import_timm()


def _refuse_files(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what would make timm open files of its own: some versions unpickle them, which runs code."""
    arguments = {**(config.get("model_args") or {}), **(config.get("backbone_kwargs") or {})}
    asked = [name for name in arguments if name.startswith(_OPENING)]
    if asked or ":" in str(config.get("architecture", "")):
        found = asked[0] if asked else f"the architecture {config['architecture']}"
        raise ModelError(
            f"{path}: {found} makes timm open other files than the model's own, which is not done here. Expected the "
            "name of one of timm's architectures, and weights beside the configuration."
        )

"""Image towers other than a preset's ViT, beside its text tower: models of timm, and any of transformers' backbones.

The student is transformers' own VisionTextDualEncoderModel, so its folder opens without this package. That model asks
of a tower one row for a picture, and for its width under the name ``hidden_size``, which most of these do not say.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    VisionTextDualEncoderConfig,
)

from clipdistill.errors import ConfigError, did_you_mean
from clipdistill.models.hub import model_folder
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.own_code import refuse_code
from clipdistill.models.presets import Preset, tower_name
from clipdistill.models.quiet import quiet
from clipdistill.models.timm import TIMM, WRAPPER, import_for, import_timm
from clipdistill.models.weights import model_type

#: The model type of such a student.
FAMILY = "vision-text-dual-encoder"


def beside_text(donor: HuggingFaceEncoder, shape: Preset, image_size: int | None) -> VisionTextDualEncoderConfig:
    """Describe the image tower ``shape.vision`` beside the text tower of a model, in its joint space.

    Raises :class:`ConfigError` where transformers has no such pair: for text towers that end otherwise than CLIP's.
    """
    config: Any = donor.module.config
    if config.model_type not in ("clip", FAMILY):
        raise ConfigError(
            f"student.keep=text: {tower_name(shape.vision)} cannot stand beside the text tower of {donor.uri}, which "
            f"is of kind {config.model_type}; expected one of clip, {FAMILY}. Choose a preset with a ViT, or name "
            "another model as student.inherit_from."
        )
    return dual_encoder_config(shape, image_size, config.text_config)


def dual_encoder_config(shape: Preset, image_size: int | None, text: Any) -> VisionTextDualEncoderConfig:
    """Describe a text tower's configuration beside the image tower ``shape.vision``.

    ``image_size`` is the run's own: without it, the tower has the size in its configuration, if there is one, else
    the shape's. Raises :class:`ConfigError` for a tower that does not fit.
    """
    vision, name = shape.vision, tower_name(shape.vision)
    if isinstance(vision, str) and vision.startswith(TIMM):
        config = _timm_config(vision.removeprefix(TIMM), image_size or shape.image_size)
    elif isinstance(vision, str):
        config = _folder_config(vision)
        config.image_size = image_size or _size_in(config) or shape.image_size
    else:
        config = _plain_config(vision)
        config.image_size = image_size or vision.get("image_size") or shape.image_size
    _measure(config, name)
    return VisionTextDualEncoderConfig(
        vision_config=config.to_dict(), text_config=text.to_dict(), projection_dim=shape.embed_dim
    )


def _timm_config(name: str, size: int) -> Any:
    timm = import_timm()
    if not timm.is_model(name):
        raise ConfigError(
            f"student.vision: timm {timm.__version__} has no model '{name}'.{_close(name, timm.list_models())} "
            "All of them: timm.list_models()."
        )
    given = timm.get_pretrained_cfg(name)
    fixed = given is not None and given.fixed_input_size and given.input_size[1:] != (size, size)
    # Its module imports timm, whatever comes of it.
    return transformers.TimmWrapperConfig(
        architecture=name, model_args={"img_size": size} if fixed else None, image_size=size
    )


def _plain_config(values: Mapping[str, Any]) -> Any:
    """Make a configuration of transformers from its values; raises :class:`ConfigError` for one it does not know."""
    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"student.vision: transformers {transformers.__version__} has no model_type '{kind}'."
            f"{_close(kind, CONFIG_MAPPING)} Known are for instance swin, mobilevit, convnext and mobilenet_v2."
        )
    if kind == WRAPPER:
        import_timm()
    known = {*(vars(CONFIG_MAPPING[kind]()).keys() - vars(PreTrainedConfig())), "model_type"}
    if unknown := [name for name in values if name not in known]:
        raise ConfigError(f"student.vision: a {kind} has no {unknown[0]}.{did_you_mean(unknown[0], known)}")
    try:
        return CONFIG_MAPPING[kind](**{name: value for name, value in values.items() if name != "model_type"})
    except Exception as error:  # a value of the wrong type: the library's own validation classes
        raise ConfigError(f"student.vision is not a valid {kind}: {error}") from error


def _close(name: str, known: Iterable[str]) -> str:
    """Name what is spelled alike: all that are known would be a thousand."""
    close = difflib.get_close_matches(name, list(known), n=4, cutoff=0.5)
    return f" Close to it: {', '.join(close)}." if close else ""


def _folder_config(uri: str) -> Any:
    """Read the configuration of a model of pictures; of a dual encoder, that of its image tower."""
    folder = model_folder(uri, weights=False)
    model_type(folder)  # is there a configuration at all?
    import_for(folder / "config.json")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # an unknown model type, a value of the wrong type: the library's own classes
        refuse_code(error, folder)
        raise ConfigError(f"student.vision: {folder / 'config.json'} is not a configuration: {error}") from error
    return copy.deepcopy(getattr(config, "vision_config", config))


def _size_in(config: Any) -> int | None:
    size = getattr(config, "image_size", None)
    return size if isinstance(size, int) else None


@torch.no_grad()
def _measure(config: Any, name: str) -> None:
    """Write into a tower's configuration how wide its rows are, found by embedding one picture without any weights.

    Raises :class:`ConfigError` for a model that gives no row, or calls something else its width.
    """
    size = config.image_size
    try:
        with torch.device("meta"):
            tower = AutoModel.from_config(config, trust_remote_code=False).eval()
            shape = tuple(tower(pixel_values=torch.zeros(1, 3, size, size)).pooler_output.shape)
    except Exception as error:  # no such input, no pooled output, a size that does not divide: whatever the class says
        raise ConfigError(
            f"student.vision: {name} does not embed a picture of {size} x {size} pixels ({type(error).__name__}: "
            f"{error}). Expected a model of pictures with a pooled output, or another student.image_size."
        ) from error
    said = getattr(config, "hidden_size", shape[1])
    if len(shape) != 2 or said != shape[1]:
        raise ConfigError(
            f"student.vision: the pooled output of {name} has the shape {list(shape)}, where transformers' "
            f"VisionTextDualEncoderModel expects [1, {said}]. Models of timm give that, such as timm:resnet50."
        )
    config.hidden_size = shape[1]


@torch.no_grad()
def initialise(module: Any) -> None:
    """Draw the weights of a convolutional tower anew: transformers gives every kernel the same deviation of 0.02.

    A tower of timm gets timm's own; any other with batch norms kernels that keep the deviation of what they pass on
    (arXiv 1502.01852), counted within groups as timm does, and norms that start at one, which in transformers'
    EfficientNet they do not.
    """
    tower = module.vision_model
    if tower.config.model_type == WRAPPER:
        config = tower.config
        fresh = import_timm().create_model(config.architecture, num_classes=0, **(config.model_args or {}))
        tower.timm_model.load_state_dict(fresh.state_dict())
    elif any(isinstance(part, nn.BatchNorm2d) for part in tower.modules()):
        for part in tower.modules():
            if isinstance(part, nn.Conv2d):
                outputs = part.weight[:, 0].numel() // part.groups
                part.weight.normal_(0, math.sqrt(2 / outputs))
            elif isinstance(part, nn.BatchNorm2d):
                part.reset_parameters()

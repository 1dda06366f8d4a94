"""Students: small CLIP models or classifiers by name, any dual encoder's configuration, or a pretrained model."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPTextConfig, SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from clipdistill.data.views import Transform
from clipdistill.errors import ConfigError, ModelError
from clipdistill.models import towers, vision
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.hub import model_folder
from clipdistill.models.huggingface import FAMILIES, Family, HuggingFaceEncoder, read_config
from clipdistill.models.inherit import inherit
from clipdistill.models.keep import Side, config_beside, copy_tower
from clipdistill.models.loading import load, tokenizer_of
from clipdistill.models.preprocessing import clip_processor
from clipdistill.models.presets import DEFAULT_PRESET, Preset, StudentSpec, tower_name
from clipdistill.models.vocabulary import end_token_id, fit_to_tower, train_tokenizer
from clipdistill.models.weights import attention_for

log = logging.getLogger(__name__)


def choose_tokenizer(spec: StudentSpec, teacher: Any | None, captions: Iterable[str]) -> Any | None:
    """Return the student's tokenizer by the rule of ``spec.tokenizer``; None for one that brings its own or needs none.

    That is a pretrained student, and a preset without a text tower. ``teacher`` is the teacher's tokenizer if there is
    one; a kept text tower brings it along. ``captions`` are read only if a tokenizer is trained.
    """
    if spec.pretrained or spec.has_text is False:
        return None
    if spec.keep == "text":
        return teacher
    if spec.tokenizer == "auto" and teacher is not None:
        try:
            end_token_id(teacher)
        except ModelError as error:
            log.warning("the teacher's tokenizer does not fit the student, so one is trained: %s", error)
        else:
            return teacher
    if spec.tokenizer in ("auto", "train"):
        return train_tokenizer(captions, spec.vocab_size, _context_length(spec))
    return tokenizer_of(spec.tokenizer)


def _context_length(spec: StudentSpec) -> int:
    if spec.config is None:
        return spec.shape().context_length
    _, config = read_config(config_folder(spec.config))
    return int(config.text_config.max_position_embeddings)


def build(
    spec: StudentSpec,
    tokenizer: Any | None = None,
    embed_dim: int | None = None,
    seed: int = 0,
    teacher_transform: Transform | None = None,
    donor: DualEncoder | None = None,
    classes: Sequence[str] = (),
) -> DualEncoder:
    """Build a student on the CPU; the same spec, tokenizer and seed give the same weights.

    ``embed_dim`` is the teacher's joint width, taken where the spec names none. A new student prepares pictures as
    CLIP does, at its own size, with the teacher's mean and deviation if a ``teacher_transform`` is given. A student
    that inherits is of the ``donor``'s family, with the spec's sizes and the donor's other settings (activation,
    ratio of the MLP to the width). One that keeps a tower of the donor has its joint width, whatever ``embed_dim``
    says, and the tokenizer or image processor of that tower. A preset without a text tower becomes a classifier of
    ``classes``, the names of the data's labels. The global random state stays as it was.
    Raises :class:`ConfigError` and :class:`ModelError`.
    """
    if spec.pretrained:
        return load(spec.pretrained)
    if spec.has_text is False:
        return vision.build(_name(spec), spec.shape(), classes, seed, teacher_transform)
    if spec.keep:
        return _build_around(_two_towers(donor, "keep"), spec.keep, spec, tokenizer, seed, teacher_transform)
    if spec.inherit is None:
        return _build(spec, tokenizer, embed_dim, seed, teacher_transform, None)
    origin = _two_towers(donor, "inherit")
    student = _build(spec, tokenizer, embed_dim, seed, teacher_transform, origin)
    log.info("%s", inherit(student, origin, spec.inherit))
    return student


def _two_towers(donor: DualEncoder | None, key: str) -> HuggingFaceEncoder:
    """Check the model that ``student.inherit`` or ``student.keep`` takes weights from."""
    if donor is None:
        raise ConfigError(f"student.{key} needs a model to inherit from: add a teacher, or student.inherit_from=MODEL.")
    if not isinstance(donor, HuggingFaceEncoder):
        raise ConfigError(
            f"student.{key}: {donor.uri} is no dual encoder of two towers of transformers. Name one as inherit_from."
        )
    return donor


def _build_around(
    donor: HuggingFaceEncoder, kept: Side, spec: StudentSpec, tokenizer: Any | None, seed: int, like: Transform | None
) -> HuggingFaceEncoder:
    """Build a student around one tower of the donor, which stays what it is to the bit."""
    shape = spec.shape(donor.width)
    if kept == "text" and shape.vision:
        config = towers.beside_text(donor, shape, spec.image_size)
    else:
        config = config_beside(donor, kept, shape)
    family = FAMILIES[config.model_type]
    if kept == "text":
        tokenizer, processor = copy.deepcopy(donor.tokenizer), _processor_like(donor, config, like)
    else:
        tokenizer, processor = _fit_text(_name(spec), config, tokenizer), copy.deepcopy(donor.processor)
    student = HuggingFaceEncoder(_name(spec), _random_module(family, config, seed), tokenizer, processor)
    copy_tower(student, donor, kept)
    log.info("kept the %s tower of %s", kept, donor.uri)
    return student


def _build(
    spec: StudentSpec,
    tokenizer: Any | None,
    embed_dim: int | None,
    seed: int,
    teacher_transform: Transform | None,
    donor: HuggingFaceEncoder | None,
) -> HuggingFaceEncoder:
    if spec.config:
        family, config = read_config(config_folder(spec.config))
        processor = _processor_for(config, teacher_transform)
    elif donor is not None:
        config = _resized(donor.module.config, spec, embed_dim)
        family = FAMILIES[config.model_type]
        processor = _processor_like(donor, config, teacher_transform)
    else:
        config = _preset_config(spec, embed_dim)
        family = FAMILIES[config.model_type]
        processor = clip_processor(config.vision_config.image_size, teacher_transform)
    tokenizer = _fit_text(_name(spec), config, tokenizer)
    return HuggingFaceEncoder(_name(spec), _random_module(family, config, seed), tokenizer, processor)


def _name(spec: StudentSpec) -> str:
    name = f"config:{spec.config}" if spec.config else f"preset:{spec.preset or DEFAULT_PRESET}"
    return f"{name} with {tower_name(spec.vision)}" if spec.vision else name


def config_folder(uri: str) -> Path:
    """Return the folder of a configuration given as a folder, a hub name or the config.json itself."""
    path = Path(uri).expanduser()
    return path.parent if path.name == "config.json" and path.is_file() else model_folder(uri, weights=False)


def _preset_config(spec: StudentSpec, embed_dim: int | None) -> Any:
    """Return the configuration of a preset: a CLIP, or its text tower beside the image tower that is named."""
    shape = spec.shape(embed_dim)
    if not shape.vision:
        return clip_config(shape)
    return towers.dual_encoder_config(shape, spec.image_size, CLIPTextConfig(**_text_tower(shape)))


def clip_config(shape: Preset) -> Any:
    """Return the transformers configuration of a preset; vocabulary and special tokens come with the tokenizer."""
    vision = _tower(shape.width, shape.layers, shape.heads, shape.embed_dim)
    return CLIPConfig(
        text_config=_text_tower(shape),
        vision_config=vision | {"image_size": shape.image_size, "patch_size": shape.patch_size},
        projection_dim=shape.embed_dim,
        logit_scale_init_value=2.6592,
    )


def _text_tower(shape: Preset) -> dict[str, Any]:
    sizes = _tower(shape.text_width, shape.text_layers, shape.text_heads, shape.embed_dim)
    return sizes | {"max_position_embeddings": shape.context_length}


def _tower(width: int, layers: int, heads: int, embed_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": embed_dim,
        "hidden_act": "gelu",
    }


def _resized(config: Any, spec: StudentSpec, embed_dim: int | None) -> Any:
    """Return a copy of a dual encoder's configuration with the sizes of a spec."""
    shape, config = spec.shape(embed_dim), copy.deepcopy(config)
    text, vision = config.text_config, config.vision_config
    _resize(vision, shape.width, shape.layers, shape.heads)
    _resize(text, shape.text_width, shape.text_layers, shape.text_heads)
    vision.image_size, vision.patch_size = shape.image_size, shape.patch_size
    if hasattr(vision, "pooler_output_size"):
        vision.pooler_output_size = shape.width
    text.max_position_embeddings = spec.context_length or text.max_position_embeddings
    if hasattr(text, "projection_size"):  # SigLIP's text tower ends at the width of the vision tower
        text.projection_size = shape.width
    else:
        config.projection_dim = text.projection_dim = vision.projection_dim = shape.embed_dim
    return config


def _resize(tower: Any, width: int, layers: int, heads: int) -> None:
    tower.intermediate_size = round(tower.intermediate_size * width / tower.hidden_size)
    tower.hidden_size, tower.num_hidden_layers, tower.num_attention_heads = width, layers, heads


def _fit_text(name: str, config: Any, tokenizer: Any | None) -> Any:
    """Return a copy of a tokenizer for a new text tower, and write its vocabulary into the tower's configuration."""
    if tokenizer is None:
        raise ConfigError("a student with random weights needs a tokenizer: see students.choose_tokenizer.")
    text, family = config.text_config, FAMILIES[config.model_type]
    if config.model_type == "siglip2" and type(tokenizer).__name__ != "Siglip2Tokenizer":
        raise ModelError(
            f"{name}: transformers opens every siglip2 folder with Siglip2Tokenizer, so a {type(tokenizer).__name__} "
            "could be trained with but not loaded again. Set student.tokenizer to a SigLIP 2 model."
        )
    tokenizer = fit_to_tower(tokenizer, text.max_position_embeddings, masked=not family.sticky_end)
    text.vocab_size = len(tokenizer)
    text.eos_token_id, text.pad_token_id = end_token_id(tokenizer), tokenizer.pad_token_id
    text.bos_token_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    return tokenizer


def _random_module(family: Family, config: Any, seed: int) -> Any:
    """Make a model with random weights, in evaluation mode."""
    config._attn_implementation = attention_for(config, "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        module = family.model(config)
        if config.model_type == towers.FAMILY:
            towers.initialise(module)
    if family.sticky_end:  # the sigmoid loss starts at scale 10 and bias -10 (SigLIP, arXiv 2303.15343, section 3.2)
        module.logit_scale.data.fill_(math.log(10))
        module.logit_bias.data.fill_(-10)
    return module.eval()


def _processor_like(donor: HuggingFaceEncoder, config: Any, like: Transform | None) -> Any:
    """Return the donor's own image processor where the student sees pictures of the same size."""
    theirs = getattr(donor.module.config.vision_config, "image_size", None)  # type: ignore[union-attr]
    same = config.vision_config.image_size == theirs
    return copy.deepcopy(donor.processor) if same else _processor_for(config, like)


def _processor_for(config: Any, like: Transform | None) -> Any:
    """Return the family's usual image processor at the size that a configuration names."""
    vision = config.vision_config
    if config.model_type == "siglip2":
        return Siglip2ImageProcessorPil(patch_size=vision.patch_size, max_num_patches=vision.num_patches)
    if config.model_type == "siglip":
        return SiglipImageProcessorPil(size={"height": vision.image_size, "width": vision.image_size})
    return clip_processor(vision.image_size, like)

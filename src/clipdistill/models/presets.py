"""What a run says about its student: presets by name, and what may be changed about them. Knows no model library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from clipdistill.errors import ConfigError, did_you_mean

#: An image tower other than a ViT: ``timm:NAME``, a folder or hub name, or a configuration of transformers.
Tower = str | dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """The shape of a student: sizes in pixels and numbers, ``width``/``layers``/``heads`` of the image tower.

    Without the rest it is a ViT of that width with a classifier head, and no text tower. ``vision`` names another
    image tower than a ViT of these sizes, which are then 0; see :mod:`clipdistill.models.towers`.
    """

    image_size: int
    patch_size: int = 0
    width: int = 0
    layers: int = 0
    heads: int = 0
    text_width: int = 0
    text_layers: int = 0
    text_heads: int = 0
    embed_dim: int = 0
    context_length: int = 77
    vision: Tower = ""

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower; else there is a classifier head."""
        return self.text_layers > 0


def _beside(vision: Tower, text_width: int = 384, text_heads: int = 6, embed_dim: int = 512) -> Preset:
    """The tower ``vision``, and twelve layers of text."""
    return Preset(
        image_size=224,
        text_width=text_width,
        text_layers=12,
        text_heads=text_heads,
        embed_dim=embed_dim,
        vision=vision,
    )


#: EfficientNet-B0, with what timm has where transformers keeps TensorFlow's numbers: norms that forget as fast as
#: torch's, and no dropped blocks.
_EFFICIENTNET: dict[str, Any] = {
    **{"model_type": "efficientnet", "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    **{"batch_norm_momentum": 0.1, "batch_norm_eps": 1e-5, "drop_connect_rate": 0.0},
}
#: Five of its blocks, on 24, 12 and 6 pixels a side.
_SCENES_CNN: dict[str, Any] = {
    **_EFFICIENTNET,
    **{"width_coefficient": 0.5, "hidden_dim": 640, "depthwise_padding": [], "kernel_sizes": [3, 3, 3]},
    **{"in_channels": [32, 32, 64], "out_channels": [32, 64, 128], "strides": [1, 2, 2]},
    **{"num_block_repeats": [1, 2, 2], "expand_ratios": [1, 4, 4]},
}

DEFAULT_PRESET = "vit-tiny-16"

#: vit-tiny-16 is CLIP-KD's ViT-T/16 (arXiv 2307.12732, section 4.1); vit-small and vit-base are open_clip's ViT-S
#: and ViT-B; tinyclip-8m-16 is TinyCLIP-ViT-8M-16-Text-3M; vit-tiny-cifar is CLIP-Embed-KD's classifier (arXiv
#: 2404.06170); mobilevit-s to resnet-18 are CLIP-KD's other students, of which MobileNetV3 is the small one; resnet-50
#: is the plain one beside the text tower of CLIP's RN50; those named scenes are the benchmark's.
PRESETS: dict[str, Preset] = {
    "vit-tiny-16": Preset(224, 16, 192, 12, 3, 384, 12, 6, 512),
    "vit-small-16": Preset(224, 16, 384, 12, 6, 384, 12, 6, 384),
    "vit-small-32": Preset(224, 32, 384, 12, 6, 384, 12, 6, 384),
    "vit-base-32": Preset(224, 32, 768, 12, 12, 512, 12, 8, 512),
    "vit-base-16": Preset(224, 16, 768, 12, 12, 512, 12, 8, 512),
    "tinyclip-8m-16": Preset(224, 16, 256, 10, 4, 256, 3, 4, 512),
    "scenes-teacher": Preset(48, 8, 128, 4, 4, 128, 4, 4, 128, 32),
    "scenes-student": Preset(48, 12, 48, 2, 2, 48, 2, 2, 128, 32),
    "mobilevit-s": _beside({"model_type": "mobilevit"}),
    "swin-t": _beside({"model_type": "swin"}),
    "mobilenet-v3": _beside("timm:mobilenetv3_small_100"),
    "efficientnet-b0": _beside(_EFFICIENTNET),
    "resnet-18": _beside("timm:resnet18"),
    "resnet-50": _beside("timm:resnet50", 512, 8, 1024),
    "scenes-cnn": Preset(48, 0, 0, 0, 0, 48, 2, 2, 128, 32, _SCENES_CNN),
    "vit-tiny-cifar": Preset(32, 4, 256, 6, 8),
    "scenes-vit": Preset(48, 12, 48, 2, 2),
}

#: Sizes that a preset without a text tower has no use for: its rows are as wide as its tower.
TEXT_SIZES = ("text_width", "text_layers", "text_heads", "embed_dim", "context_length")

#: Sizes of a ViT, which another image tower has not.
VIT_SIZES = ("patch_size", "width", "layers", "heads")

#: Sizes that come with a kept tower.
KEPT_SIZES = {
    "image": ("image_size", *VIT_SIZES, "vision", "embed_dim"),
    "text": TEXT_SIZES,
}

Positive = Field(default=None, gt=0)


class StudentSpec(BaseModel):
    """What a run says about its student: one of ``preset``, ``config`` or ``pretrained``, and changes to a preset.

    ``config`` is a folder (or hub name) whose config.json gives the architecture, with random weights;
    ``pretrained`` a model to start from. ``vision`` puts another image tower beside the preset's text tower
    (``timm:NAME``, a folder or hub name whose config.json describes it, or such a configuration written out, with a
    ``model_type``). ``tokenizer`` is ``auto`` (the teacher's where a student can read it, else
    trained), ``train`` (on the captions, ``vocab_size`` entries) or a folder or hub name. Sizes left out are the
    preset's: a changed ``width`` takes ``text_width`` along and sets the heads to about one in 64 channels.
    ``inherit`` starts from chosen layers and first channels of the first teacher, or of ``inherit_from``; see
    :func:`clipdistill.models.inherit.inherit`. ``keep`` takes one tower whole from that model, and the preset's other
    tower beside it. ``freeze`` leaves one tower as it is. ``matryoshka`` names
    widths to which its rows can be cut (arXiv 2205.13147).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str | None = None
    config: str | None = None
    pretrained: str | None = None
    vision: Tower | None = None
    image_size: int | None = Positive
    patch_size: int | None = Positive
    width: int | None = Positive
    layers: int | None = Positive
    heads: int | None = Positive
    text_width: int | None = Positive
    text_layers: int | None = Positive
    text_heads: int | None = Positive
    embed_dim: int | None = Positive
    context_length: int | None = Positive
    tokenizer: str = "auto"
    vocab_size: int = 8192
    inherit: Literal["tinyclip", "even"] | None = None
    inherit_from: str | None = None
    keep: Literal["image", "text"] | None = None
    freeze: Literal["image", "text"] | None = None
    matryoshka: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> StudentSpec:
        given = [name for name in ("preset", "config", "pretrained") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"student: {' and '.join(given)} are given; expected one of preset, config, pretrained.")
        if given in (["config"], ["pretrained"]):
            if self._changes():
                raise ConfigError(
                    f"student.{given[0]} fixes the architecture, but {', '.join(self._changes())} "
                    "would change it. Drop these keys, or use student.preset."
                )
        elif not self.shape().has_text:
            self._check_pictures_alone()
        self._check_origin()
        return self

    @property
    def has_text(self) -> bool | None:
        """Whether the student has a text tower; None where only the model that is named can tell."""
        return None if self.config or self.pretrained else self.shape().has_text

    def _check_pictures_alone(self) -> None:
        unfit = [name for name in ("inherit", "keep", "freeze") if getattr(self, name)]
        if self.tokenizer != "auto":
            unfit.append("tokenizer")
        if self.vision:
            unfit.append("vision")
        if unfit:
            raise ConfigError(
                f"student.preset {self.preset} has one tower, of pictures, and a classifier head: student."
                f"{' and student.'.join(unfit)} {'is' if len(unfit) == 1 else 'are'} for models with a text tower."
            )

    def _check_origin(self) -> None:
        if self.pretrained and self.tokenizer != "auto":
            raise ConfigError("student.pretrained brings its own tokenizer: drop student.tokenizer.")
        if self.inherit and self.pretrained:
            raise ConfigError("student.inherit and student.pretrained are given; weights can come from only one.")
        if self.inherit_from and not (self.inherit or self.keep):
            raise ConfigError(
                "student.inherit_from is given without student.inherit or student.keep: add student.inherit=tinyclip, "
                "for instance."
            )
        if self.inherit and not self.config and self.shape().vision:
            raise ConfigError(
                f"student.inherit={self.inherit} fills a ViT, but the image tower is "
                f"{tower_name(self.shape().vision)}. Drop student.inherit, or choose a preset with a ViT."
            )
        if self.keep:
            self._check_kept(self.keep)

    def _check_kept(self, side: Literal["image", "text"]) -> None:
        others = [name for name in ("config", "pretrained", "inherit") if getattr(self, name)]
        if others:
            raise ConfigError(
                f"student.keep and student.{others[0]} are given; student.keep puts a preset's tower beside one of "
                "another model. Drop one of them."
            )
        fixed = [name for name in self._changes() if name in KEPT_SIZES[side]]
        if side == "text":
            plain = StudentSpec.model_fields
            fixed += [name for name in ("tokenizer", "vocab_size") if getattr(self, name) != plain[name].default]
        if fixed:
            raise ConfigError(
                f"student.keep={side} takes that tower and the joint width as they are, but student."
                f"{', student.'.join(fixed)} would change them. Drop these keys."
            )

    def _changes(self) -> dict[str, Any]:
        return {name: value for name in Preset.__dataclass_fields__ if (value := getattr(self, name)) is not None}

    def shape(self, embed_dim: int | None = None) -> Preset:
        """Return the preset with the run's changes; ``embed_dim`` (the teacher's) counts where the run has none.

        Raises :class:`ConfigError` for an unknown preset and for sizes that do not divide.
        """
        name = self.preset or DEFAULT_PRESET
        if name not in PRESETS:
            raise ConfigError(f"student.preset '{name}' is unknown.{did_you_mean(name, PRESETS)}")
        base, changes = PRESETS[name], self._changes()
        if vision := self.vision or base.vision:
            _refuse_vit_sizes(vision, changes)
            base = replace(base, patch_size=0, width=0, layers=0, heads=0)
        if not base.has_text:
            _refuse_text_sizes(name, changes)
            embed_dim = None
        if self.width:
            changes = {"heads": _heads(self.width)} | changes
        if self.width and base.has_text:
            changes = {"text_width": _scaled(base.text_width, self.width / base.width)} | changes
        if "text_width" in changes:
            changes = {"text_heads": _heads(changes["text_width"])} | changes
        given: dict[str, Any] = {"embed_dim": embed_dim} if embed_dim else {}
        shape = replace(base, **(given | changes))
        if not shape.vision:
            _check_division("student.image_size", shape.image_size, "student.patch_size", shape.patch_size)
            _check_division("student.width", shape.width, "student.heads", shape.heads)
        if base.has_text:
            _check_division("student.text_width", shape.text_width, "student.text_heads", shape.text_heads)
        return shape


def _refuse_text_sizes(name: str, changes: Iterable[str]) -> None:
    if unfit := [f"student.{size}" for size in changes if size in TEXT_SIZES]:
        raise ConfigError(
            f"{', '.join(unfit)}: student.preset {name} has no text tower to change; its rows are as wide as "
            "student.width. Drop these keys, or choose another preset."
        )


def tower_name(vision: Tower) -> str:
    """Name an image tower in messages; a configuration by its model type."""
    return vision if isinstance(vision, str) else str(vision.get("model_type", "a configuration"))


def _refuse_vit_sizes(vision: Tower, changes: Iterable[str]) -> None:
    if unfit := [f"student.{size}" for size in changes if size in VIT_SIZES]:
        raise ConfigError(
            f"{', '.join(unfit)}: the image tower is {tower_name(vision)}, which brings its own sizes; these are for "
            "a ViT. Drop these keys, or name another tower as student.vision."
        )


def _scaled(width: int, ratio: float) -> int:
    """Scale a width, to the next multiple of 16."""
    return max(16, round(width * ratio / 16) * 16)


def _heads(width: int) -> int:
    """Return about one head in 64 channels, two at least, as long as the heads divide the width."""
    return next(heads for heads in range(max(2, width // 64), 0, -1) if width % heads == 0)


def _check_division(name: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        raise ConfigError(f"{name} is {value}, {by} is {divisor}: the second must divide the first.")

"""How the layers of a new image tower begin: as the identity, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from clipdistill.models.presets import StudentSpec
from clipdistill.models.starts import start_at_zero
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer

NEW = StudentSpec(preset="scenes-student")
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def layers_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for name, layer in module.named_modules() if name.split(".")[-1].isdigit() and "layer" in name]


def clip() -> torch.nn.Module:
    config = hf.CLIPConfig(
        text_config={**SIZES, "vocab_size": 100}, vision_config={**SIZES, "image_size": 8, "patch_size": 4}
    )
    return hf.CLIPModel(config)


@pytest.mark.parametrize("kind", ["CLIP's", "SigLIP's", "ViT's"])
def test_every_new_layer_of_an_image_tower_is_the_identity(kind: str) -> None:
    torch.manual_seed(0)
    vision = {**SIZES, "image_size": 8, "patch_size": 4}
    module = {
        "CLIP's": lambda: clip(),
        "SigLIP's": lambda: hf.SiglipModel(
            hf.SiglipConfig(text_config={**SIZES, "vocab_size": 100}, vision_config=vision)
        ),
        "ViT's": lambda: hf.ViTForImageClassification(hf.ViTConfig(**vision)),
    }[kind]()
    found = layers_of(getattr(module.eval(), "vision_model", module))
    assert len(found) == 2
    x = torch.randn(3, 5, 16)

    def through(layer: Any) -> torch.Tensor:
        out = layer(x, attention_mask=None) if kind != "ViT's" else layer(x)
        return out[0] if isinstance(out, tuple) else out

    with torch.no_grad():
        assert all((through(layer) - x).abs().max() > 1e-3 for layer in found)
        others = {name: p.clone() for name, p in module.named_parameters() if p.any()}
        start_at_zero(module, NEW)
        assert all(torch.allclose(through(layer), x, atol=1e-4) for layer in found)
    silent = {name for name, before in others.items() if not torch.equal(before, module.get_parameter(name))}
    assert len(silent) == 2 * len(found), "text towers and SigLIP's pooling head stay what they were"


def test_bert_and_swin_end_their_branches_elsewhere() -> None:
    text = hf.ChineseCLIPTextConfig(**SIZES, vocab_size=100)
    swin = hf.SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    bert, blocks = hf.ChineseCLIPTextModel(text), hf.SwinModel(swin)
    for module in (bert, blocks):
        start_at_zero(module, NEW)
    silent = {
        name for m in (bert, blocks) for name, p in m.named_parameters() if name.endswith("weight") and not p.any()
    }
    assert len(silent) == 2 * 2 + 2 * 2
    assert not any("intermediate" in name or "fc1" in name for name in silent)


def test_what_is_not_new_stays_what_it_is() -> None:
    tokenizer = train_tokenizer(["a red circle"], 520, 32)
    donor = build(NEW, tokenizer)

    def silent(spec: StudentSpec) -> set[str]:
        module = build(spec, tokenizer, donor=donor).module
        start_at_zero(module, spec)
        ends = [name for name, p in module.named_parameters() if p.ndim == 2 and not p.any()]
        return {name.split(".")[0] for name in ends}

    assert silent(NEW) == {"vision_model"}
    assert silent(NEW.model_copy(update={"inherit": "even"})) == set()
    assert silent(NEW.model_copy(update={"keep": "image"})) == set()
    assert silent(NEW.model_copy(update={"keep": "text"})) == {"vision_model"}
    assert silent(StudentSpec(preset="scenes-cnn")) == set()

"""What tells one model from another: weights, and what is said of the computation beside them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from clipdistill.models.quiet import quiet

#: What a configuration says of other things than the rows of a finished model.
_ELSE = {
    *("architectures", "chunk_size_feed_forward", "dtype", "transformers_version"),  # how it is stored and run
    *("id2label", "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states", "use_cache"),
    *("initializer_factor", "initializer_range", "logit_scale_init_value"),  # how it began
    *("projection_dim", "tie_word_embeddings"),  # the weights show these
}


def hash_model(module: nn.Module, *rules: str) -> str:
    """Return a hash of a module's weights and buffers and of what is said about its inputs, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for text in rules:
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def settings_text(config: Any) -> str:
    """Describe what a configuration of transformers says of the computation and no weight shows, as JSON.

    Activations, heads, epsilons, the token at which a caption ends...: all values but those that the class has by
    itself, so that a key which a later version of the library adds changes nothing.
    """
    with quiet():
        return json.dumps(_settings(config), sort_keys=True, default=str)


def _settings(config: Any) -> dict[str, Any]:
    try:
        usual = type(config)().to_dict()
    except (TypeError, ValueError):  # a pair of towers, which says nothing but what they are
        usual = {}
    found: dict[str, Any] = {"model_type": config.model_type}
    for key, value in config.to_dict().items():
        part = getattr(config, key, None)
        if isinstance(part, PreTrainedConfig):
            found[key] = _settings(part)
        elif key in usual and value != usual[key] and not _says_else(key):
            found[key] = value
    return found


def _says_else(key: str) -> bool:
    return key in _ELSE or key.startswith("_") or "drop" in key  # a finished model drops nothing


def tokenizer_text(tokenizer: Any) -> str:
    """Describe a tokenizer completely, less what its last call left behind in it."""
    about = [type(tokenizer).__name__, tokenizer.padding_side, sorted(tokenizer.get_vocab().items())]
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        about.append({key: value for key, value in backend.items() if key not in ("padding", "truncation")})
    return json.dumps(about, sort_keys=True)

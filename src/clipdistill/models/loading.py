"""Models by their URI: a folder, a file or a hub's name, whose layout says which module opens it."""

from __future__ import annotations

from typing import Any

from clipdistill.models import chinese_clip, huggingface, modelscope, open_clip, text, vision
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.hub import OPEN_CLIP, checkpoint_file, is_open_clip, model_folder
from clipdistill.models.vocabulary import read_tokenizer
from clipdistill.models.weights import model_type


def load(uri: str, device: str = "cpu") -> DualEncoder:
    """Load a model, in evaluation mode and float32, from a folder, a file or a hub; see :func:`hub.model_folder`.

    Weights, tokenizer and image processor must all be there and fit: nothing is initialised at random and nothing
    guessed. What is no dual encoder is opened as a model of pictures alone or of captions alone, see
    :mod:`clipdistill.models.vision` and :mod:`clipdistill.models.text`; a checkpoint file is Chinese-CLIP's; a folder
    may have ModelScope's layout, or open_clip's. Raises :class:`ModelError`.
    """
    if uri.startswith(OPEN_CLIP):
        return open_clip.load(uri, device)
    if file := checkpoint_file(uri):
        return chinese_clip.load(uri, file, device)
    folder = model_folder(uri)
    if is_open_clip(folder):
        return open_clip.load_folder(uri, folder, device)
    if modelscope.is_modelscope(folder):
        return modelscope.load(uri, folder, device)
    if text.opens(folder):
        return text.load(uri, folder, device)
    if model_type(folder) not in huggingface.FAMILIES:
        return vision.load(uri, folder, device)
    return huggingface.load(uri, folder, device)


def look_up(uri: str) -> None:
    """Find what describes a model, without its weights; raises :class:`ModelError` where that cannot be had."""
    if uri.startswith(OPEN_CLIP):
        open_clip.look_up(uri)
    else:
        model_folder(uri, weights=False)


def tokenizer_of(uri: str) -> Any:
    """Load the tokenizer of a model, without its weights; raises :class:`ModelError` if that cannot be had."""
    if uri.startswith(OPEN_CLIP) or is_open_clip(model_folder(uri, weights=False)):
        return open_clip.lend_tokenizer(uri)
    return read_tokenizer(model_folder(uri, weights=False))

"""A first run file, from three answers: which pictures, which teacher, which student."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from clipdistill.config import make_run
from clipdistill.data.images import decode
from clipdistill.data.samples import Sample, gives, is_chinese
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, DataError, ModelError, did_you_mean
from clipdistill.files import write_text
from clipdistill.models.hub import is_hub_name, model_folder
from clipdistill.models.presets import PRESETS
from clipdistill.teachers.manifest import MANIFEST

#: As many samples are looked at to learn what data are like.
_LOOKED_AT = 200
_ON_HUBS = ("hf:", "ms:", "hf-hub:", "open_clip:")
#: Steps below which a run from random weights has hardly begun, and passes over little data that make up for it.
_STEPS, _EPOCHS, _MOST_EPOCHS = 2_000, 10, 100


@dataclass(frozen=True)
class Pictures:
    """What was seen of data: how many pictures, with captions or without, mostly Chinese or not; data to test on."""

    uri: str
    count: int
    captioned: bool
    chinese: bool
    test: str | None

    def describe(self) -> str:
        """Say it in a line."""
        words = ("captions, mostly Chinese" if self.chinese else "captions") if self.captioned else "no captions"
        return f"{self.uri}: {self.count:,} pictures, {words}"

    @property
    def likely_teacher(self) -> str:
        """A teacher on the hub that reads the captions' language."""
        return "OFA-Sys/chinese-clip-vit-base-patch16" if self.chinese else "openai/clip-vit-base-patch32"


def look_at(uri: str) -> Pictures:
    """Open data and decode their first picture.

    Raises:
        DataError: there are none, they have no pictures, or the first picture cannot be read.
    """
    source = pairs(uri)
    if len(source) < 2:
        raise DataError(f"{uri}: found {len(source)} samples, which is too few to train on.")
    if "I" not in gives(source):
        raise DataError(f"{uri}: captions without pictures. Name the pictures here; captions go to the key unpaired.")
    samples = [source[place] for place in range(min(len(source), _LOOKED_AT))]
    try:
        decode(samples[0].picture)
    except DataError as error:
        raise DataError(f"{uri}: the first picture, {samples[0].id}, cannot be read: {error}") from error
    captions = [caption for sample in samples for caption in sample.captions]
    if "?" not in uri and all(map(_says_little, samples)):
        uri, captions = f"{uri}?caption=none", []
    chinese = sum(map(is_chinese, captions)) > len(captions) / 2
    return Pictures(uri, len(source), bool(captions), chinese, _test_of(uri) if captions else None)


def _says_little(sample: Sample) -> bool:
    """Whether a sample's captions are none, or no more than a file's name such as ``IMG_0001``."""
    name = Path(sample.id).stem.replace("_", " ").replace("-", " ").strip()
    named = sample.captions == [name] and sample.label is None and len(re.findall(r"[^\W\d]{2,}", name)) < 2
    return named or not sample.captions


def _test_of(uri: str) -> str | None:
    """The folder of test data beside one that is called ``train``."""
    path = Path(uri)
    for name in ("test", "val", "valid") if path.is_dir() and path.name == "train" else ():
        if (path.parent / name).is_dir():
            return str(path.parent / name)
    return None


def find_teacher(uri: str) -> str:
    """Say what a teacher's name stands for: a store, a model on this disk, or one on a hub.

    Raises:
        ModelError: it is none of them.
    """
    path = Path(uri.removeprefix("file:")).expanduser()
    if (path / MANIFEST).is_file():
        return f"{uri}: stored embeddings; no teacher will run"
    if not path.exists() and (uri.startswith(_ON_HUBS) or is_hub_name(uri)):
        return f"{uri}: no folder here, so a name on a hub; it is fetched when it is first used"
    folder = model_folder(uri)
    if not any(folder.glob("*.json")) and not path.is_file():
        raise ModelError(f"{folder} holds no model: expected config.json and weights in it, or a store's {MANIFEST}.")
    return f"{uri}: a model on this disk"


def check_preset(name: str) -> None:
    """Raise :class:`ConfigError` for a name that is no preset."""
    if name not in PRESETS:
        raise ConfigError(f"there is no student '{name}'.{did_you_mean(name, dual_presets())}")


def write_run(path: Path, pictures: Pictures, teacher: str | None, preset: str) -> None:
    """Write the run file, with the keys that are most often changed as comments.

    Raises:
        ConfigError: there is such a file already, or the answers make no run.
    """
    refuse_existing(path)
    if not pictures.captioned and teacher is None:
        raise ConfigError(
            f"{pictures.uri} has no captions: without a teacher there is nothing to learn from. Name a teacher, or see "
            "'Models of pictures alone' in docs/runs.md."
        )
    if not PRESETS[preset].has_text:
        raise ConfigError(
            f"the student {preset} has no text tower; 'Models of pictures alone' in docs/runs.md says how to train it. "
            f"Here expected one of: {', '.join(dual_presets())}."
        )
    text = _text(path, pictures, teacher, preset)
    make_run(yaml.safe_load(text), str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another file.") from error


def refuse_existing(path: Path) -> None:
    """Raise :class:`ConfigError` where a run file would replace something."""
    if path.exists():
        raise ConfigError(f"{path} is there already, and is left as it is. Name another file: clipdistill init FILE")


def dual_presets() -> list[str]:
    """The presets with two towers that are not the benchmark's own."""
    return [name for name, preset in PRESETS.items() if preset.has_text and not name.startswith("scenes")]


def _text(path: Path, pictures: Pictures, teacher: str | None, preset: str) -> str:
    return "\n".join([*_head(path), *_what(pictures, teacher), *_student(pictures, preset), *_rest(path, pictures)])


def _head(path: Path) -> Iterable[str]:
    yield f"# What it will cost: clipdistill plan {path}"
    yield f"# Train:             clipdistill distill {path}"
    yield "# Any key can also be changed on that line, as in train.epochs=20; docs/runs.md has them all."
    yield "# A key in a comment shows the value that it has without its line."
    yield ""


def _what(pictures: Pictures, teacher: str | None) -> Iterable[str]:
    """The recipe, the data and the teacher."""
    if teacher is None:
        yield "# No teacher: the student learns from the captions alone, which takes far more pictures. To distil,"
        yield "# write the recipe best instead, and below it a line with teachers and {T: MODEL}."
        yield "recipe: clip"
    elif pictures.captioned:
        yield "# What is compared with what; clipdistill recipes list tells the others."
        yield "recipe: best"
    else:
        yield "# Pictures without captions: the student's rows go where the teacher's are."
        yield 'recipe: [{feature: "SI>TI", metric: l2}]'
    yield _line("data", pictures.uri)
    if teacher is not None:
        yield "# A model, or a store of its rows: clipdistill embed DATA --model MODEL --out STORE runs it only once."
        yield from ("teachers:", "  " + _line("T", teacher))
    yield ""


def _student(pictures: Pictures, preset: str) -> Iterable[str]:
    shape = PRESETS[preset]
    yield from ("# clipdistill students tells their sizes and, with --target-ms, their speed here.", "student:")
    yield f"  preset: {preset}"
    if not pictures.captioned:
        yield "  # Nothing teaches a text tower here, so it is the teacher's own."
        yield from ("  keep: text", "  freeze: text")
    yield f"  # image_size: {shape.image_size}"
    if shape.width:
        yield f"  # width: {shape.width}"
        yield f"  # layers: {shape.layers}"
    if pictures.captioned:
        yield "  # tokenizer: auto                # the teacher's; train: a new one, from the captions"
    yield ""


def _rest(path: Path, pictures: Pictures) -> Iterable[str]:
    """How long and how fast, what to test on, where to write."""
    batch = 2
    while batch * 8 <= pictures.count and batch < 256:
        batch *= 2
    epochs = min(max(_EPOCHS, -(-_STEPS * batch // pictures.count)), _MOST_EPOCHS)
    yield from ("train:", f"  epochs: {epochs}", f"  batch_size: {batch}")
    yield "  # micro_batch: null              # so many samples at once, where memory is short; same losses"
    yield "  # lr: 0.001"
    yield "  # muon_lr: 0.02"
    yield "  # precision: auto                # bfloat16 where it is faster"
    yield "  # workers: 1                     # processes that read ahead"
    yield "  # checkpoint_every: 10%"
    yield ""
    yield "# What the student is tried on at the end; every: 10% also tries it on the way."
    if pictures.test:
        yield from ("evaluate:", "  " + _line("retrieval", pictures.test))
    else:
        yield "# evaluate: {retrieval: null}      # captioned data that are not trained on"
    yield from ("", "# seed: 0", _line("out", f"runs/{path.stem}"), "")


def _line(key: str, value: str) -> str:
    """One key with a text, quoted where YAML needs it."""
    return yaml.safe_dump({key: value}, allow_unicode=True, width=10_000).rstrip()

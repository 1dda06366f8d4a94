"""What a model is worth on data: embed once, then every metric the data afford; any number of models side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipdistill.data import captions as scene_captions
from clipdistill.data.batches import Batches, Inlet, in_turn
from clipdistill.data.labels import labels_of
from clipdistill.data.samples import Sample, Source, is_chinese
from clipdistill.data.sources import pairs
from clipdistill.data.workers import load
from clipdistill.errors import DataError
from clipdistill.evaluation import classify, retrieval, zeroshot
from clipdistill.evaluation.zeroshot import Classes
from clipdistill.models.encoder import DualEncoder, Inputs
from clipdistill.progress import console, progress

BATCH = 256
_LATENCY_RUNS = 15
#: So many pictures of a source may be unreadable.
MAX_BROKEN = 100

Rows = NDArray[np.float32]
#: The texts that retrieval asks with, and for each the pictures that answer it.
Questions = tuple[list[str], list[NDArray[np.intp]]]


@dataclass(frozen=True)
class Tasks:
    """What to measure, by data: any of the three may be missing.

    ``retrieval`` needs captions, ``image_retrieval`` labels or groups with at least two pictures, ``zeroshot`` labels:
    a dual encoder is given their names in sentences, a classifier has a head for them. ``ask`` says which texts
    retrieval asks with, :func:`every_caption` without it; ``classes`` what is told apart, beyond the labels at hand.
    """

    retrieval: Source | None = None
    image_retrieval: Source | None = None
    zeroshot: Source | None = None
    ask: Callable[[Gallery], Questions] | None = None
    classes: Classes | None = None

    @classmethod
    def open(
        cls,
        data: str | None = None,
        retrieval: str | None = None,
        image_retrieval: str | None = None,
        zeroshot: str | None = None,
    ) -> Tasks:
        """Open the data of each task by URI; ``data`` serves every task it affords that has no URI of its own."""
        general = cls.afforded(pairs(data)) if data else cls()
        return cls(
            pairs(retrieval) if retrieval else general.retrieval,
            pairs(image_retrieval) if image_retrieval else general.image_retrieval,
            pairs(zeroshot) if zeroshot else general.zeroshot,
        )

    def check(self) -> None:
        """Raise :class:`DataError` for data without what their task asks: before models are trained for it."""
        for task, needs in (
            ("retrieval", "captions"),
            ("image_retrieval", "two pictures of the same group, caption or thing"),
            ("zeroshot", "two labels at least"),
        ):
            source = getattr(self, task)
            if source is not None and getattr(self.afforded(source), task) is None:
                raise DataError(f"evaluate.{task}: {source.uri} has no {needs}. Name other data, or leave it out.")

    @classmethod
    def afforded(cls, source: Source) -> Tasks:
        """Every task for which ``source`` has what it takes."""
        samples = [source[index] for index in range(len(source))]
        keys = [key for sample in samples for key in sample.match_keys]
        return cls(
            source if any(sample.captions for sample in samples) else None,
            source if len(set(keys)) < len(keys) else None,
            source if len({sample.label for sample in samples} - {None}) > 1 else None,
        )


@dataclass(frozen=True)
class Gallery:
    """A source as one model sees it: the samples that could be read, and ``images [N, D]``.

    ``contents`` are keys of the pictures' bytes: equal pictures are never each other's wrong answer. ``ranks [N]``
    are those of each picture's own class under a classifier, see :func:`clipdistill.evaluation.classify.label_ranks`.
    """

    samples: list[Sample]
    images: Rows
    contents: list[int]
    ranks: NDArray[np.intp] | None = None
    ask: Callable[[Gallery], Questions] | None = None

    @cached_property
    def questions(self) -> Questions:
        """What retrieval asks with, in the order in which these texts are embedded, and what answers it."""
        return (self.ask or every_caption)(self)

    @property
    def told(self) -> list[tuple[int, str]]:
        """Every caption with the index of its picture."""
        return [(owner, caption) for owner, sample in enumerate(self.samples) for caption in sample.captions]

    @property
    def same(self) -> list[tuple[object, ...]]:
        """For each picture the keys that make it the same as others for text-image retrieval: bytes and group."""
        return [
            (content,) if sample.group is None else (content, ("group", sample.group))
            for sample, content in zip(self.samples, self.contents, strict=True)
        ]

    @property
    def alike(self) -> list[tuple[object, ...]]:
        """The same for image-to-image retrieval: bytes, group and label."""
        return [(content, *s.match_keys) for s, content in zip(self.samples, self.contents, strict=True)]


@dataclass
class Evaluation:
    """One model's parameters, metrics (percent) and latencies (milliseconds, one input at a time on this machine).

    ``galleries`` keeps the embeddings by task, for reports that show pictures; ``texts`` the rows of the texts that
    retrieval asks with, in the order of the gallery's questions.
    """

    name: str
    uri: str
    params: int
    image_params: int
    text_params: int
    metrics: dict[str, float] = field(default_factory=dict)
    latency: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    galleries: dict[str, Gallery] = field(default_factory=dict)
    texts: Rows | None = None


def every_caption(gallery: Gallery) -> Questions:
    """Every caption asks; pictures with its own picture's bytes or group, or with an equal caption, answer it too."""
    owners, captions = [owner for owner, _ in gallery.told], [caption for _, caption in gallery.told]
    return captions, retrieval.pictures_of_texts(owners, gallery.same, captions)


def evaluate(
    models: Mapping[str, DualEncoder], tasks: Tasks, workers: int = 1, max_broken: int = MAX_BROKEN
) -> list[Evaluation]:
    """Evaluate every model on the same pictures and captions; see :class:`Evaluation`.

    Pictures that cannot be read are named and left out, and so are tasks that a model has no tower or head for.

    Raises:
        DataError: there is nothing to measure, a source lacks the captions, labels or groups its task needs, its labels
            are not a classifier's classes, or more than ``max_broken`` of its pictures cannot be read.
    """
    chosen = {name: source for name in ("retrieval", "image_retrieval", "zeroshot") if (source := getattr(tasks, name))}
    if not chosen:
        raise DataError("there is nothing to evaluate: the data have neither captions nor labels nor groups.")
    able = _able(models, chosen, suite=bool(tasks.classes or tasks.ask))
    found = {name: _about(name, encoder) for name, encoder in models.items()}
    for source in {source.uri: source for source in chosen.values()}.values():
        served = [task for task in chosen if chosen[task].uri == source.uri]
        seeing = {name: encoder for name, encoder in models.items() if any(name in able[task] for task in served)}
        sorting = [name for name in seeing if models[name].classes and "zeroshot" in served]
        labels = labels_of(source) if sorting else {}
        asked = {
            name: classify.answers(labels, models[name].classes, tasks.classes, source.uri, models[name].uri)
            for name in sorting
        }
        for name, gallery in _embed(seeing, source, workers, max_broken, asked).items():
            seen = replace(gallery, ask=tasks.ask)
            found[name].galleries |= {task: seen for task in served if name in able[task]}
            found[name].skipped = max(found[name].skipped, len(source) - len(gallery.samples))
    for name, encoder in models.items():
        _measure(encoder, found[name], tasks.classes)
    for name, times in _latencies(models).items():
        found[name].latency = times
    return list(found.values())


def _able(models: Mapping[str, DualEncoder], tasks: Iterable[str], suite: bool) -> dict[str, list[str]]:
    """Return which models can do each task, and say which cannot; raise DataError if none can do any."""
    lacks = {task: {name: _lacks(encoder, task) for name, encoder in models.items()} for task in tasks}
    able = {task: [name for name, lack in by_name.items() if not lack] for task, by_name in lacks.items()}
    if not any(able.values()):
        told = dict.fromkeys(f"{name} has no {lack}" for by_name in lacks.values() for name, lack in by_name.items())
        instead = any("I" in encoder.sides for encoder in models.values()) and not suite
        raise DataError(
            f"there is nothing to evaluate: {', '.join(able)} cannot be measured, for {', '.join(told)}."
            f"{' Name labelled data as image_retrieval instead.' if instead else ''}"
        )
    for task, by_name in lacks.items():
        for name, lack in by_name.items():
            if lack:
                console.print(f"{name} has no {lack}: {task} is left out for it", markup=False)
    return able


def _lacks(encoder: DualEncoder, task: str) -> str:
    """What a model would need for a task and has not; empty if it can do it."""
    if "I" not in encoder.sides:
        return "image tower"
    if task == "image_retrieval" or "T" in encoder.sides or (task == "zeroshot" and encoder.classes):
        return ""
    return "text tower or classifier head" if task == "zeroshot" else "text tower"


@torch.no_grad()
def embed_texts(encoder: DualEncoder, texts: Sequence[str]) -> Rows:
    """Embed captions, ``[M, D]``, as the model gives them."""
    rows = [np.empty((0, encoder.width), np.float32)]
    with progress("embedding texts", len(texts), "texts") as advance:
        for start in range(0, len(texts), BATCH):
            rows.append(_move_and(encoder, encoder.texts, encoder.tokenize(texts[start : start + BATCH])))
            advance(min(start + BATCH, len(texts)), "")
    return np.concatenate(rows)


@torch.no_grad()
def _embed(
    models: Mapping[str, DualEncoder],
    source: Source,
    workers: int,
    max_broken: int,
    asked: Mapping[str, classify.Answers],
) -> dict[str, Gallery]:
    """Embed every readable picture of a source under every model; each picture is decoded once.

    ``asked`` is what every classifier whose head is to be tried has to answer.
    """
    inlets = {name: Inlet.of(encoder, "I") for name, encoder in models.items()}
    rows: dict[str, list[Rows]] = {name: [] for name in models}
    ranks: dict[str, list[NDArray[np.intp]]] = {name: [] for name in asked}
    contents: dict[str, int] = {}
    skipped: list[tuple[str, str]] = []
    with progress(f"embedding {source.uri}", len(source), "pictures") as advance:
        for number, batch in enumerate(load(Batches(source, inlets, None), in_turn(len(source), BATCH), workers), 1):
            contents |= dict(zip(batch.ids, batch.groups[:, 0].tolist() if batch.ids else [], strict=True))
            skipped += batch.skipped
            for name, encoder in models.items() if batch.ids else ():
                if name in asked:
                    images, logits = _classified(encoder, batch.pixels[name])
                    ranks[name].append(asked[name].ranks(logits, batch.ids))
                else:
                    images = _move_and(encoder, encoder.images, batch.pixels[name])
                rows[name].append(images)
            advance(min(number * BATCH, len(source)), "")
    _tell_skipped(source, skipped, max_broken)
    samples = [sample for sample in (source[index] for index in range(len(source))) if sample.id in contents]
    if not samples:
        raise DataError(f"none of the {len(source)} pictures of {source.uri} can be read.")
    keys = [contents[sample.id] for sample in samples]
    return {
        name: Gallery(samples, np.concatenate(rows[name]), keys, np.concatenate(ranks[name]) if name in asked else None)
        for name in models
    }


def _tell_skipped(source: Source, skipped: list[tuple[str, str]], max_broken: int) -> None:
    """Name the pictures that were left out; raise DataError if there are more than allowed."""
    for name, reason in skipped[:20]:
        console.print(f"skipped {name}: {reason}", markup=False)
    if len(skipped) > 20:
        console.print(f"and {len(skipped) - 20} more")
    if len(skipped) > max_broken:
        raise DataError(
            f"{len(skipped)} of {len(source)} pictures of {source.uri} cannot be read, {max_broken} are allowed. "
            f"Run 'clipdistill data check {source.uri}', and repair or remove them."
        )


def _move_and(encoder: DualEncoder, tower: Callable[[Inputs], Tensor], inputs: Inputs) -> Rows:
    return _as_rows(tower(_moved(encoder, inputs)))


def _classified(encoder: DualEncoder, pixels: Inputs) -> tuple[Rows, Rows]:
    images, logits = encoder.images_and_logits(_moved(encoder, pixels))
    return _as_rows(images), _as_rows(logits)


def _moved(encoder: DualEncoder, inputs: Inputs) -> Inputs:
    device = next(encoder.module.parameters()).device
    return {name: value.to(device) for name, value in inputs.items()}


def _as_rows(rows: Tensor) -> Rows:
    return np.asarray(rows.float().cpu().numpy(), np.float32)


def _measure(encoder: DualEncoder, found: Evaluation, classes: Classes | None) -> None:
    """Fill in the metrics of every task there is a gallery for."""
    encoder.module.eval()
    if gallery := found.galleries.get("retrieval"):
        found.metrics |= _retrieval(encoder, gallery, found)
    if gallery := found.galleries.get("image_retrieval"):
        found.metrics |= _image_retrieval(gallery)
    if gallery := found.galleries.get("zeroshot"):
        ranks = gallery.ranks
        found.metrics |= _zeroshot(encoder, gallery, classes) if ranks is None else classify.accuracies(ranks)


def _retrieval(encoder: DualEncoder, gallery: Gallery, found: Evaluation) -> dict[str, float]:
    texts, pictures = gallery.questions
    if not texts:
        raise DataError(
            "retrieval needs captions, and the data have none. Give labelled data as image_retrieval instead."
        )
    found.texts = embed_texts(encoder, texts)
    return retrieval.recalls(gallery.images, found.texts, pictures)


def _image_retrieval(gallery: Gallery) -> dict[str, float]:
    metrics = retrieval.image_image(gallery.images, gallery.alike)
    metrics.pop("image_to_image_left_out")
    if not metrics:
        raise DataError("image-to-image retrieval needs labels or groups that two pictures share, and no two do.")
    return metrics


def _zeroshot(encoder: DualEncoder, gallery: Gallery, classes: Classes | None) -> dict[str, float]:
    kept = [index for index, sample in enumerate(gallery.samples) if sample.label is not None]
    labels = [str(gallery.samples[index].label) for index in kept]
    names, prompts = (list(classes.labels), classes.prompts) if classes else class_prompts(labels)
    if len(names) < 2:
        raise DataError(f"zero-shot classification needs at least two labels, the data have {len(names)}.")
    given = [prompt for per_class in prompts for prompt in per_class]
    place = {prompt: number for number, prompt in enumerate(dict.fromkeys(given))}
    rows = embed_texts(encoder, list(place))[[place[prompt] for prompt in given]]  # equal prompts have equal rows
    centres = zeroshot.class_embeddings(rows, [len(per_class) for per_class in prompts])
    number = {name: number for number, name in enumerate(names)}
    return zeroshot.classify(gallery.images[kept], centres, [number[label] for label in labels])


def class_prompts(labels: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return class names and the prompts of each; Chinese names get Chinese sentences, scenes their own ensemble."""
    names, ensembles = scene_captions.prompts()
    if labels and set(labels) <= set(names):
        return names, ensembles["en"]
    names = sorted(set(labels))
    chinese = any(map(is_chinese, names))
    readable = [name.replace("_", " ") for name in names]
    return names, zeroshot.prompts_for(readable, "zh" if chinese else "en")


def _about(name: str, encoder: DualEncoder) -> Evaluation:
    """One model before it has seen anything; parameters of neither tower count as the image tower's."""
    sizes = {"I": 0, "T": 0}
    for key, parameter in encoder.module.named_parameters():
        side = "T" if key.startswith("text") else "I"
        sizes[side if side in encoder.sides else encoder.sides] += parameter.numel()
    return Evaluation(name, encoder.uri, sum(sizes.values()), sizes["I"], sizes["T"])


@torch.no_grad()
def _latencies(models: Mapping[str, DualEncoder]) -> dict[str, dict[str, float]]:
    """Median milliseconds for one picture and one caption, transform and tokenizer left out.

    Models are timed in turn: whatever else the machine does then slows all of them.
    """
    calls = {(name, key): call for name, encoder in models.items() for key, call in _calls(encoder).items()}
    times: dict[tuple[str, str], list[float]] = {which: [] for which in calls}
    for _ in range(_LATENCY_RUNS):
        for which, call in calls.items():
            start = time.perf_counter()
            call()
            times[which].append((time.perf_counter() - start) * 1000)
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for (name, key), own in times.items():
        found[name][key] = round(median(own[2:]), 3)
    return found


def _calls(encoder: DualEncoder) -> dict[str, Callable[[], object]]:
    """What embeds one picture and one caption."""
    calls: dict[str, Callable[[], object]] = {}
    if encoder.transform is not None and "I" in encoder.sides:
        height, width = encoder.transform.size
        look = encoder.transform(Image.new("RGB", (width, height)))
        pixels = {name: torch.from_numpy(value)[None] for name, value in look.items()}
        calls["image_ms"] = lambda: _move_and(encoder, encoder.images, pixels)
    if "T" in encoder.sides:
        tokens = encoder.tokenize(["a photo of two dogs on a beach"])
        calls["text_ms"] = lambda: _move_and(encoder, encoder.texts, tokens)
    return calls

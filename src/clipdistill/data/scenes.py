"""Scenes: a procedural bilingual data set of pictures and captions, with no file and no download.

``scenes:SPLIT?key=value&...`` is a data URI like any other::

    scenes:teacher      24,000 scenes, 4 captions each, most of them full: plenty of clean data
    scenes:train         4,000 scenes, 1 careless caption each, a tenth of them wrong
    scenes:validation    1,000 scenes, all different, 1 full caption each: what choices are made on
    scenes:test          1,000 scenes, all different, 1 full caption each: what is reported
    scenes:zeroshot        600 single objects with a class label, a third of them held-out combinations

Keys: ``n`` scenes; ``seed``; ``captions`` of each picture in each language; ``lang`` en, zh or both; ``noisy``,
the share of captions that are careless, which then lack each thing with probability ``drop`` and carry alt-text
junk with probability ``fill``; ``mismatch``, the share of captions that tell of another picture; ``copies`` of
each scene, drawn differently, for image-to-image retrieval.

Teacher, train, validation and test never share a scene, whatever ``n`` and ``seed``; each shows a single object
in every fifth picture. ``zeroshot`` takes its seen combinations from the scenes of ``test``, drawn anew.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from random import Random
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from clipdistill.data import scene_space
from clipdistill.data.captions import caption
from clipdistill.data.drawing import draw
from clipdistill.data.samples import Sample, Source, key64
from clipdistill.data.scene_space import Codes, Scene
from clipdistill.errors import DataError, did_you_mean

#: Pictures drawn together, with one random generator.
BLOCK = 500


@dataclass(frozen=True)
class Options:
    """What a URI asks of a split; the key of each is its name."""

    n: int
    seed: int = 0
    captions: int = 1
    lang: str = "en"
    noisy: float = 1.0
    drop: float = 0.0
    fill: float = 0.0
    mismatch: float = 0.0
    copies: int = 1


DEFAULTS = {
    "teacher": Options(n=24000, captions=4, noisy=0.3, drop=0.3, fill=0.3),
    "train": Options(n=4000, drop=0.3, fill=0.3, mismatch=0.1),
    "validation": Options(n=1000),
    "test": Options(n=1000),
    "zeroshot": Options(n=600),
}
#: Splits that show no scene twice.
UNIQUE = ("validation", "test")
LANGUAGES = {"en": ("en",), "zh": ("zh",), "both": ("en", "zh")}


def open_scenes(uri: str) -> Source:
    """Open ``scenes:SPLIT?n=16000&seed=0&...`` as a source of samples.

    Raises :class:`DataError` for an unknown split, key or language, for a number that makes no sense, and for
    more scenes than a split without repetition holds.
    """
    split, options = parse(uri)
    source = SceneSource(uri, split, options)
    if split in UNIQUE:
        _refuse_repetition(source)
    return source


def parse(uri: str) -> tuple[str, Options]:
    """Split a URI into the split's name and its options, the defaults filled in."""
    split, _, query = uri.removeprefix("scenes:").partition("?")
    if split not in DEFAULTS:
        raise DataError(f"{uri}: there is no split '{split}' of scenes.{did_you_mean(split, DEFAULTS)}")
    options = DEFAULTS[split]
    kinds = {field.name: type(getattr(options, field.name)) for field in fields(Options)}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in kinds:
            raise DataError(f"{uri}: scenes have no option '{key}'.{did_you_mean(key, kinds)}")
        try:
            value = kinds[key](text)
        except ValueError:
            wanted = "a whole number" if kinds[key] is int else "a number"
            raise DataError(f"{uri}: {key}={text} should be {wanted}.") from None
        options = replace(options, **{key: value})
    _check(uri, options)
    return split, options


def _check(uri: str, options: Options) -> None:
    if options.lang not in LANGUAGES:
        raise DataError(f"{uri}: there is no language '{options.lang}'.{did_you_mean(options.lang, LANGUAGES)}")
    for key in ("n", "captions", "copies"):
        if getattr(options, key) < 1:
            raise DataError(f"{uri}: {key}={getattr(options, key)} should be 1 or more.")
    for key in ("noisy", "drop", "fill", "mismatch"):
        if not 0 <= getattr(options, key) <= 1:
            raise DataError(f"{uri}: {key}={getattr(options, key)} should be a share from 0 to 1.")


def _refuse_repetition(source: SceneSource) -> None:
    singles = len(scene_space.part(source.split, 1))
    most = len(_PATTERN) * (singles + 1) - 1  # the last of every five scenes shows a single object
    if source.options.n > most:
        raise DataError(
            f"{source.uri}: the split '{source.split}' shows no scene twice and can supply {most} scenes at most, "
            f"since every fifth shows a single object and it holds {singles} of these. Ask for n={most} or fewer, "
            "or draw each scene again with copies=2."
        )


class SceneSource:
    """The pictures and captions of one split, drawn when first asked for and then kept.

    Picture ``i`` shows scene ``i // copies``. It is a function of the split, the seed and its own number: asking
    for more pictures, captions or copies changes none of the first ones.
    """

    def __init__(self, uri: str, split: str, options: Options) -> None:
        self.uri = uri
        self.split = split
        self.options = options
        self._blocks: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return self.options.n * self.options.copies

    def __getitem__(self, index: int) -> Sample:
        number, copy = self._place(index)
        scene = self._scene(number)
        return Sample(
            id=self.id_of(index),
            image=self._picture(number, copy),
            texts={"": self._captions(number, copy)},
            label=scene.objects[0].label if self.split == "zeroshot" else None,
            group=f"{self.split}/{number:06d}" if self.options.copies > 1 else None,
        )

    def id_of(self, index: int) -> str:
        """The id of picture ``index``, which is not drawn for it."""
        number, copy = self._place(index)
        name = f"{self.split}/{number:06d}"
        return name if self.options.copies == 1 else f"{name}-{copy + 1}"

    def scene(self, index: int) -> Scene:
        """Return what picture ``index`` shows."""
        return self._scene(self._place(index)[0])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the options and of the first pictures with their captions: it changes when the rules do."""
        known = [repr(self.options), self.split]
        for sample in (self[index] for index in range(min(len(self), 16))):
            known += [sample.id, *sample.captions, np.asarray(sample.image).tobytes().hex()]
        return f"{key64(*known):016x}"

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of the scene and of the copy."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.uri} has {len(self)} pictures, there is no number {index}")
        return divmod(index % len(self), self.options.copies)

    @cached_property
    def _codes(self) -> Codes:
        """The scenes of all blocks, whole blocks, so that no picture depends on where the split ends."""
        return _deal(self.split, -(-self.options.n // BLOCK) * BLOCK, self.options.seed)

    def _scene(self, number: int) -> Scene:
        return scene_space.scene(int(self._codes[number]))

    def _picture(self, number: int, copy: int) -> NDArray[np.uint8]:
        block, row = divmod(number, BLOCK)
        if (block, copy) not in self._blocks:
            scenes = tuple(self._scene(block * BLOCK + i) for i in range(BLOCK))
            key = key64("pictures", self.split, self.options.seed, block, copy)
            self._blocks[block, copy] = _drawn(scenes, key)
        picture: NDArray[np.uint8] = self._blocks[block, copy][row]
        return picture

    def _captions(self, number: int, copy: int) -> list[str]:
        languages, count = LANGUAGES[self.options.lang], self.options.captions
        return [self._caption(number, copy, lang, i) for lang in languages for i in range(count)]

    def _caption(self, number: int, copy: int, language: str, turn: int) -> str:
        """Tell of the scene, or, as often as ``mismatch`` says, of another one of the same block."""
        options = self.options
        rng = Random(key64("captions", self.split, options.seed, number, copy, language, turn))
        wrong, careless = rng.random() < options.mismatch, rng.random() < options.noisy
        if wrong:
            block, row = divmod(number, BLOCK)
            number = block * BLOCK + (row + rng.randrange(1, BLOCK)) % BLOCK
        drop, fill = (options.drop, options.fill) if careless else (0.0, 0.0)
        return caption(self._scene(number), language, rng, drop, fill)


#: What consecutive pictures show: two objects four times, then one; in zero-shot, a seen combination twice, then
#: a held-out one.
_PATTERN = ("pair", "pair", "pair", "pair", "single")
_ZEROSHOT_PATTERN = ("single", "single", "held out")


@lru_cache(16)  # 3.5 MB each; a split is often opened again, and drawing takes longer than many a use of it
def _drawn(scenes: tuple[Scene, ...], key: int) -> NDArray[np.uint8]:
    pictures = draw(scenes, np.random.default_rng(key))
    pictures.flags.writeable = False
    return pictures


@lru_cache(16)  # shuffling takes as long
def _deal(split: str, count: int, seed: int) -> Codes:
    """Deal the first ``count`` scenes of a split, kind by kind from its own shuffled deck."""
    pattern = _ZEROSHOT_PATTERN if split == "zeroshot" else _PATTERN
    kinds = np.resize(np.array(pattern), count)
    codes = np.empty(count, np.int64)
    for kind in sorted(set(pattern)):
        places = np.flatnonzero(kinds == kind)
        codes[places] = scene_space.deal(_deck(split, kind), len(places), split, seed, kind)
    return codes


def _deck(split: str, kind: str) -> Codes:
    if kind == "held out":
        return scene_space.held_out()
    return scene_space.part("test" if split == "zeroshot" else split, 2 if kind == "pair" else 1)

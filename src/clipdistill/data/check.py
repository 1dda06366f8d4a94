"""What is in a source and what is wrong with it: every picture is read, every caption looked at."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace

from clipdistill.data.images import content_hash, decode, full_size
from clipdistill.data.samples import HAN, Sample, Source, caption_key, is_chinese, name_of
from clipdistill.errors import DataError

#: Called with how many pictures are read and how many there are.
Progress = Callable[[int, int], None]

# One line, and the cases it is about.
_Finding = tuple[str, list[str]]

_SHOWN = 20  # cases named in the text; all of them are in the JSON
_MOST = 5  # repeated captions named
_BLOCK = 1024  # pictures handed to the threads at a time
_WORD = re.compile(rf"[{HAN}]|[^\s{HAN}]+")


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some numbers."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[int]) -> Spread | None:
        """Summarise numbers; None if there are none."""
        return cls(min(values), statistics.median(values), max(values)) if values else None


@dataclass
class Report:
    """What a check found.

    ``pictures`` and ``unlabelled`` count what has a picture, and name what has no label where others have one.
    ``unreadable`` maps ids to reasons. ``without_caption`` names samples whose caption is missing: in a source
    without captions none is. ``repeated_captions`` counts captions that an earlier one equals,
    ``repeated_most`` the most frequent of them. ``equal_pictures`` are groups of ids with the same bytes.
    ``words`` counts each Chinese character as one. ``chinese`` is the share of captions with Chinese
    characters. ``shared_pictures`` are (id here, id there) with the same bytes in the source compared with,
    ``shared_captions`` the captions found in both.
    """

    uri: str
    against: str | None = None
    samples: int = 0
    pictures: int = 0
    captions: int = 0
    labels: int = 0
    labelled: int = 0
    unlabelled: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    without_caption: list[str] = field(default_factory=list)
    with_empty_caption: list[str] = field(default_factory=list)
    repeated_captions: int = 0
    repeated_share: float = 0.0
    repeated_most: list[tuple[str, int]] = field(default_factory=list)
    equal_pictures: list[list[str]] = field(default_factory=list)
    width: Spread | None = None
    height: Spread | None = None
    smallest_side: Spread | None = None
    characters: Spread | None = None
    words: Spread | None = None
    chinese: float = 0.0
    shared_pictures: list[tuple[str, str]] = field(default_factory=list)
    shared_captions: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """What must be mended before training or evaluation."""
        return [text for text, _ in _errors(self)]

    @property
    def warnings(self) -> list[str]:
        """What may be intended, and should be known."""
        return [text for text, _ in _warnings(self)]

    def to_json(self) -> str:
        """Return everything found, with the errors and warnings, as JSON text."""
        return json.dumps(asdict(self) | {"errors": self.errors, "warnings": self.warnings}, indent=2)


@dataclass(frozen=True)
class _Look:
    """What one sample showed: ``captions`` is None in a source without them, ``reason`` says why a picture failed."""

    id: str
    captions: list[str] | None
    label: str | None
    seen: bool
    digest: str | None = None
    size: tuple[int, int] | None = None
    reason: str | None = None


def check(source: Source, against: Source | None = None, progress: Progress | None = None) -> Report:
    """Read every picture and caption of a source, and look for what it shares with another one.

    ``progress(done, total)`` is called now and then. Problems are never raised: they are in the report.
    """
    total = len(source) + (len(against) if against else 0)
    report = Report(source.uri, against.uri if against else None, len(source))
    looks = list(_looks(source, _read, _from(0, total, progress)))
    _fill_counts(report, looks)
    _fill_captions(report, [caption for caption in _told(looks) if caption.strip()])
    _fill_pictures(report, looks)
    if against:
        others = _looks(against, _hash, _from(len(source), total, progress))
        _fill_shared(report, looks, others)
    return report


def _from(start: int, total: int, progress: Progress | None) -> Callable[[int], None]:
    return lambda done: progress(start + done, total) if progress else None


def _looks(source: Source, look: Callable[[Sample], _Look], done: Callable[[int], None]) -> Iterator[_Look]:
    """Look at all samples in their order, with as many threads as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(source), _BLOCK):
            block = range(start, min(start + _BLOCK, len(source)))
            for index, result in zip(block, threads.map(lambda i: _look_at(source, i, look), block), strict=True):
                yield result
                if index % 64 == 63 or index + 1 == len(source):
                    done(index + 1)


def _look_at(source: Source, index: int, look: Callable[[Sample], _Look]) -> _Look:
    """Look at one sample; of what is said of it something may be damaged too."""
    try:
        sample = source[index]
    except DataError as error:
        return _Look(name_of(source, index), None, None, False, reason=str(error))
    return look(sample)


def _read(sample: Sample) -> _Look:
    """Decode the picture to the end, at an eighth of its size where the format allows that."""
    look = _words(sample)
    if sample.image is None:
        return look
    try:
        size = full_size(decode(sample.image, want=(1, 1)))
    except DataError as error:
        return replace(look, reason=str(error).removeprefix(f"{sample.image!s}: "))
    return replace(look, digest=content_hash(sample.image), size=size)


def _hash(sample: Sample) -> _Look:
    look = _words(sample)
    try:
        return replace(look, digest=content_hash(sample.picture))
    except (OSError, ValueError, DataError):
        return look


def _words(sample: Sample) -> _Look:
    return _Look(sample.id, sample.texts.get(""), sample.label, sample.image is not None)


def _fill_counts(report: Report, looks: list[_Look]) -> None:
    report.pictures = sum(look.seen for look in looks)
    report.captions = sum(1 for _ in _told(looks))
    report.labelled = sum(look.label is not None for look in looks)
    report.unlabelled = [look.id for look in looks if look.label is None] if report.labelled else []
    report.labels = len({look.label for look in looks} - {None})
    report.unreadable = {look.id: look.reason for look in looks if look.reason is not None}
    report.without_caption = [look.id for look in looks if look.captions == []]
    report.with_empty_caption = [look.id for look in looks if not all(c.strip() for c in look.captions or ())]


def _told(looks: Iterable[_Look]) -> Iterator[str]:
    return (caption for look in looks for caption in look.captions or ())


def _fill_captions(report: Report, captions: list[str]) -> None:
    first = {caption_key(caption): caption for caption in reversed(captions)}
    times = Counter(first[caption_key(caption)] for caption in captions)
    report.repeated_captions = len(captions) - len(times)
    report.repeated_share = report.repeated_captions / max(len(captions), 1)
    report.repeated_most = [(text, n) for text, n in times.most_common(_MOST) if n > 1]
    report.characters = Spread.of([len(caption) for caption in captions])
    report.words = Spread.of([len(_WORD.findall(caption)) for caption in captions])
    report.chinese = sum(map(is_chinese, captions)) / max(len(captions), 1)


def _fill_pictures(report: Report, looks: list[_Look]) -> None:
    sizes = [look.size for look in looks if look.size]
    report.width = Spread.of([width for width, _ in sizes])
    report.height = Spread.of([height for _, height in sizes])
    report.smallest_side = Spread.of([min(size) for size in sizes])
    same = defaultdict(list)
    for look in looks:
        if look.digest:
            same[look.digest].append(look.id)
    report.equal_pictures = [ids for ids in same.values() if len(ids) > 1]


def _fill_shared(report: Report, looks: list[_Look], others: Iterable[_Look]) -> None:
    pictures: dict[str, str] = {}
    captions: set[str] = set()
    for other in others:
        captions.update(map(caption_key, other.captions or ()))
        if other.digest:
            pictures.setdefault(other.digest, other.id)
    report.shared_pictures = [(x.id, pictures[x.digest]) for x in looks if x.digest in pictures]
    here = dict.fromkeys(_told(looks))
    report.shared_captions = [caption for caption in here if caption.strip() and caption_key(caption) in captions]


def _errors(report: Report) -> list[_Finding]:
    unreadable = [f"{name}: {reason}" for name, reason in report.unreadable.items()]
    only_labels = report.captions == 0 and report.labelled == report.samples
    silent = [] if only_labels else report.without_caption
    noun = "picture" if report.pictures == report.samples else "sample"
    shared = [f"{here} is {there} there" for here, there in report.shared_pictures]
    return [
        *_finding(len(unreadable), "picture", "cannot be read", unreadable),
        *_finding(len(silent), noun, "without a caption", silent),
        *_finding(len(report.with_empty_caption), noun, "with an empty caption", report.with_empty_caption),
        *_finding(len(shared), "picture", f"also in {report.against} (identical bytes)", shared),
    ]


def _warnings(report: Report) -> list[_Finding]:
    most = [f"{n} times: {text}" for text, n in report.repeated_most]
    equal = [", ".join(ids) for ids in report.equal_pictures]
    extra = sum(len(ids) - 1 for ids in report.equal_pictures)
    repeated = f"equal to an earlier one ({report.repeated_share:.1%})"
    shared = report.shared_captions
    unlabelled = [] if report.captions or report.without_caption else report.unlabelled
    return [
        *_finding(len(unlabelled), "picture", "without a caption or label", unlabelled),
        *_finding(report.repeated_captions, "caption", repeated, most),
        *_finding(extra, "picture", "identical to an earlier one", equal),
        *_finding(len(shared), "caption", f"also in {report.against}", shared),
    ]


def _finding(n: int, noun: str, rest: str, details: list[str]) -> list[_Finding]:
    return [(f"{_count(n, noun)} {rest}", details)] if n else []


def render(report: Report) -> str:
    """Return a report as plain text: figures, then each error and warning with its first cases."""
    lines = [report.uri, *(f"  {name:<15}{value}" for name, value in _figures(report))]
    for kind, findings in (("error", _errors(report)), ("warning", _warnings(report))):
        for text, details in findings:
            lines += [f"  {kind}: {text}", *(f"    {item}" for item in details[:_SHOWN])]
            lines += [f"    and {len(details) - _SHOWN:,} more"] * (len(details) > _SHOWN)
    return "\n".join(lines)


def _figures(report: Report) -> Iterator[tuple[str, str]]:
    yield "samples", f"{report.samples:,}"
    yield "pictures", f"{report.pictures:,}"
    yield (
        "captions",
        f"{report.captions:,}" + f" ({report.chinese:.1%} with Chinese characters)" * (report.captions > 0),
    )
    yield "labels", f"{report.labels:,} on {_count(report.labelled, 'sample')}"
    for name in ("width", "height", "smallest_side", "characters", "words"):
        spread: Spread | None = getattr(report, name)
        if spread:
            unit = "per caption" if name in ("characters", "words") else "pixels"
            figures = f"{spread.low:,} to {spread.high:,}, median {spread.median:,g} {unit}"
            yield name.replace("_", " "), figures


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"

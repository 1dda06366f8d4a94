"""What scores mean in one index: how probable it is that a hit which a search shows is a match.

The curves are learnt from labels, where somebody has judged hits, or from the index itself: captions ask for their
pictures, and pictures for those with the same tag. Either way the pairs are what a search shows, the best few of each
query, so that the probability is of a hit, not of any pair. The best hit of each query has a curve of its own: a score
says more where nothing else has a higher one. One query of ten is asked as if the index had no match for it, which is
what the probabilities assume of people's queries. They lean to the low side: a hit whose own caption is another counts
as no match, even if the query fits it just as well.

Shapes: ``Q`` queries, ``D`` the model's full width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipdistill.data.samples import caption_key
from clipdistill.errors import SearchError
from clipdistill.search.calibrate import Calibration, calibrate
from clipdistill.search.distinct import copies_from
from clipdistill.search.index import Index
from clipdistill.search.locking import writing
from clipdistill.search.manifest import Manifest
from clipdistill.search.probability import CAPTIONS, LABELS, MODEL, TAGS
from clipdistill.search.runtime import Runtime
from clipdistill.search.spaces import open_model
from clipdistill.search.table import Found

#: Entries of a manifest's ``calibration``, by ``text``, ``image`` and ``copies``.
Entries = dict[str, dict[str, Any]]
Rows = NDArray[np.float32]
#: So many queries are asked, and so many hits of each are looked at: as many as a search shows.
MOST, SHOWN = 500, 10
#: With fewer different captions, as where they are names of folders, they say little of what people ask.
LEAST_CAPTIONS = 20
#: One query of so many is asked as if there were no match for it, of so many hits, some of which are taken out.
_UNANSWERED, _DEEP = 10, 10 * SHOWN
_TOGETHER = 50
#: Of so many rows queries are chosen from.
_SAMPLE = 4_000
_OF = {True: "a hit is", False: "the best hit is"}
_NOUNS = {LABELS: "labels", CAPTIONS: "captions", TAGS: "tags", MODEL: "the model's own curve"}


@dataclass(frozen=True)
class Label:
    """Somebody's word on whether a picture answers a query."""

    query: str
    id: str
    match: bool


@dataclass(frozen=True)
class _Pair:
    """A query, by its number, and a picture that it was shown; ``best``: before all others."""

    query: int
    score: float
    match: bool
    best: bool = False


def calibrate_index(index: Index, runtime: Runtime, labels: Path | None = None) -> Entries:
    """Learn what scores of ``runtime``'s queries mean in an index, for its manifest; nothing is written.

    An entry holds the curve's numbers, what it was learnt ``from``, and the ``model`` whose queries it is for; where
    they differ, those of the ``best`` hits and of the ``rest``. One without a curve says the ``reason``. ``labels``
    are lines ``{"query": text, "id": ..., "match": 0 or 1}``. Raises :class:`SearchError` for labels that cannot be
    used.
    """
    rows = sample(index, ["id", "caption", "tags"])
    judged = read_labels(labels) if labels else None
    text = _from_labels(index, runtime, judged) if judged is not None else _text(index, runtime, rows)
    about = {"model": runtime.fingerprint, "version": index.version}
    image = {"reason": "its curve for pictures is that of the index's own model"}
    if runtime.fingerprint == index.manifest.model.fingerprint:
        image = _image(index, rows)
    return {"text": {**text, **about}, "image": {**image, **about}, "copies": _copies(index, rows)}


def recalibrate(where: str | Path, labels: Path | None = None, model: str | Path | None = None) -> Entries:
    """Learn what scores mean in the index in ``where``, and write it into its manifest; searchers see it at once.

    ``model`` asks in place of the index's own, see :mod:`clipdistill.search.spaces`. Raises :class:`SearchError` as
    :func:`calibrate_index` does, and while another process writes to the index.
    """
    folder = Path(where)
    with writing(folder):
        index = Index.open(folder)
        entries = calibrate_index(index, open_model(index, model, None), labels)
        replace(Manifest.read(folder), calibration=entries).write(folder)
        index.close()
    return entries


def told(entries: Entries) -> list[str]:
    """Say in a line for each kind of query what its probabilities were learnt from, and how good they are."""
    lines = []
    for kind in ("text", "image"):
        entry = entries[kind]
        if "slope" not in entry:
            lines.append(f"{kind} queries: no probabilities: {entry['reason']}")
            continue
        best = entry.get("best", entry)
        half = Calibration.from_dict(best).threshold(0.5)
        why = f", as {entry['reason']}" if "reason" in entry else ""
        lines.append(
            f"{kind} queries: from {_NOUNS[entry['from']]}, {entry['matched']} matches and {entry['unmatched']} others"
            f"{why}; {_OF[best is entry]} more likely a match than not from score {half:.3f} on; Brier score "
            f"{best['brier']:.3f}, expected calibration error {best['ece']:.3f} on queries that were held out"
        )
    return lines


def sample(index: Index, columns: Sequence[str]) -> pa.Table:
    """Up to 4,000 rows, spread over all of the index by chance, the same ones each time."""
    wanted = np.random.default_rng(0).choice(index.count, min(index.count, _SAMPLE), replace=False)
    wanted.sort()
    start, parts = 0, []
    for batch in index.table.scan(columns):
        inside = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
        parts.append(batch.take(pa.array(inside)))
        start += len(batch)
    found = pa.Table.from_batches(parts) if parts else pa.table({column: [] for column in columns})
    return found.take(pa.array(np.random.default_rng(1).permutation(len(found))))


def read_labels(path: Path) -> list[Label]:
    """Read labels; raises :class:`SearchError` that names the line which is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SearchError(f"the labels {path} cannot be read: {error}.") from error
    return [_label(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _label(where: str, line: str) -> Label:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise SearchError(f"{where} is not JSON: {error}.") from error
    given = values if isinstance(values, Mapping) else {}
    query, name, match = given.get("query"), given.get("id"), given.get("match")
    if not (isinstance(query, str) and query.strip() and isinstance(name, str) and match in (0, 1)):
        raise SearchError(
            f'{where} is no label: expected {{"query": "two dogs", "id": "a.jpg", "match": 1}} with match 0 or 1, '
            f"found {line[:80]}"
        )
    return Label(query, name, bool(match))


def _from_labels(index: Index, runtime: Runtime, labels: Sequence[Label]) -> dict[str, Any]:
    vectors = index.vectors(list(dict.fromkeys(label.id for label in labels)))
    unknown = list(dict.fromkeys(label.id for label in labels if label.id not in vectors))
    if unknown:
        raise SearchError(f"{len(unknown)} ids of the labels are not in {index.folder}, the first is '{unknown[0]}'.")
    texts = list(dict.fromkeys(label.query for label in labels))
    rows, number = runtime.texts(texts), {text: place for place, text in enumerate(texts)}
    pairs = [
        _Pair(number[label.query], float(rows[number[label.query]] @ vectors[label.id]), label.match)
        for label in labels
    ]
    return {"from": LABELS, **_fit(pairs)}


def _text(index: Index, runtime: Runtime, rows: pa.Table) -> dict[str, Any]:
    """Captions as queries; the model's own curve where they say too little."""
    if "T" not in runtime.sides:
        return {"reason": "the model embeds no texts"}
    asked = {key: caption for caption in rows["caption"].to_pylist() if (key := caption_key(caption))}
    if len(asked) < LEAST_CAPTIONS:
        return _of_model(index, runtime, f"the index has {len(asked)} different captions, fewer than {LEAST_CAPTIONS}")
    keys = list(asked)[:MOST]
    queries = runtime.texts([asked[key] for key in keys])
    pairs = list(_shown(index, queries, [None] * len(keys), lambda place, hit: _same(keys[place], hit)))
    try:
        return {"from": CAPTIONS, **_fit(pairs), **_fit_apart(pairs)}
    except SearchError as error:
        return _of_model(index, runtime, f"its captions do not say: {error}")


def _same(key: str, hit: Found) -> bool | None:
    return caption_key(hit.caption) == key if hit.caption.strip() else None


def _of_model(index: Index, runtime: Runtime, reason: str) -> dict[str, Any]:
    reason = reason.rstrip(".")
    if runtime.calibration is None or runtime.fingerprint != index.manifest.model.fingerprint:
        return {"reason": f"{reason}, and the model has no curve of its own for such pictures"}
    return {"from": MODEL, "reason": reason, **runtime.calibration.to_dict()}


def _image(index: Index, rows: pa.Table) -> dict[str, Any]:
    """Pictures of the index as queries for those that share a tag, where there are tags."""
    tags = {name: set(given) for name, given in zip(rows["id"].to_pylist(), rows["tags"].to_pylist(), strict=True)}
    names = [name for name, given in tags.items() if given][:MOST]
    if not names:
        return {"reason": "pictures of the index have no tags, so nobody knows which of them match each other"}
    vectors = index.vectors(names)
    queries = np.stack([vectors[name] for name in names])
    pairs = list(_shown(index, queries, names, lambda place, hit: _shared(tags[names[place]], hit)))
    try:
        return {"from": TAGS, **_fit(pairs), **_fit_apart(pairs)}
    except SearchError as error:
        return {"reason": f"tags do not say which pictures match each other: {str(error).rstrip('.')}"}


def _shared(tags: set[str], hit: Found) -> bool | None:
    return not tags.isdisjoint(hit.tags) if hit.tags else None


def _shown(
    index: Index, queries: Rows, own: Sequence[str | None], judge: Callable[[int, Found], bool | None]
) -> Iterator[_Pair]:
    """What a search shows for every query ``[Q, D]``; whether it is a match, ``judge`` may not know.

    The query's ``own`` picture is not shown to it. Every tenth query is shown what it would be if the index had no
    match for it: people also ask for what there is not.
    """
    for start in range(0, len(queries), _TOGETHER):
        for place, found in enumerate(index.search(queries[start : start + _TOGETHER], _DEEP), start):
            hits = [(hit, judge(place, hit)) for hit in found if hit.id != own[place]]
            if place % _UNANSWERED == 0:
                hits = [(hit, match) for hit, match in hits if not match]
            for rank, (hit, match) in enumerate(hits[:SHOWN]):
                if match is not None:
                    yield _Pair(place, hit.score, match, best=not rank)


def _fit_apart(pairs: Sequence[_Pair]) -> dict[str, Any]:
    """Curves of the ``best`` hits and of the ``rest``; none for those that are nearly always or nearly never a match.

    These have the one of all hits, in which a score then says nearly as much.
    """
    found = {}
    for name, best in (("best", True), ("rest", False)):
        with suppress(SearchError):
            found[name] = _fit([pair for pair in pairs if pair.best is best])
    return found


def _fit(pairs: Sequence[_Pair]) -> dict[str, Any]:
    """Fit a curve whose prior is the share of matches among the pairs: these are the pairs that people see."""
    numbers, scores = np.array([pair.query for pair in pairs], np.intp), np.array([pair.score for pair in pairs])
    hits = np.array([pair.match for pair in pairs], bool)
    share = float(hits.mean()) if len(hits) else 0.0
    return calibrate(scores[hits], scores[~hits], (numbers[hits], numbers[~hits]), share).to_dict()


def _copies(index: Index, rows: pa.Table) -> dict[str, float]:
    """From which cosine on rows are of copies, by how like each other pictures of the index are."""
    found = list(index.vectors(rows["id"].to_pylist()[:256]).values())
    if len(found) < 2:
        return {"cosine": copies_from(0.0)}
    length = float(np.linalg.norm(np.stack(found).sum(axis=0, dtype=np.float64)))
    mean = (length**2 - len(found)) / (len(found) * (len(found) - 1))
    return {"cosine": copies_from(mean), "mean": mean}

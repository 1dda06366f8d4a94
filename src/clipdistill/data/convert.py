"""From one kind of data to another: the same bytes of pictures, with everything that is said of them."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from clipdistill.data.images import IMAGE_SUFFIXES, fetch, header
from clipdistill.data.samples import Picture, Sample, Source, TarMember, name_of, readable
from clipdistill.data.sources import pairs
from clipdistill.data.sources.chinese_clip import IMAGES, SAMPLES, TEXTS
from clipdistill.data.writers import chinese_clip, folder, parquet, shards
from clipdistill.data.writers.entry import Entry, Survey, Writer
from clipdistill.errors import DataError, did_you_mean
from clipdistill.files import flush
from clipdistill.progress import progress

#: Which ids a format can use as names of its own.
FORMATS: dict[str, Callable[[str], bool]] = {
    "folder": folder.fits,
    "shards": shards.fits,
    "chinese-clip": chinese_clip.fits,
    "parquet": parquet.fits,
}
_ENDINGS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "PPM": "ppm",
}
_STEP = 64  # samples between two words on the progress


@dataclass(frozen=True)
class Converted:
    """What was written: ``uri`` opens it; ``skipped`` names the samples that cannot be read, and why."""

    uri: str
    format: str
    samples: int
    skipped: list[tuple[str, str]] = field(default_factory=list)


def convert(
    data: str | Path | Source, destination: str | Path, to: str | None = None, per_file: int = 10_000
) -> Converted:
    """Write data as a ``folder``, ``shards``, ``chinese-clip`` or ``parquet``, which gives the same when it is opened.

    Ids, captions in their order, synthetic captions, labels, groups and the bytes of pictures come back; drawn pixels
    become PNG. An id that a format cannot use as a name is written beside it, as ``clipdistill_id``. Captions that a
    picture has twice are kept once, as every reader does. What is no picture is left out: a table of strangers could
    name any file of this machine. Shards, and a folder of parquet files, have ``per_file``
    samples in each; a destination that ends in ``.parquet`` is one file. Samples are read twice, pictures once; nothing
    is kept in memory but, for Chinese-CLIP, a digest of each distinct text. The destination appears when it is whole.

    Raises:
        DataError: there is something there already; the format cannot hold the data (words alone in a folder or in
            Chinese-CLIP's layout, pictures for some samples only); or no picture can be read.
    """
    target = Path(destination)
    kind = _format(target, to)
    if per_file < 1:
        raise DataError(f"samples per file: found {per_file}, expected 1 or more")
    finals = _finals(target, kind)
    for name, path in finals.items():
        replaced = name == "whole" and path.is_dir() and not any(path.iterdir())  # a folder, by the one that is written
        if path.exists() and not replaced:
            raise DataError(f"{path}: there is something already. Remove it, or choose another destination.")
    source = pairs(data) if isinstance(data, (str, Path)) else data
    survey = _survey(source, kind)
    skipped: list[tuple[str, str]] = []
    with _beside(target) as made:
        (made / "whole").mkdir()
        written = _write(source, _writer(kind, made / "whole", target, survey, per_file), skipped)
        _settle(made / "whole", kind)
        for name, path in finals.items():
            if (made / name).exists():
                (made / name).replace(path)
    return Converted(_uri(target, kind, survey), kind, written, skipped)


def _format(target: Path, to: str | None) -> str:
    one_file = target.suffix.lower() == ".parquet"
    kind = to or ("parquet" if one_file else None)
    if kind is None:
        raise DataError(f"{target}: say what to write: to={', '.join(FORMATS)}")
    if kind not in FORMATS:
        raise DataError(f"there is no format '{kind}' to write.{did_you_mean(kind, FORMATS)}")
    if one_file and kind != "parquet":
        raise DataError(f"{target}: the name is that of a parquet file, but to={kind} writes something else")
    return kind


def _finals(target: Path, kind: str) -> dict[str, Path]:
    """What is written, beside the destination at first, and what each part is called in the end."""
    if kind == "chinese-clip":
        endings = (SAMPLES, TEXTS, IMAGES)  # the pictures last: they are what begins a split
        return {f"whole/{target.name}{ending}": target.with_name(target.name + ending) for ending in endings}
    if target.suffix.lower() == ".parquet":
        return {f"whole/{target.name}": target}
    return {"whole": target}


def _writer(kind: str, made: Path, target: Path, survey: Survey, per_file: int) -> Writer:
    if kind == "folder":
        return folder.FolderWriter(made, survey)
    if kind == "shards":
        return shards.ShardsWriter(made, survey, per_file)
    if kind == "chinese-clip":
        return chinese_clip.ChineseClipWriter(made, survey, target.name)
    if target.suffix.lower() == ".parquet":
        return parquet.ParquetWriter(made, survey, None, lambda number: target.name)
    return parquet.ParquetWriter(made, survey, per_file, lambda number: f"{number:05d}.parquet")


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder beside the destination, gone in the end."""
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    made = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _settle(made: Path, kind: str) -> None:
    """Force everything to disk before it counts; the files of a folder are too many to wait for each."""
    if kind == "folder":
        os.sync()
    else:
        flush(made)


def _survey(source: Source, kind: str) -> Survey:
    """Look at what all samples have, without their pictures; raises :class:`DataError` for what cannot be written."""
    fit, read, seen, labels, groups = True, 0, 0, False, False
    views: set[str] = set()
    with progress(f"looking at {source.uri}", len(source), "samples") as advance:
        for number in range(len(source)):
            for _, sample in readable(source, [number]):
                _check(sample, source.uri)
                fit = fit and FORMATS[kind](sample.id)
                read, seen = read + 1, seen + (sample.image is not None)
                views |= sample.texts.keys()
                labels, groups = labels or bool(sample.label), groups or bool(sample.group)
            if number % _STEP == 0 or number + 1 == len(source):
                advance(number + 1, "")
    if seen not in (0, read):
        raise DataError(f"{source.uri}: {seen} of {read} samples have a picture; convert these apart from the rest")
    survey = Survey(fit, seen > 0, frozenset(views), labels, groups)
    _check_sides(survey, kind, source.uri)
    return survey


def _check(sample: Sample, uri: str) -> None:
    if strange := sample.texts.keys() - {"", "syn"}:
        raise DataError(f"{uri}: {sample.id} has the text view '{min(strange)}', which no format has a place for")
    words = [
        sample.id,
        sample.label or "",
        sample.group or "",
        *(one for told in sample.texts.values() for one in told),
    ]
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise DataError(f"{uri}: {sample.id!r} has {word[:60]!r}, which is not Unicode text; correct it") from None


def _check_sides(survey: Survey, kind: str, uri: str) -> None:
    if not survey.pictures and kind in ("folder", "chinese-clip"):
        raise DataError(
            f"{uri}: there are no pictures, and {kind} needs them. Captions alone fit in shards and parquet."
        )
    if kind == "chinese-clip" and survey.views == {"syn"}:
        raise DataError(f"{uri}: there are synthetic captions alone, and Chinese-CLIP's layout needs real ones")


def _write(source: Source, writer: Writer, skipped: list[tuple[str, str]]) -> int:
    """Give every sample to the writer, and close it; returns how many."""
    written = 0
    try:
        with progress(f"converting {source.uri}", len(source), "samples") as advance:
            for number in range(len(source)):
                try:
                    sample = source[number]
                    data = None if sample.image is None else _bytes(sample.image)
                    look = _look(sample.image, data)
                except DataError as error:
                    skipped.append((name_of(source, number), str(error)))
                else:
                    writer.add(Entry(written, sample, data, *look))
                    written += 1
                if number % _STEP == 0 or number + 1 == len(source):
                    advance(number + 1, f"{len(skipped)} cannot be read" if skipped else "")
    finally:
        writer.close()
    if not written:
        raise DataError(f"{source.uri}: none of the {len(source)} samples can be read; the first: {skipped[0][1]}")
    return written


def _bytes(picture: Picture) -> bytes:
    """The bytes of a picture as they are; raises :class:`DataError` with one reason."""
    data = fetch(picture)
    if isinstance(data, np.ndarray):
        stream = io.BytesIO()
        Image.fromarray(data).save(stream, format="PNG")
        return stream.getvalue()
    assert isinstance(data, bytes)
    if not data:
        raise DataError(f"{'' if isinstance(picture, bytes) else f'{picture}: '}the file is empty")
    return data


def _look(picture: Picture | None, data: bytes | None) -> tuple[str, tuple[int, int] | None]:
    """The ending that belongs to a picture's format, and its size; of a damaged one the ending that it has.

    Raises :class:`DataError` for what is no picture.
    """
    try:
        found = None if data is None else header(data)
    except DataError as error:
        raise DataError(f"{'' if isinstance(picture, bytes) else f'{picture}: '}{error}") from error
    if found:
        return _ENDINGS[found[0]], found[1]
    name = picture.name if isinstance(picture, (Path, TarMember)) else ""
    suffix = PurePosixPath(name).suffix.lower()
    return (suffix[1:] if suffix in IMAGE_SUFFIXES else "jpg"), None


def _uri(target: Path, kind: str, survey: Survey) -> str:
    """What opens the data with the sides that they have."""
    if not survey.pictures:
        return f"{target}?image=none"
    silent = not survey.views and kind != "shards"
    return f"{target}?caption=none" if silent and (kind == "chinese-clip" or not survey.labels) else str(target)

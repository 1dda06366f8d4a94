"""MobileCLIP's reinforced shards: webdataset tar files with what teachers said of every sample, stored once.

::

    9e3930e6.json        {"uid": ..., "sha256": ...}
    9e3930e6.txt         the real caption; published shards come without it, and without the picture
    9e3930e6.jpg
    9e3930e6.syn.json    {"syn_text": ["a toilet sits in a bathroom", ...]}
    9e3930e6.paug.json   {"param_aug": [...]}, one entry for each augmentation, see ``replay.py``
    9e3930e6.npz         image_emb [augmentations, D], text_emb [captions, D]: real ones first, then synthetic ones
    9e3930e6.pth.gz      the same in bfloat16, in place of the .npz

Rows of several teachers are side by side: the first 768 columns of DataCompDR are OpenAI's ViT-L/14.
Written from apple/ml-mobileclip (training/open_clip_v2.patch) and apple/ml-mobileclip-dr (raygen/datasetio.py).
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import StoreError, did_you_mean
from clipdistill.teachers.foreign.blocks import Block, Choice, Foreign, Origin, as_caption, as_ids, check_rows
from clipdistill.teachers.foreign.replay import TURNED, Picture, obstacle, picture_of, written_views
from clipdistill.teachers.manifest import ViewPlan

LAYOUT = "MobileCLIP's reinforced shards (.tar files whose samples have a .npz or .pth.gz)"
EMBEDDINGS = ("npz", "pth.gz")
PICTURES = ("jpg", "jpeg", "png", "webp")
_END = 1024  # so many zeros end a tar file
#: A member's sample and its kind, as webdataset splits names.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")

#: The embeddings of one picture, all views and captions, take no more when unpacked.
MAX_UNPACKED = 256 << 20


@dataclass(frozen=True)
class Member:
    """One sample of a shard: its files by kind, read when asked for."""

    tar: tarfile.TarFile
    path: Path
    name: str
    files: dict[str, tarfile.TarInfo]

    @property
    def place(self) -> str:
        """Where it stands, for errors."""
        return f"{self.path}, sample {self.name}"

    def read(self, kind: str) -> bytes:
        """The content of one of its files; raises StoreError if the shard is cut."""
        try:
            file = self.tar.extractfile(self.files[kind])
            return b"" if file is None else file.read()
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise StoreError(f"{self.place}: its .{kind} cannot be read ({error}). Fetch the shard again.") from error

    def json(self, kind: str) -> dict[str, Any]:
        """The object in one of its files; empty if there is no such file. Raises StoreError for anything else."""
        if kind not in self.files:
            return {}
        try:
            values = json.loads(self.read(kind))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{self.place}: its .{kind} is not JSON ({error}).") from error
        if not isinstance(values, dict):
            raise StoreError(f"{self.place}: its .{kind} holds {str(values)[:60]}, expected an object.")
        return values


def find_shards(path: Path) -> list[Path]:
    """The tar files that ``path`` is or holds."""
    if path.is_file():
        return [path] if path.suffix == ".tar" else []
    return sorted(path.rglob("*.tar")) if path.is_dir() else []


def read_reinforced(path: Path, choice: Choice) -> Foreign:
    """Open such shards; finds out first whether every augmentation can be shown to a student again."""
    shards = find_shards(path)
    foreign = Foreign(LAYOUT, iter(()), sum(shard.stat().st_size for shard in shards), "bytes", "caption")
    foreign.views, reason = _plan(shards)
    if reason:
        foreign.remarks.append(
            f"the augmentations cannot all be shown to a student again ({reason}): only the embeddings are imported, "
            "and a run must write STORE?views=any"
        )
    foreign.blocks = _blocks(shards, choice, foreign)
    return foreign


def _plan(shards: list[Path]) -> tuple[ViewPlan, str]:
    """How many views there are of each picture, and why they cannot be replayed, if they cannot.

    Reads no embeddings but the first, and stops at the first obstacle.
    """
    count = 0
    for shard in shards:
        for member in _members(shard):
            count = count or len(_image_rows(member, _embeddings(member)))
            if not count:
                return ViewPlan(), ""
            reason = _obstacle(member)
            if reason:
                return ViewPlan(count), reason
    if not count:
        raise StoreError(f"{shards[0].parent}: the shards have no samples.")
    return ViewPlan(count, explicit=True), ""


def _obstacle(member: Member) -> str:
    recorded = _recorded(member)
    if recorded is None:
        return "they are not recorded: there is no .paug.json"
    for entry in recorded:
        if reason := obstacle(entry):
            return f"{reason}, in {member.place}"
    if _picture(member) is None:
        return "the boxes are in pixels of pictures whose size the shards do not tell"
    return ""


def _members(path: Path) -> Iterator[Member]:
    """The samples of a shard, in order; raises StoreError for a damaged one."""
    _check_end(path)
    try:
        with tarfile.open(path, "r:") as tar:
            name, files = "", dict[str, tarfile.TarInfo]()
            for info in tar:
                match = _NAME.match(info.name) if info.isfile() else None
                if match is None:
                    continue
                if match[1] != name and files:
                    yield Member(tar, path, name, files)
                    files = {}
                name = match[1]
                files[match[2].lower()] = info
            if files:
                yield Member(tar, path, name, files)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise StoreError(f"{path}: not a tar file that can be read ({error}). Fetch it again.") from error


def _check_end(path: Path) -> None:
    """Raise StoreError if a shard is cut: tarfile alone takes one for whole that ends within a header."""
    with path.open("rb") as file:
        file.seek(-min(_END, path.stat().st_size), io.SEEK_END)
        if file.read() != bytes(_END):
            raise StoreError(f"{path}: not a tar file that can be read (its end is missing). Fetch it again.")


def _embeddings(member: Member) -> dict[str, NDArray[Any]]:
    kind = next((kind for kind in EMBEDDINGS if kind in member.files), None)
    if kind is None:
        found = ", ".join(f".{kind}" for kind in member.files)
        raise StoreError(f"{member.place} has no embeddings: expected a .npz or .pth.gz, found {found}.")
    try:
        return _read_npz(member.read(kind)) if kind == "npz" else _read_tensors(member.read(kind))
    except StoreError as error:
        raise StoreError(f"{member.place}: its .{kind} cannot be read: {error}.") from error


def _read_npz(data: bytes) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            _refuse_larger(sum(entry.file_size for entry in packed.infolist()))
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(str(error)) from error


def _read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    import pickle

    import torch

    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            unpacked = packed.read(MAX_UNPACKED + 1)
        _refuse_larger(len(unpacked))
        held = torch.load(io.BytesIO(unpacked), map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, zlib.error) as error:
        raise StoreError(str(error)) from error
    except pickle.UnpicklingError as error:
        raise StoreError("it holds more than tensors, and is not unpickled, because a pickle can run code") from error
    if not isinstance(held, dict):
        raise StoreError(f"it holds {type(held).__name__}, expected a dictionary of tensors")
    return {str(name): value.float().numpy() for name, value in held.items() if isinstance(value, torch.Tensor)}


def _refuse_larger(size: int) -> None:
    """Refuse what unpacks to more than the embeddings of one picture can be; raises StoreError."""
    if size > MAX_UNPACKED:
        raise StoreError(f"it unpacks to more than {MAX_UNPACKED >> 20} MB, which no picture's embeddings are")


def _image_rows(member: Member, held: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Rows of all augmentations of the picture ``[V, D]``; none if only texts are embedded."""
    name = next((name for name in held if name.startswith("image_emb")), None)
    return np.empty((0, 1), np.float32) if name is None else check_rows(held[name], f"{member.place}, {name}")


def _recorded(member: Member) -> list[Any] | None:
    """The recorded parameters of each augmentation, or None if there are none."""
    recorded = member.json("paug.json").get("param_aug")
    if isinstance(recorded, str):  # published shards hold JSON within JSON
        try:
            recorded = json.loads(recorded)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{member.place}: param_aug in its .paug.json is not JSON ({error}).") from error
    if recorded is not None and not isinstance(recorded, list):
        raise StoreError(f"{member.place}: param_aug in its .paug.json is {str(recorded)[:60]}, expected a list.")
    return recorded


def _picture(member: Member) -> Picture | None:
    """Size of the picture, from its header, else from the metadata; None if nothing tells it."""
    kind = next((kind for kind in PICTURES if kind in member.files), None)
    if kind:
        return picture_of(member.read(kind), member.place)
    about = member.json("json")
    width, height = about.get("width"), about.get("height")
    return Picture(width, height) if isinstance(width, int) and isinstance(height, int) else None


def _blocks(shards: list[Path], choice: Choice, foreign: Foreign) -> Iterator[Block]:
    before = 0
    for shard in shards:
        for member in _members(shard):
            done = before + max(info.offset_data + info.size for info in member.files.values())
            held = _embeddings(member)
            name = _id(member, choice.id_column)
            origin = Origin(shard, "sample", [member.name])
            yield from _image_block(member, name, _image_rows(member, held), origin, done, foreign)
            yield from _text_block(member, name, held, choice, foreign, done)
        before += shard.stat().st_size


def _id(member: Member, column: str | None) -> str:
    """What a sample is called: the chosen key of its .json, else its uid, else the name of its files."""
    if column is None and "json" not in member.files:
        return member.name
    about = {"__key__": member.name, **member.json("json")}
    if column is not None and column not in about:
        raise StoreError(f"{member.place}: its .json has no key '{column}'.{did_you_mean(column, about)}")
    return as_ids([about[column] if column else about.get("uid", member.name)], member.place, "id")[0]


def _image_block(
    member: Member, name: str, rows: NDArray[Any], origin: Origin, done: int, foreign: Foreign
) -> Iterator[Block]:
    plan = foreign.views
    if len(rows) != plan.count:
        raise StoreError(f"{member.place}: there are {len(rows)} image embeddings, {plan.count} in the first sample.")
    if not plan.count:
        return
    views = None
    if plan.explicit:
        recorded, picture = _recorded(member) or [], _picture(member)
        if len(recorded) != len(rows):
            raise StoreError(f"{member.place}: {len(recorded)} augmentations for {len(rows)} image embeddings.")
        assert picture is not None
        if picture.turned:
            foreign.left_out[TURNED] += 1
            return
        views = written_views(recorded, picture, member.place)
    yield Block("image", [name], rows, origin, done, views)


def _text_block(
    member: Member, name: str, held: dict[str, NDArray[Any]], choice: Choice, foreign: Foreign, done: int
) -> Iterator[Block]:
    """Rows of the captions, ``[captions, D]``; those of captions that nobody knows are left out, and counted."""
    synthetic = {key: value for key, value in member.json("syn.json").items() if key.startswith("syn_text")}
    captions: list[str] = []
    parts: list[NDArray[Any]] = []
    for key, texts in synthetic.items():
        if f"{key}_emb" in held:
            captions += _fit(member, texts, held[f"{key}_emb"], key)
            parts.append(held[f"{key}_emb"])
    rows = next((held[key] for key in ("text_emb", "texts_emb") if key in held), None)
    if rows is not None:
        rest = [text for key, texts in synthetic.items() if f"{key}_emb" not in held for text in texts]
        real = _real(member, name, choice, len(rows) - len(rest))
        if len(real) + len(rest) < len(rows) and not real:
            foreign.left_out["rows of real captions that the shards do not hold (--data DATA may tell them)"] += len(
                rows
            ) - len(rest)
            rows = rows[len(rows) - len(rest) :]
        captions += _fit(member, real + rest, rows, "text_emb")
        parts.append(rows)
    if not captions:
        return
    origin = Origin(member.path, "sample", [f"{member.name}, caption {number}" for number in range(len(captions))])
    keys = ["" if caption is None else str(caption) for caption in captions]
    yield Block("text", keys, np.concatenate(parts), origin, done)


def _real(member: Member, name: str, choice: Choice, wanted: int) -> list[str]:
    """The real captions of a sample: of its .txt, else its .json, else, where they are as many, of the data."""
    if "txt" in member.files:
        whole = member.read("txt").decode("utf-8", "replace")
        lines = [line for line in whole.split("\n") if line.strip()]  # as a webdataset is read
        return [as_caption(text) for text in (lines if len(lines) == wanted else [whole])]
    about = member.json("json")
    told = next((about[key] for key in ("texts", "text", "caption") if about.get(key)), None)
    if told is not None:
        return [str(text) for text in told] if isinstance(told, list) else [str(told)]
    real = choice.known.captions(name) if choice.known else []
    return real if len(real) == wanted else []


def _fit(member: Member, captions: list[str], rows: NDArray[Any], what: str) -> list[str]:
    check_rows(rows, f"{member.place}, {what}")
    if len(captions) != len(rows):
        raise StoreError(f"{member.place}: {len(rows)} rows in {what} for {len(captions)} captions.")
    return captions

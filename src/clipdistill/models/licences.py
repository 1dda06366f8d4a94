"""Under which licence a model may be used, and what a student inherits from the models that it was made from.

A licence is read from what is on this disk: a record of ours, the model card, a licence file. Where these say nothing,
a table of published models is asked by name. What is found nowhere is called unknown, and never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from clipdistill.errors import ModelError
from clipdistill.files import object_in
from clipdistill.models.bundle import RECORD
from clipdistill.models.hub import OPEN_CLIP, checkpoint_file, model_folder

UNKNOWN = "unknown"
FREE, TERMS, RESEARCH = "free", "own terms", "research only"
#: What may be done, from the least restricting to the most; what nobody knows stands apart.
USES = (FREE, TERMS, RESEARCH)


@dataclass(frozen=True)
class Link:
    """One model in a chain: ``role`` is what it was to the student, ``source`` says where the licence was found.

    ``use`` is one of :data:`USES`, or ``unknown``; ``address`` is where the licence can be read, if that is known.
    """

    role: str
    model: str
    licence: str
    use: str
    source: str
    address: str = ""

    def __str__(self) -> str:
        where = f", {self.address}" if self.address else ""
        if self.licence == UNKNOWN:
            return f"{self.role} {self.model}: licence unknown ({self.source}{where})"
        return f"{self.role} {self.model}: {self.licence}, {self.use} ({self.source}{where})"


@dataclass(frozen=True)
class _Family:
    """Published models whose names match ``pattern``, and who says what their licence is."""

    pattern: str
    licence: str
    source: str


_HUB = "known of this model by its name: its card on the hub"
#: The first that matches counts, so the particular stands before the general. Names are compared in lower case.
_FAMILIES = (
    _Family(r"mobileclip", "apple-amlr", "known by its name: LICENSE_MODELS of apple/ml-mobileclip"),
    _Family(r"metaclip", "cc-by-nc-4.0", _HUB),
    _Family(r"apple/dfn|dfn[25]b|/dfn", "apple-ascl", _HUB),
    _Family(r"dinov3", "dinov3-license", _HUB),
    _Family(r"facebook/dinov2", "apache-2.0", _HUB),
    _Family(r"google/siglip|timm/vit-.*siglip|siglip.*/webli", "apache-2.0", _HUB),
    _Family(r"tinyclip", "mit", "known by its name: LICENSE of microsoft/Cream"),
    _Family(r"ofa-sys/chinese-clip|clip_cn_", "mit", "known by its name: the code's LICENSE"),
    _Family(r"damo/multi-modal_clip-vit-", "mit", "known by its name: the LICENSE of Chinese-CLIP's code"),
    _Family(r"openai/clip-|^open_clip:[^/]*/openai$", "mit", "known by its name: the LICENSE of openai/CLIP's code"),
    _Family(r"laion/clip-|^open_clip:[^/]*/(laion|datacomp|commonpool)", "mit", _HUB),
    _Family(r"quansun/eva", "mit", _HUB),
)
_FREE = {
    *("mit", "apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0", "cc-by-4.0", "wtfpl"),
    *("zlib", "bsl-1.0", "ms-pl", "pddl", "artistic-2.0", "afl-3.0", "ecl-2.0", "odc-by", "cc-by-2.0", "cc-by-3.0"),
}
#: Whatever else a licence is called, these words in its name allow research or no trade alone.
_RESEARCH = re.compile(r"(^|[-_ ])(nc|noncommercial|non-commercial|research|amlr)([-_ ]|$)")
#: First lines of licence files that are always the same.
_TEXTS = (
    (r"research purposes|scientific research|non-?commercial", "other", RESEARCH),
    (r"\bMIT License\b|Permission is hereby granted, free of charge", "mit", FREE),
    (r"Apache License\s+Version 2\.0", "apache-2.0", FREE),
    (r"Redistribution and use in source and binary forms", "bsd-3-clause", FREE),
)


def licence_of(uri: str, role: str = "model") -> Link:
    """Return the licence of the model that ``uri`` names: a folder, a checkpoint, or a name on a hub.

    Nothing is fetched but the small files that describe a model. A model that cannot be had is looked for by name.
    """
    folder = _folder(uri)
    for read in (_from_record, _from_card, _from_file):
        if folder is not None and (found := read(folder)):
            licence, use, source, address = found
            return Link(role, uri, licence, use, source, address)
    for family in _FAMILIES:
        if re.search(family.pattern, _name(uri, folder).lower()):
            return Link(role, uri, family.licence, use_of(family.licence), family.source)
    return Link(role, uri, UNKNOWN, UNKNOWN, "no card, record or licence file says, and the name is not known")


def use_of(licence: str) -> str:
    """Say what a licence of that name allows: ``free``, ``own terms`` or ``research only``; or ``unknown``."""
    name = licence.strip().lower()
    if name in ("", UNKNOWN, "other"):
        return UNKNOWN
    if _RESEARCH.search(name):
        return RESEARCH
    return FREE if name in _FREE else TERMS


def chain(models: Iterable[tuple[str, str]]) -> list[Link]:
    """Return the licences of ``(role, uri)``, each followed by those of the models that it was itself made from."""
    links: list[Link] = []
    for role, uri in models:
        links.append(licence_of(uri, role))
        links += _behind(uri, role)
    return list(dict.fromkeys(links))


def inherited(links: Sequence[Link]) -> Link | None:
    """Return the link whose licence binds a student most; None for no link, or where one is unknown and none binds.

    Research only binds whatever else is unknown. Otherwise one unknown licence could be stricter than all that are
    known.
    """
    known = [link for link in links if link.use in USES]
    strictest = max(known, key=lambda link: USES.index(link.use), default=None)
    if strictest is not None and strictest.use == RESEARCH:
        return strictest
    return strictest if len(known) == len(links) else None


def warnings(links: Sequence[Link]) -> list[str]:
    """Return a line for each model that restricts what a student may be used for, or may do so."""
    found = []
    for link in links:
        if link.use == RESEARCH:
            found.append(f"licence: {link}. The student inherits this: it is for research only.")
        elif link.use == UNKNOWN:
            found.append(f"licence: {link}. Find out before you give the student away.")
        elif link.use == TERMS:
            found.append(f"licence: {link}. Its terms bind the student too: read them.")
    return found


def as_card(links: Sequence[Link]) -> dict[str, Any]:
    """Return what a student's record keeps: ``licence``, the one inherited or None, and ``licence_chain``."""
    binding = inherited(links)
    return {"licence": binding.licence if binding else None, "licence_chain": [asdict(link) for link in links]}


def of_record(record: Mapping[str, Any]) -> list[Link]:
    """Read the chain that a record keeps; raises :class:`ModelError` for one that is damaged."""
    try:
        return [Link(**link) for link in record.get("licence_chain") or []]
    except TypeError as error:
        raise ModelError(f"licence_chain of {RECORD} is damaged: {error}. Write the model again.") from error


def _behind(uri: str, role: str) -> Iterator[Link]:
    """What a model that is one of our students was made from."""
    folder = _folder(uri)
    for link in of_record(object_in(folder / RECORD)) if folder is not None else ():
        yield Link(f"{role} < {link.role}", link.model, link.licence, link.use, link.source, link.address)


def _folder(uri: str) -> Path | None:
    """Where a model's small files lie; None for one that has no folder, or that cannot be had."""
    if not uri or uri.startswith(OPEN_CLIP[0]):
        return None
    try:
        file = checkpoint_file(uri)
        return file.parent if file else model_folder(uri, weights=False)
    except ModelError:
        return None


#: How files end that open_clip takes in the place of the name of weights.
_WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")


def _name(uri: str, folder: Path | None) -> str:
    """What a table knows a model by: a hub's name, which a local folder may have written down, or a checkpoint's."""
    if uri.startswith(OPEN_CLIP[0]):
        return "" if uri.endswith(_WEIGHTS) or Path(uri.partition("/")[2]).is_file() else uri
    path = Path(re.sub("^(file|local-dir):", "", uri)).expanduser()
    if folder is None or not path.exists():
        return uri
    if path.is_file():
        return path.name
    told = str(object_in(folder / "config.json").get("_name_or_path", ""))
    return told if re.fullmatch(r"[\w.-]+/[\w.-]+", told) else ""  # a folder's own name is whatever its owner calls it


_Found = tuple[str, str, str, str]


def _from_record(folder: Path) -> _Found | None:
    """A student of ours: what it inherited, with the use of the link that it came from."""
    record = object_in(folder / RECORD)
    if not record.get("licence"):
        return None
    binding = inherited(of_record(record))
    use = binding.use if binding and binding.licence == record["licence"] else use_of(str(record["licence"]))
    return str(record["licence"]), use, RECORD, binding.address if binding else ""


def _from_card(folder: Path) -> _Found | None:
    """The header of a model card: ``license``, and for ``other`` its ``license_name`` and ``license_link``."""
    header = _header(folder / "README.md")
    given = header.get("license")
    names = [str(name or "").strip().lower() for name in (given if isinstance(given, list) else [given])]
    # Of several the one that leaves least, or least of which is known.
    licence = max(names, key=lambda name: (FREE, TERMS, UNKNOWN, RESEARCH).index(use_of(name)), default="")
    if licence == "other":
        licence = str(header.get("license_name") or "other").strip().lower()
    if licence in ("", UNKNOWN):
        return None
    return licence, use_of(licence), "README.md", str(header.get("license_link") or "")


def _header(card: Path) -> Mapping[str, Any]:
    try:
        text = card.read_text(encoding="utf-8-sig")
        found = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
        header = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return header if isinstance(header, dict) else {}


def _from_file(folder: Path) -> _Found | None:
    """A licence file whose words are known; one that is not gives its own name, and an unknown use."""
    for path in sorted(path for path in folder.iterdir() if re.match(r"(?i)licen[cs]e", path.name) and path.is_file()):
        text = " ".join(path.read_text(encoding="utf-8", errors="replace")[:20_000].split())
        for pattern, licence, use in _TEXTS:
            if re.search(pattern, text, re.IGNORECASE):
                return licence, use, path.name, path.name
        return "other", UNKNOWN, path.name, path.name
    return None

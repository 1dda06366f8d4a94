"""What a model folder says of itself, in a few lines: made from what, under which licence, how good, how calibrated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipdistill.errors import SearchError
from clipdistill.search.runtime import RECORD, SECTION

#: In the record of a folder that was written for another library, the name of its layout, and its files' checksums.
LAYOUT, FILES = "layout", "files"
#: What is told of the metrics; the record has all.
_TOLD = ("text_to_image_R@1", "image_to_text_R@1", "text_to_image_R@10", "image_to_text_R@10")


def read_papers(folder: Path) -> dict[str, Any]:
    """Read the record of an exported model or of a student; raises :class:`SearchError` for another folder."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise SearchError(f"{folder} is not an exported model or a student: {path}: {reason}.") from error
    if not isinstance(record, dict) or "fingerprint" not in record or "inputs" not in record:
        raise SearchError(f"{folder} is not an exported model or a student: {path} describes none.")
    return record


def is_export(record: Mapping[str, Any]) -> bool:
    """Whether a record is of an exported model; else it is of a student."""
    return SECTION in record


def describe(record: Mapping[str, Any]) -> list[str]:
    """Return the lines of what a record says: kind, teachers, licences, data, metrics, calibration."""
    section = record.get(SECTION) or {}
    teachers = [f"{letter} {uri}" for letter, uri in (record.get("teachers") or {}).items()]
    recipe, data = record.get("recipe") or "", record.get("data") or {}
    name = recipe.get("name") if isinstance(recipe, Mapping) else recipe
    return [
        f"kind: {_kind(record)}",
        f"teacher: {', '.join(teachers) or 'none recorded'}" + (f" (recipe {name})" if name else ""),
        *licence_lines(record),
        f"data: {data.get('uri') or 'not recorded'}" + _mark(data) if isinstance(data, Mapping) else f"data: {data}",
        *_metrics(record.get("metrics") or {}, section.get("measured") or {}),
        *([_calibration(section.get("calibration") or {})] if section else []),
    ]


def licence_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the licence that a model inherits, and the chain that it comes from."""
    links = record.get("licence_chain") or []
    lines = [f"licence: {record.get('licence') or 'not known'}"]
    for link in links:
        use = "" if link["use"] == link["licence"] else f", {link['use']}"
        lines.append(f"  {link['role']} {link['model']}: {link['licence']}{use} (from {link['source']})")
    if any(link["use"] == "research only" for link in links):
        lines.append("  warning: a model in this chain is for research only, and so is this one")
    elif not record.get("licence"):
        lines.append("  warning: find out what its teachers' licences allow before you give it away")
    return lines


def _kind(record: Mapping[str, Any]) -> str:
    inputs = record["inputs"]
    sides = [name for key, name in (("transform", "pictures"), ("text", "captions")) if key in inputs]
    student = f"model in the layout {record[LAYOUT]}" if LAYOUT in record else "student"
    return f"{'exported model' if is_export(record) else student} of {' and '.join(sides)}, rows of {record['width']}"


def _mark(data: Mapping[str, Any]) -> str:
    return f" (fingerprint {data['fingerprint']})" if data.get("fingerprint") else ""


def _metrics(recorded: Mapping[str, Any], measured: Mapping[str, Any]) -> Iterator[str]:
    if measured:
        kind = "drawn pictures" if measured["drawn"] else "pictures"
        about = f"{measured['pictures']} {kind} and {measured['captions']} captions of {measured['data']}"
        found = [
            f"{name} {value['value']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"
            for name, value in measured["metrics"].items()
            if name in _TOLD and value["low"] is not None
        ]
        yield f"metrics, of the graphs on {about}, with 95% intervals: {', '.join(found)}"
    elif recorded:
        yield f"metrics: {json.dumps(recorded, ensure_ascii=False)}"
    else:
        yield "metrics: none recorded"


def _calibration(about: Mapping[str, Any]) -> str:
    if "slope" not in about:
        return f"calibration: none ({about.get('left_out', 'exported before there was one')})"
    curve = f"1 / (1 + exp(-({about['slope']:.2f} * score {about['offset']:+.2f})))"
    quality = f"Brier {about['brier']:.3f}, ECE {about['ece']:.3f}, on {about['matched']} matched pairs"
    return f"calibration: probability = {curve} at a prior of {about['prior']:g}; {quality} of {about['data']}"

"""Write a report: what was found, as files that are each whole or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipdistill.errors import DataError
from clipdistill.evidence.report.page import Curves, page
from clipdistill.evidence.report.results import as_dict, clip_benchmark, plain
from clipdistill.files import write_text

if TYPE_CHECKING:
    from clipdistill.evaluation.evaluate import Evaluation


def write_report(
    evaluations: Sequence[Evaluation],
    out: Path,
    title: str,
    curves: Curves | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html, report.json and clip_benchmark/*.json into the folder ``out``; return the page.

    ``curves`` are the entries of each run's log.jsonl by model name: ``step``, ``loss``, ``terms``. ``facts`` are told
    at the end of the page; those called "retrieval" and "zeroshot" name the data in CLIP_benchmark's files. The page
    needs no other file and no network. Files that are there already are replaced; the same input gives the same bytes.

    Raises:
        DataError: there are no evaluations, or two have the same name.
        ConfigError: matplotlib or jinja2 is not installed.
    """
    names = [found.name for found in evaluations]
    if not names or len(set(names)) < len(names):
        raise DataError(f"a report needs models with names of their own, found: {', '.join(names) or 'none'}.")
    facts = facts or {}
    html = page(evaluations, title, curves or {}, facts)
    (out / "clip_benchmark").mkdir(parents=True, exist_ok=True)
    # First, by it the folder is known as ours: what stops halfway can be repeated.
    write_file(out / "report.json", to_json({"title": title, **as_dict(evaluations), "facts": plain(facts)}))
    for name, content in clip_benchmark(evaluations, facts).items():
        write_file(out / "clip_benchmark" / name, to_json(content))
    write_file(out / "report.html", html)
    return out / "report.html"


def to_json(content: Mapping[str, Any]) -> str:
    """Return JSON as files of a report hold it."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_file(path: Path, text: str) -> None:
    """Write UTF-8; the odd byte of a file name that is none becomes a question mark."""
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"))

"""A tokenizer.json that needs no rule beside it for the case of letters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from clipdistill.export.reading import TOKENIZER
from clipdistill.search.tokens import TextRules


def write_lowered(folder: Path, rules: TextRules) -> TextRules:
    """Put lower-casing into a folder's tokenizer.json where ``rules`` ask for it; return the rules without it.

    SigLIP 2 was trained on lower case with a tokenizer that keeps case. Libraries that read the file alone would keep
    it too.
    """
    if not rules.lower_case:
        return rules
    path = folder / TOKENIZER
    described = json.loads(path.read_text(encoding="utf-8"))
    given = described.get("normalizer")
    steps = [{"type": "Lowercase"}, *([given] if given else [])]
    described["normalizer"] = {"type": "Sequence", "normalizers": steps}
    path.write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    return replace(rules, lower_case=False)

"""``clipdistill export --layout``: a model as a folder that another library opens, compared before it appears."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, ModelError, did_you_mean
from clipdistill.export.layout_immich import preprocess_cfg, refuse_for_immich, write_immich
from clipdistill.export.layout_javascript import refuse_for_javascript, write_javascript
from clipdistill.export.layout_rows import Rows, check_rows, model_rows, unmended
from clipdistill.export.layout_sentences import write_sentences
from clipdistill.export.papers import licences, own_record
from clipdistill.export.parity import Parity
from clipdistill.export.place import check_out
from clipdistill.export.probes import SCENES, Probes, take_probes
from clipdistill.models.bundle import save_bundle
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.loading import load
from clipdistill.models.open_clip import OpenClipEncoder
from clipdistill.models.open_clip_layout import save_open_clip
from clipdistill.search.golden import checksums
from clipdistill.search.papers import FILES, LAYOUT
from clipdistill.search.runtime import RECORD, SECTION


@dataclass(frozen=True)
class Layout:
    """``refuse`` says why a model cannot be held, or nothing; ``write`` fills a folder and opens what it wrote.

    ``library`` is who loads the folder, as its model card says.
    """

    library: str
    refuse: Callable[[DualEncoder], str | None]
    write: Callable[[DualEncoder, Path], Rows]


def _not_of_transformers(encoder: DualEncoder) -> str | None:
    return "it is a model of open_clip, which transformers has no class for" if _is_open_clip(encoder) else None


def _not_for_sentences(encoder: DualEncoder) -> str | None:
    if not isinstance(encoder, HuggingFaceEncoder):
        return "it is no dual encoder of transformers"
    # sentence-transformers cuts pictures into other patches than the folder says.
    return "it is a siglip2 that takes pictures of any shape" if _kind(encoder) == "siglip2" else None


def _not_for_open_clip(encoder: DualEncoder) -> str | None:
    if _is_open_clip(encoder):
        return None
    kind = _kind(encoder) if isinstance(encoder, HuggingFaceEncoder) else "model of one side"
    if kind != "clip":
        return f"it is a {kind}, expected a clip, or a model of open_clip"
    assert encoder.transform is not None
    plain = preprocess_cfg(encoder.transform) is not None
    return None if plain else "it prepares pictures in another way than a square resize or a squash"


def _kind(encoder: DualEncoder) -> str:
    config: Any = encoder.module.config
    return str(config.model_type)


def _is_open_clip(encoder: DualEncoder) -> bool:
    return isinstance(encoder, OpenClipEncoder)


def _write_transformers(encoder: DualEncoder, folder: Path) -> Rows:
    described: Any = encoder  # its files are not in the interface
    described.write_files(folder)
    return model_rows(load(str(folder)))


def _write_open_clip(encoder: DualEncoder, folder: Path) -> Rows:
    if isinstance(encoder, HuggingFaceEncoder):
        save_open_clip(encoder, folder / "converted")
        for path in (folder / "converted").iterdir():
            if path.name not in (RECORD, "README.md"):  # the layout has its own
                path.replace(folder / path.name)
        shutil.rmtree(folder / "converted")
    else:
        described: Any = encoder
        described.write_files(folder)
    rows = model_rows(load(f"local-dir:{folder}"))
    return rows if _is_open_clip(encoder) else replace(rows, captions=unmended)


LAYOUTS: dict[str, Layout] = {
    "huggingface": Layout("transformers", _not_of_transformers, _write_transformers),
    "sentence-transformers": Layout("sentence-transformers", _not_for_sentences, write_sentences),
    "open-clip": Layout("open_clip", _not_for_open_clip, _write_open_clip),
    "transformers.js": Layout("transformers.js", refuse_for_javascript, write_javascript),
    "immich": Layout("immich", refuse_for_immich, write_immich),
}


class _Written:
    """A model as :func:`save_bundle` saves one, in the files of a layout, compared as soon as they are there.

    ``card`` gets their checksums then.
    """

    def __init__(self, encoder: DualEncoder, layout: str, probes: Probes, card: dict[str, Any]) -> None:
        self.uri, self.width, self.classes = encoder.uri, encoder.width, encoder.classes
        self.parity = Parity()
        self._encoder, self._layout, self._probes, self._card = encoder, layout, probes, card

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint

    def input_rules(self) -> dict[str, Any]:
        described: Any = self._encoder
        rules: dict[str, Any] = described.input_rules()
        return rules

    def write_files(self, folder: Path) -> None:
        rows = LAYOUTS[self._layout].write(self._encoder, folder)
        self.parity = check_rows(self._encoder, rows, self._probes.pictures, self._probes.captions, self._layout)
        self._card[FILES] = checksums(folder)


def export_layout(student: str | Path, out: str | Path, layout: str, data: str | None = None) -> Parity:
    """Write the model that ``student`` names into the folder that another library opens, with its record and a card.

    ``layout`` is one of :data:`LAYOUTS`. The folder is opened, by that library or, of those without Python, by
    onnxruntime, and its rows are compared with the model's on 32 samples of ``data``, or on drawn ones; the worst
    cosines are returned. ``out`` appears whole or not at all, and replaces only an earlier export of a layout.
    Raises :class:`ConfigError` for an unknown layout, a library that is missing or a folder that holds something
    else, :class:`ModelError` for a model that the layout cannot hold or whose rows differ.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"there is no layout '{layout}'.{did_you_mean(layout, LAYOUTS)}")
    out = Path(out).resolve()  # a link stays one
    check_out(out, LAYOUT, "exported layout")
    encoder = load(str(student))
    if reason := LAYOUTS[layout].refuse(encoder):
        able = ", ".join(name for name, one in LAYOUTS.items() if one.refuse(encoder) is None)
        raise ModelError(f"{encoder.uri} does not fit the layout {layout}: {reason}. Layouts that can: {able}.")
    kept = {key: value for key, value in own_record(str(student)).items() if key != SECTION}
    card = {**kept, **licences(kept, str(student)), "library": LAYOUTS[layout].library, LAYOUT: layout}
    written = _Written(encoder, layout, take_probes(pairs(data or SCENES), encoder.sides), card)
    save_bundle(written, out, card)
    return written.parity

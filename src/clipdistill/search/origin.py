"""Where the pictures of an index come from, wherever the command is run that reads them again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from clipdistill.data.remote import no_commands
from clipdistill.data.samples import Picture, Sample, Source, gives
from clipdistill.data.secrets import without_secrets
from clipdistill.data.sources import pairs
from clipdistill.data.sources.anchoring import anchored
from clipdistill.errors import SearchError
from clipdistill.search import manifest as papers


def open_source(source: papers.Source, folder: Path) -> Source:
    """Open the data of an index again; raises :class:`DataError` where they are not there any more.

    No command is run for it (``pipe:``): the index may be somebody else's.
    """
    with no_commands():
        return pictures_of(anchored(source.uri, papers.find(source.root, folder)))


def pictures_of(uri: str) -> Source:
    """Open data that have pictures; raises :class:`SearchError` for captions alone."""
    source = pairs(uri)
    if "I" not in gives(source):
        raise SearchError(f"{uri} holds captions alone: an index is of pictures. Name data that have some.")
    return source


def location_of(picture: Picture | None, root: Path) -> str:
    """Say where a picture is, from ``root`` on if it is below; empty for one that is in no file.

    Whoever searches the index sees it: passwords and signatures of addresses are left out.
    """
    if picture is None or isinstance(picture, (bytes, np.ndarray)):
        return ""
    text, above = str(picture), str(root).rstrip(os.sep) + os.sep
    text = text.removeprefix(above)
    return clean(Path(text).as_posix() if isinstance(picture, Path) else without_secrets(text))


def caption_of(sample: Sample) -> str:
    """The first caption; empty where there is none."""
    return clean(sample.captions[0]) if sample.captions else ""


def tags_of(sample: Sample) -> list[str]:
    """Label and group."""
    return [clean(tag) for tag in dict.fromkeys((sample.label, sample.group)) if tag]


def clean(text: str) -> str:
    """Make a text that can be stored: bytes of a file name that are none become question marks."""
    return text.encode("utf-8", "replace").decode()

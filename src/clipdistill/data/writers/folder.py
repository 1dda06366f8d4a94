"""A folder of pictures with ``metadata.jsonl``, the imagefolder convention of Hugging Face datasets."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from clipdistill.data.images import IMAGE_SUFFIXES
from clipdistill.data.writers.entry import Entry, Survey, facts, key
from clipdistill.errors import DataError

_LONGEST = 255  # bytes of one name, on every common file system


def fits(name: str) -> bool:
    """Whether an id can be the path of a picture, the same on every system: ``cats/a.jpg``."""
    path = PurePosixPath(name)
    return (
        name == name.strip()
        and name == str(path)
        and not path.is_absolute()
        and path.suffix.lower() in IMAGE_SUFFIXES
        and not any(sign in name for sign in '\\:*?"<>|')
        and name.isprintable()
        and all(len(part.encode()) <= _LONGEST and not part.startswith(".") for part in path.parts)
    )


class FolderWriter:
    """Pictures under their ids where these are paths, else numbered, ten thousand in each folder."""

    def __init__(self, folder: Path, survey: Survey) -> None:
        self._folder, self._survey = folder, survey
        self._rows = (folder / "metadata.jsonl").open("w", encoding="utf-8", newline="\n")

    def add(self, entry: Entry) -> None:
        assert entry.data is not None
        number = key(entry.number)
        name = entry.sample.id if self._survey.ids_fit else f"{number[:5]}/{number}.{entry.ending}"
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(entry.data)
        except (FileExistsError, NotADirectoryError) as error:
            raise DataError(
                f"{name}: this file system takes the name for that of an earlier sample, or for its folder. Convert "
                "to shards, or rename one of them."
            ) from error
        row = {"file_name": name, **facts(entry.sample, self._survey, "captions")}
        self._rows.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._rows.close()

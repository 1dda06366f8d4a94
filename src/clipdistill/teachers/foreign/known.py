"""The ids of a data source, under the names that other programs give its pictures."""

from __future__ import annotations

from pathlib import PurePosixPath

from clipdistill.data.samples import Source


class Known:
    """Finds a picture of ``source`` by what another program calls it.

    A source calls a picture ``dogs/7.jpg``. Understood are that, the same without the ending, both behind a folder, as
    ``/data/photos/dogs/7.jpg``, and the bare name ``7``, as long as no other picture has it. The folder is that of the
    first picture found behind one: a picture of the same name in another folder is another picture.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._positions = {source[index].id: index for index in range(len(source))}
        self._stems: dict[str, str | None] = {}
        self._names: dict[str, str | None] = {}
        for name in self._positions:
            for known, short in ((self._stems, _stem(name)), (self._names, _stem(name).rpartition("/")[2])):
                known[short] = None if short in known else name  # two pictures: neither is meant
        self._folder: str | None = None

    def find(self, name: str) -> str | None:
        """The id of the picture called ``name``; None if there is none."""
        name = name.replace("\\", "/")
        if found := self._by(name):
            return found
        if "/" not in name:
            return self._names.get(_stem(name))
        parts = name.split("/")
        for cut in range(1, len(parts)):
            folder = "/".join(parts[:cut])
            if self._folder in (None, folder) and (found := self._by("/".join(parts[cut:]))):
                self._folder = folder
                return found
        return None

    def captions(self, name: str) -> list[str]:
        """The real captions of the picture called ``name``, possibly none."""
        found = self.find(name)
        return [] if found is None else self.source[self._positions[found]].captions

    def _by(self, name: str) -> str | None:
        return name if name in self._positions else self._stems.get(_stem(name))


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name

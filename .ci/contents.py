"""Look into what was built: python .ci/contents.py dist. The wheel holds the files of the package, all and only."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What a source archive is useless without.
SOURCES = {"LICENSE", "README.md", "pyproject.toml", "constraints.txt", "tests/conftest.py"}


def main() -> None:
    """Compare the archives of a folder with the sources, and tell their sizes."""
    folder = Path(sys.argv[1])
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    files = (path for path in (ROOT / "src" / "clipdistill").rglob("*") if path.is_file())
    package = {path.relative_to(ROOT / "src").as_posix() for path in files if path.parent.name != "__pycache__"}
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
        licences = {name.partition("/licenses/")[2] for name in file.namelist()}
    report("the wheel lacks", package - packed)
    report("the wheel has beside the package", packed - package)
    report("the wheel lacks the licence", {"LICENSE"} - licences)
    with tarfile.open(archive) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    report("the source archive lacks", {*SOURCES, *(f"src/{name}" for name in package)} - inside)
    for path in (wheel, archive):
        print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")


def report(what: str, names: set[str]) -> None:
    """End with the names, if there are any."""
    if names:
        raise SystemExit(f"error: {what}: {', '.join(sorted(names))}")


if __name__ == "__main__":
    main()

"""Search with an installed wheel, in an environment that has nothing else: python .ci/search_only.py BUNDLE [--serve].

BUNDLE is a folder that ``clipdistill export`` wrote. The environment's Python runs this file; the first line that does
not come out as a user expects ends it with an error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

PROGRAM = Path(sysconfig.get_path("scripts")) / "clipdistill"
#: What the base install must not bring: gigabytes, and nothing of it searches.
HEAVY = ("torch", "transformers", "torchvision", "nvidia")


def main() -> None:
    """Check the install, index ten drawn pictures, and search them from the shell and, with --serve, over HTTP."""
    bundle, serving = Path(sys.argv[1]).resolve(), "--serve" in sys.argv[2:]
    check_install()
    with tempfile.TemporaryDirectory() as scratch:
        index = search_from_the_shell(bundle, Path(scratch))
        if serving:
            search_over_http(index)
    size = sum(file.stat().st_size for file in Path(sysconfig.get_path("purelib")).rglob("*") if file.is_file())
    print(f"Python {sys.version.split()[0]}: works; {size / 2**20:.0f} MiB installed; --help in {help_seconds():.2f} s")


def check_install() -> None:
    """The package is the installed one, of the version that its metadata tells, without the heavy libraries."""
    import clipdistill

    home = Path(clipdistill.__file__).resolve()
    expect(home.is_relative_to(Path(sysconfig.get_path("purelib")).resolve()), f"clipdistill comes from {home}")
    expect(clipdistill.__version__ == importlib.metadata.version("clipdistill"), "two versions are told")
    there = [name for name in HEAVY if importlib.util.find_spec(name)]
    expect(not there, f"the base install brought {there}")
    expect("serve" in run("--help"), "--help does not name the verbs")
    expect(f"clipdistill {clipdistill.__version__}" in run(), "the first screen tells no version")
    run("doctor")  # ends with 1 where the base install does not work
    expect("clip-kd" in run("recipes", "list"), "the recipes are not in the wheel")


def search_from_the_shell(bundle: Path, scratch: Path) -> Path:
    """Index ten drawn pictures, search them by words and by a picture, and keep the index in step; returns it."""
    photos, index = scratch / "photos", scratch / "photos.index"
    draw(photos, range(9))
    run("index", str(photos), "--model", str(bundle), "--out", str(index))
    draw(photos, range(9, 10))
    expect(run("index", "sync", str(index)).startswith("1 added"), "sync does not see a new picture")
    expect("nothing is wrong" in run("index", "check", str(index)), "the index is not sound")
    expect(len(json.loads(run("search", str(index), "a red circle", "-k", "3", "--json"))["hits"]) == 3, "no 3 hits")
    best = json.loads(run("search", str(index), "--image", str(photos / "9.png"), "--json"))["hits"][0]
    expect(best["id"] == "9.png", f"a picture finds {best['id']} and not itself")
    return index


def draw(folder: Path, numbers: range) -> None:
    """Write some of the drawn pictures that the package itself brings along."""
    from PIL import Image

    import clipdistill

    source = clipdistill.pairs("scenes:test?n=10")
    folder.mkdir(exist_ok=True)
    for number in numbers:
        pixels: Any = source[number].image
        Image.fromarray(pixels).save(folder / f"{number}.png")


def search_over_http(index: Path) -> None:
    """Serve the index on a free port, and fetch the page and three hits."""
    command = [str(PROGRAM), "serve", str(index), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            said = server.stderr.readline()
            address = re.search(r"http://\S+", said)
            expect(address is not None, f"serve says: {said}{'' if address else server.stderr.read()}")
            assert address is not None
            wait_until_ready(address[0])
            expect(b"/page/app.js" in get(f"{address[0]}/"), "the page is not served")
            expect(len(get(f"{address[0]}/page/app.js")) > 100, "the page's script is not in the wheel")
            answer = json.loads(get(f"{address[0]}/api/search?q=a%20red%20circle&k=3"))
            expect(len(answer["hits"]) == 3, f"the server answers {answer}")
        finally:
            server.terminate()


def wait_until_ready(address: str) -> None:
    """Ask for /ready until it answers 200; a minute is long for any machine."""
    for _ in range(600):
        try:
            get(f"{address}/ready")
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{address}/ready does not answer within a minute")


def get(address: str) -> bytes:
    """Fetch from this machine; raises :class:`OSError` for any other status than 200."""
    with urllib.request.urlopen(address, timeout=30) as response:
        body: bytes = response.read()
    return body


def run(*words: str) -> str:
    """Run the program; what it prints, or the end of this check with what it complains of."""
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"clipdistill {' '.join(words)} ends with {done.returncode}:\n{done.stderr}")
    return done.stdout


def help_seconds() -> float:
    """The best of three starts."""
    starts = []
    for _ in range(3):
        begun = time.perf_counter()
        run("--help")
        starts.append(time.perf_counter() - begun)
    return min(starts)


def expect(truth: bool, otherwise: str) -> None:
    """End with a message unless it is true."""
    if not truth:
        raise SystemExit(f"error: Python {sys.version.split()[0]}: {otherwise}")


if __name__ == "__main__":
    main()

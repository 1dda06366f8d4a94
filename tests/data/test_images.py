"""Decoding: what a viewer shows, and one plain reason for everything that cannot be read."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdistill.data.images import content_hash, decode, full_size
from clipdistill.errors import DataError


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, x * 0 + 90], -1).astype(np.uint8))


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header alone claims this size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_files_bytes_and_pixels_decode_alike(tmp_path: Path) -> None:
    image = gradient(30, 20)
    path = tmp_path / "图.png"
    image.save(path)
    for picture in (path, path.read_bytes(), np.asarray(image)):
        decoded = decode(picture)
        assert decoded.mode == "RGB"
        assert full_size(decoded) == (30, 20)
        assert np.array_equal(np.asarray(decoded), np.asarray(image))


def test_transparency_is_shown_on_white() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (255, 0, 0, 255)
    decoded = np.asarray(decode(saved(Image.fromarray(pixels), "PNG")))
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("want", [None, (40, 60)])
def test_every_exif_orientation_is_shown_upright(orientation: int, want: tuple[int, int] | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = gradient(320, 240)
    decoded = decode(saved(stored, "JPEG", exif=exif, quality=95), want)
    turned = orientation >= 5
    assert full_size(decoded) == ((240, 320) if turned else (320, 240))
    assert decoded.width >= (want or full_size(decoded))[0]
    red = np.asarray(decoded.resize((8, 8)))[..., 0].astype(int)
    along = red.mean(1) if turned else red.mean(0)
    mirrored = orientation in (2, 3, 7, 8)
    assert (along[0] > along[-1]) == mirrored


def test_a_jpeg_is_decoded_small_but_never_below_what_is_wanted() -> None:
    data = saved(gradient(800, 600), "JPEG")
    decoded = decode(data, want=(100, 100))
    assert decoded.size == (200, 150)
    assert full_size(decoded) == (800, 600)
    assert decode(data, want=(700, 100)).size == (800, 600)
    assert decode(saved(gradient(800, 600), "PNG"), want=(100, 100)).size == (800, 600)


def again(progressive: bytes, times: int) -> bytes:
    """A progressive JPEG with its last scan repeated: each takes as long as the whole picture."""
    start, end = progressive.rindex(b"\xff\xda"), progressive.rindex(b"\xff\xd9")
    return progressive[:end] + progressive[start:end] * times + progressive[end:]


PROGRESSIVE = saved(gradient(200, 200), "JPEG", progressive=True)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is a text file, not a picture", "not a picture: it is none of AVIF, BMP, GIF, JPEG"),
    "html": (b"<html><body>404</body></html>" * 50, "not a picture"),
    "truncated jpeg": (saved(gradient(200, 200), "JPEG")[:2000], "truncated or damaged"),
    "truncated png": (saved(gradient(200, 200), "PNG")[:300], "truncated or damaged"),
    "header cut": (saved(gradient(200, 200), "JPEG")[:30], "truncated or damaged"),
    "100 megapixels": (huge_png(10000, 10000), r"100\.0 megapixels, the limit is 64"),
    "64.1 megapixels": (huge_png(8010, 8010), r"64\.2 megapixels, the limit is 64"),
    "10 gigapixels": (huge_png(100000, 100000), r"10000\.0 megapixels, the limit is 64"),
    "a thousand scans": (again(PROGRESSIVE, 1000), "more than 100 scans"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "EPS files are not read"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("as_file", [True, False])
def test_every_bad_picture_has_one_plain_reason(name: str, as_file: bool, tmp_path: Path) -> None:
    data, reason = BAD[name]
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        decode(path if as_file else data)
    assert str(caught.value).startswith(f"{path}: ") == as_file
    assert "\n" not in str(caught.value)


def test_what_only_looks_like_scans_is_none() -> None:
    scan = b"\xff\xda\x00\x08"
    whole = saved(gradient(200, 200), "JPEG", progressive=True, comment=scan * 200)
    assert whole.count(b"\xff\xda") > 200
    for data in (whole, PROGRESSIVE + scan * 500):  # a film stands after the end of some photos
        assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(PROGRESSIVE)))
    assert decode(again(PROGRESSIVE, 20)).size == (200, 200)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg: there is no such file"):
        decode(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="is a directory"):
        decode(tmp_path)


def test_pixels_of_another_kind_are_refused() -> None:
    with pytest.raises(DataError, match=r"uint8 \[H, W, 3\], found float32 \[2, 2, 3\]"):
        decode(np.zeros((2, 2, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"found uint8 \[2, 2\]"):
        decode(np.zeros((2, 2), np.uint8))


def test_a_damaged_exif_block_does_not_matter() -> None:
    data = saved(gradient(20, 10), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage")
    assert decode(data, want=(5, 5)).mode == "RGB"


def test_decoding_in_threads_leaves_the_warning_filters_alone(tmp_path: Path) -> None:
    import warnings

    before = list(warnings.filters)
    good = saved(gradient(50, 40), "JPEG")
    failures: list[Exception] = []

    def work() -> None:
        for _ in range(50):
            try:
                decode(good)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert list(warnings.filters) == before


def test_equal_bytes_have_equal_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    assert content_hash(path) == content_hash(b"abc")
    assert content_hash(b"abc") != content_hash(b"abd")
    flat = np.zeros((2, 3, 3), np.uint8)
    assert content_hash(flat) == content_hash(flat.copy())
    assert content_hash(flat) != content_hash(flat.reshape(3, 2, 3))

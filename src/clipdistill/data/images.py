"""From bytes to an RGB picture: sizes are checked before decoding, and every failure is one plain reason."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import threading
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from clipdistill.data.samples import Picture
from clipdistill.errors import DataError

#: A picture with more pixels is refused before it is decoded.
MAX_PIXELS = 64_000_000
#: A JPEG with more scans is refused: each takes as long as the whole picture, and a few bytes are one. Files have ten.
MAX_SCANS = 100
#: Files a folder is searched for; HEIC is not read, but a phone's pictures are to be named rather than passed over.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm"}
    | {".heic", ".heif"}
)

# Pillow also opens formats that start other programs (EPS) or hold no picture: those are not decoded.
_FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"})
_JPEG = frozenset({"JPEG", "MPO"})
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
_ORIENTATION = 0x0112
# What ends the data of a scan: a marker that is neither a stuffed byte, nor a restart, nor filling.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_QUIET = threading.Lock()  # warnings.catch_warnings changes the whole process


def decode(picture: Picture, want: tuple[int, int] | None = None) -> Image.Image:
    """Decode a picture to RGB as a viewer shows it: turned by its EXIF tag, transparency over white.

    ``want`` (width, height) lets a JPEG be decoded at a half, a quarter or an eighth of its size, never below
    ``want``: faster, and slightly other pixels. Conversion to RGB equals that of the transformers image
    processors. Raises :class:`DataError` with one reason: no such file, empty, not a picture, damaged, too large.
    """
    try:
        if isinstance(picture, np.ndarray):
            return _from_array(picture)
        return _from_bytes(picture if isinstance(picture, bytes) else picture.read_bytes(), want)
    except Exception as error:  # Pillow's readers raise anything on damaged files
        where = "" if isinstance(picture, (bytes, np.ndarray)) else f"{picture}: "
        raise DataError(where + _reason(error)) from error


def fetch(picture: Picture) -> Picture:
    """Read a file's bytes, so that they can be decoded and hashed at the price of one reading.

    Raises :class:`DataError` with one reason.
    """
    if isinstance(picture, (bytes, np.ndarray)):
        return picture
    try:
        return picture.read_bytes()
    except (OSError, ValueError, DataError) as error:  # ValueError: no file can have such a name
        raise DataError(f"{picture}: {_reason(error)}") from error


def header(data: bytes) -> tuple[str, tuple[int, int]] | None:
    """The format of a picture and its (width, height), as its header tells; None for one whose header is damaged.

    Raises :class:`DataError` for anything else than a picture of a format that is decoded.
    """
    try:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                found, size = str(image.format), image.size
    except Exception as error:  # Pillow's readers raise anything on damaged files
        if data.startswith(_MAGIC):
            return None
        raise DataError(_reason(error)) from error
    if found not in _FORMATS:
        raise DataError(_unknown(found))
    return found, size


def full_size(image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) a decoded picture has in its file, also when ``want`` made it smaller."""
    size: tuple[int, int] = image.info.get("full_size", image.size)
    return size


def content_hash(picture: Picture) -> str:
    """Hash the bytes of a picture: equal for identical files, 32 hexadecimal digits; raises OSError for no file.

    For a line of a file that is not base64, and a tar that has changed, raises :class:`DataError`.
    """
    if isinstance(picture, np.ndarray):
        data = repr(picture.shape).encode() + picture.tobytes()
    else:
        data = picture if isinstance(picture, bytes) else picture.read_bytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise DataError(f"pixels must be uint8 [H, W, 3], found {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(pixels)


def _from_bytes(data: bytes, want: tuple[int, int] | None) -> Image.Image:
    if not data:
        raise DataError("the file is empty")
    image, turned = _open(data)
    full = None
    if want and image.format in _JPEG:
        full = image.size[::-1] if turned else image.size
        image.draft(None, want[::-1] if turned else want)
    image.load()
    with contextlib.suppress(Exception):  # a damaged EXIF block does not make the picture unreadable
        ImageOps.exif_transpose(image, in_place=True)
    rgb = _to_rgb(image)
    rgb.info = {"full_size": full or rgb.size}
    return rgb


def _open(data: bytes) -> tuple[Image.Image, bool]:
    """Read the header, and whether the EXIF tag of a JPEG swaps width and height."""
    with _QUIET, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        try:
            image: Image.Image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            if data.startswith(_MAGIC):
                raise DataError("truncated or damaged: its header cannot be read") from None
            raise
        turned = image.format in _JPEG and _orientation(image) >= 5
    if image.format not in _FORMATS:
        raise DataError(_unknown(str(image.format)))
    if image.width * image.height > MAX_PIXELS:
        raise DataError(_too_large(image.width * image.height))
    if image.format in _JPEG and _scans(data) > MAX_SCANS:
        raise DataError(f"a JPEG of more than {MAX_SCANS} scans, which no camera or program writes; save it again")
    return image, turned


def _scans(data: bytes) -> int:
    """Count the scans of a JPEG, those of the first picture in the file, up to one more than the limit."""
    count = at = 0
    while count <= MAX_SCANS and (found := _MARKER.search(data, at)):
        marker, at = data[found.start() + 1], found.end()
        if marker == 0xD9 or at + 2 > len(data):  # the end
            break
        count += marker == 0xDA
        if marker not in (0xD8, 0x01):  # all others have a length, of what may look like markers
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return count


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _unknown(kind: str) -> str:
    return f"{kind} files are not read; convert it to PNG or JPEG"


def _too_large(pixels: int) -> str:
    return f"{pixels / 1e6:.1f} megapixels, the limit is {MAX_PIXELS / 1e6:.0f}"


def _reason(error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture: it is none of {', '.join(sorted(_FORMATS - {'MPO'}))}; convert it to one"
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"(\d+) pixels", str(error))
        return _too_large(int(pixels[1])) if pixels else str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"truncated or damaged: {error or type(error).__name__}"

"""Hits as pictures: in a terminal that shows them, or as a page of one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape

from clipdistill.search.query import Answer, Hit

#: Cells of a terminal that a picture takes.
WIDE, HIGH = 16, 6
_CHUNK = 4096
#: Writes a JPEG as what a terminal shows as a picture.
Inline = Callable[[bytes], str]


def inline_for(environment: Mapping[str, str]) -> Inline | None:
    """Choose how to show pictures in the terminal that ``environment`` tells of; None where it cannot."""
    if "TMUX" in environment or environment.get("TERM", "").startswith("screen"):
        return None  # they swallow what they do not know
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "KITTY_WINDOW_ID" in environment or "kitty" in term or "ghostty" in (term + program).lower():
        return _kitty
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return _iterm
    return None


def _kitty(jpeg: bytes) -> str:
    """Kitty's graphics protocol: a PNG in pieces."""
    from PIL import Image

    stream = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(stream, format="PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    pieces = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    head = f"a=T,f=100,c={WIDE},r={HIGH},q=2,"
    return "".join(
        f"\033_G{head if not place else ''}m={int(place + 1 < len(pieces))};{piece}\033\\"
        for place, piece in enumerate(pieces)
    )


def _iterm(jpeg: bytes) -> str:
    """The inline images of iTerm2, which WezTerm shows too."""
    about = f"inline=1;size={len(jpeg)};width={WIDE};height={HIGH};preserveAspectRatio=1"
    return f"\033]1337;File={about}:{base64.b64encode(jpeg).decode()}\a"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>body{{font:15px sans-serif;margin:2em}}main{{display:flex;flex-wrap:wrap;gap:1em}}
figure{{margin:0;width:16em}}img{{max-width:16em;max-height:16em}}figcaption{{overflow-wrap:anywhere}}
small{{color:#666}}</style></head>
<body><h1>{title}</h1><p>{told}</p><main>
{figures}
</main></body></html>
"""


def page_of(title: str, answer: Answer, thumbnails: Sequence[bytes | None]) -> str:
    """Write hits with their thumbnails as a page that needs nothing else; every text in it is escaped."""
    figures = [
        _figure(rank, hit, jpeg) for rank, (hit, jpeg) in enumerate(zip(answer.hits, thumbnails, strict=True), 1)
    ]
    told = escape(answer.nothing_matches or answer.calibrated)
    return _PAGE.format(title=escape(title), told=told, figures="\n".join(figures))


def _figure(rank: int, hit: Hit, jpeg: bytes | None) -> str:
    data = base64.b64encode(jpeg).decode() if jpeg else ""
    picture = f'<img alt="" src="data:image/jpeg;base64,{data}">' if jpeg else "<p>(no thumbnail)</p>"
    likely = "" if hit.probability is None else f", probability {hit.probability:.2f}"
    words = f"{rank}. {escape(hit.id)}<br>{escape(hit.caption)}<br><small>score {hit.score:.3f}{likely}</small>"
    return f"<figure>{picture}<figcaption>{words}</figcaption></figure>"

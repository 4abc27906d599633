"""Small pictures of anything that has a look: a photograph, a frame, a page, the wave of a sound."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from chiasm.encode.files import Source, open_source, uri_to_path
from chiasm.encode.read import supported
from chiasm.errors import BadInput, ChiasmError

MAX_SIZE = 2048
_WAVE = (46, 110, 142)
_PAPER = (247, 247, 245)


def thumbnail(uri: str, part: str = "", *, size: int = 256) -> bytes:
    """JPEG of a picture, a clip's frame, a page, or (as PNG) the wave of a sound. Safe to call from several threads.

    Args:
        uri: the item's address.
        part: its place in the file, as `chiasm.encode.read` names it.
        size: the longer side in pixels, 16 to 2048; smaller pictures are not enlarged.

    Returns:
        Bytes of a JPEG or PNG file.

    Raises:
        BadItem: the file is gone, changed or corrupt, the part does not exist, or it is text, which has no look.
        BadInput: ``size`` out of range.
        MissingExtra: the reader's package is not installed.
    """
    if not 16 <= size <= MAX_SIZE:
        raise BadInput(f"size must be 16 to {MAX_SIZE}, got {size}", where="thumbnail")
    with open_source(uri_to_path(uri), hashed=False) as source:
        try:
            picture, kind = _draw(source, part, size)
        except ChiasmError:
            raise
        except (Exception, RecursionError) as error:
            raise source.bad(f"{part or 'it'} cannot be drawn ({type(error).__name__}: {str(error)[:200]})") from error
    out = io.BytesIO()
    picture.thumbnail((size, size), Image.Resampling.BICUBIC)
    picture.save(out, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return out.getvalue()


def _draw(source: Source, part: str, size: int) -> tuple[Image.Image, str]:
    kind = supported(source)
    places = _places(part)
    if kind == "image":
        return _picture(source, int(places.get("page", 1)), size), "JPEG"
    if kind == "audio" or "audio" in places:
        return _wave(source, places.get("t", 0.0), size), "PNG"
    if kind == "video":
        if "t" in places or not part:
            from chiasm.encode.video import draw_frame

            return draw_frame(source, places.get("t", 0.0), size), "JPEG"
        raise source.bad(f"has no part {part!r}")
    if source.format is not None and source.format.name == "pdf":
        from chiasm.encode.pdf import draw_page

        return draw_page(source, int(places.get("page", 1)), size, int(places.get("image", 0))), "JPEG"
    if "image" in places:
        return _embedded(source, part, size), "JPEG"
    raise source.bad("is text and has no picture")


def _places(part: str) -> dict[str, float]:
    """``"page=3,image=1"`` -> ``{"page": 3.0, "image": 1.0}``; a word without a number gets 1."""
    places: dict[str, float] = {}
    for piece in filter(None, part.split(",")):
        match = re.fullmatch(r"(\w+)(?:=(\d{1,9}(?:\.\d{1,9})?(?:e[+-]?\d{1,2})?))?", piece)
        if match:  # other pieces are names, such as that of a sheet
            places[match[1]] = float(match[2]) if match[2] else 1.0
    return places


def _picture(source: Source, page: int, size: int) -> Image.Image:
    from chiasm.encode.images import decode, open_image

    image = open_image(source.file, source.format.name if source.format else "", source.name)
    if page > 1:
        try:
            image.seek(page - 1)
        except Exception as error:
            raise source.bad(f"has no page {page}") from error
    return decode(image, source.name, min_side=size)


def _embedded(source: Source, part: str, size: int) -> Image.Image:
    from chiasm.encode.documents import read_document

    for item in read_document(source, min_side=size):
        if item.part == part and item.modality == "image":
            return item.content
    raise source.bad(f"has no part {part!r}")


def _wave(source: Source, start: float, size: int) -> Image.Image:
    from chiasm.encode.audio import read_track

    samples = read_track(source, start)
    if samples is None:
        raise source.bad(f"has no sound at {start:g} s")
    return draw_wave(samples, size)


def draw_wave(samples: np.ndarray, size: int) -> Image.Image:
    """The wave of a sound (float ``[T]`` in [-1, 1]), twice as wide as high: one column for the loudest and lowest value."""
    width, height = size, max(size // 2, 8)
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    middle = height / 2
    edges = np.linspace(0, len(samples), width + 1).astype(int)
    peak = max(float(np.abs(samples).max(initial=0.0)), 0.05)  # quiet recordings fill the picture, silence does not
    for column, (left, right) in enumerate(pairwise(edges)):
        run = samples[left : max(right, left + 1)]
        high, low = (float(run.max()), float(run.min())) if len(run) else (0.0, 0.0)
        top, bottom = middle - 0.95 * middle * high / peak, middle - 0.95 * middle * low / peak
        draw.line((column, min(top, middle - 0.5), column, max(bottom, middle + 0.5)), fill=_WAVE)
    return picture

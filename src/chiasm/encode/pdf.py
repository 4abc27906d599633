"""PDF through PDFium: the text of each page, the pictures on it, and a rendering of pages that have no text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from chiasm.encode.documents import Passage, Picture, Trace, worth_reading
from chiasm.encode.files import Source
from chiasm.encode.images import MAX_PIXELS, to_rgb
from chiasm.errors import BadItem, missing_extra

MAX_PAGES = 2000
MAX_PICTURES_PER_PAGE = 20
# A rendered page's longer side in pixels: small print stays legible to a vision model, 2 MB per page.
RENDERED_SIDE = 1024

# PDFium is not thread-safe, not even across documents: every call into it holds this lock, and every object is closed
# inside it (a finalizer would run in whatever thread collects garbage).
_PDFIUM = threading.Lock()


def read_pdf(source: Source, min_side: int | None, trace: Trace) -> Iterator[Passage | Picture]:
    """Page by page: its text, then its pictures; a page without text becomes one rendered picture.

    Raises:
        BadItem: encrypted or corrupt.
        MissingExtra: pypdfium2 is not installed.
    """
    with _open(source) as document:
        with _PDFIUM:
            count = len(document)
            title = _title(document)
        if count > MAX_PAGES:
            trace.note(f"the first {MAX_PAGES} of {count} pages were read")
        for number in range(1, min(count, MAX_PAGES) + 1):
            meta: dict[str, Any] = {"page": number, "pages": count} | ({"title": title} if title else {})
            try:
                with _PDFIUM:  # released between pages, so that other files get their turn
                    text, pictures = _read_page(document, number, min_side, trace)
            except Exception as error:  # one bad page among good ones
                trace.note(f"page {number} could not be read ({error})")
                continue
            if text:
                yield Passage(text, f"page={number}", meta)
            for index, picture in pictures:
                part = f"page={number},image={index}" if index else f"page={number}"
                size = {"width": picture.width, "height": picture.height}
                yield Picture(picture, part, {**meta, **size} | ({} if index else {"rendered": True}))


@contextmanager
def _open(source: Source) -> Iterator[Any]:
    try:
        import pypdfium2
    except ImportError as error:
        raise missing_extra("reading PDF files", "media", "pypdfium2") from error
    with _PDFIUM:
        try:
            source.file.seek(0)
            # From memory: PDFium reading through a Python file would call back into Python under the lock.
            document = pypdfium2.PdfDocument(source.file.read())
        except Exception as error:
            if "password" in str(error).lower():
                raise source.bad("is encrypted", "Save a copy without a password") from error
            raise source.bad(f"is not a readable PDF ({error})") from error
    try:
        yield document
    finally:
        with _PDFIUM:
            document.close()


def _title(document: Any) -> str:
    try:
        return str(document.get_metadata_value("Title")).strip()[:300]
    except Exception:
        return ""


def _read_page(
    document: Any, number: int, min_side: int | None, trace: Trace
) -> tuple[str, list[tuple[int, Image.Image]]]:
    """The text of a page and its (index, picture) pairs; index 0 is the rendering of a page without text."""
    page = document[number - 1]
    try:
        textpage = page.get_textpage()
        try:
            # PDFium marks a hyphen at the end of a line with U+FFFE; the word goes on in the next line.
            text = textpage.get_text_bounded().replace("\ufffe\r\n", "").replace("\ufffe", "")
        finally:
            textpage.close()
        if text.strip():
            return text, list(_pictures(page, number, min_side, trace))
        rendered = _render(page, RENDERED_SIDE, number)
        blank = rendered.convert("L").getextrema()
        return "", [] if blank[0] == blank[1] else [(0, rendered)]
    finally:
        page.close()


def _images(page: Any) -> list[Any]:
    from pypdfium2 import raw

    return list(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=4))


def _pictures(page: Any, number: int, min_side: int | None, trace: Trace) -> Iterator[tuple[int, Image.Image]]:
    found = 0
    for index, image in enumerate(_images(page), start=1):
        try:
            width, height = image.get_px_size()
            if not worth_reading(width, height):
                if width * height > MAX_PIXELS:
                    trace.note(f"a picture of {width} x {height} pixels on page {number} was not decoded")
                continue
            if found >= MAX_PICTURES_PER_PAGE:
                trace.note(f"only the first {MAX_PICTURES_PER_PAGE} pictures of page {number} were read")
                return
            picture = _extract(image, min_side)
        except Exception as error:
            trace.note(f"picture {index} on page {number} could not be read ({error})")
            continue
        found += 1
        yield index, picture


def _extract(image: Any, min_side: int | None) -> Image.Image:
    bitmap = image.get_bitmap()
    try:
        # A copy, because the bitmap's memory belongs to PDFium.
        picture = to_rgb(bitmap.to_pil()).copy()
    finally:
        bitmap.close()
    factor = min(picture.size) // min_side if min_side else 1
    return picture.reduce(factor) if factor > 1 else picture


def _render(page: Any, side: int, number: int) -> Image.Image:
    for image in _images(page):
        width, height = image.get_px_size()
        if width * height > MAX_PIXELS:  # rendering would decode it
            raise BadItem(f"a picture of {width} x {height} pixels is too large to be decoded", where=f"page {number}")
    width, height = page.get_size()
    if not (0 < width < 1e6 and 0 < height < 1e6):
        raise BadItem(f"has the size {width} x {height} points", where=f"page {number}")
    bitmap = page.render(scale=side / max(width, height))
    try:
        return to_rgb(bitmap.to_pil()).copy()
    finally:
        bitmap.close()


def draw_page(source: Source, number: int, side: int, image: int = 0) -> Image.Image:
    """A page as a picture whose longer side is ``side`` pixels, or the ``image``-th picture on it, for thumbnails.

    Raises:
        BadItem: the file, page or picture cannot be read or does not exist.
    """
    with _open(source) as document, _PDFIUM:
        if not 1 <= number <= len(document):
            raise source.bad(f"has no page {number}")
        try:
            page = document[number - 1]
            try:
                if not image:
                    return _render(page, side, number)
                found = _images(page)
                if not 1 <= image <= len(found) or not worth_reading(*found[image - 1].get_px_size()):
                    raise source.bad(f"has no picture {image} on page {number}")
                return _extract(found[image - 1], side)
            finally:
                page.close()
        except BadItem:
            raise
        except Exception as error:
            raise source.bad(f"page {number} cannot be drawn ({error})") from error

"""Pictures: every picture file becomes an upright 8-bit RGB picture, or one clear error; never a decompression bomb."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import IO, Any

from PIL import Image, ImageFile, JpegImagePlugin

from chiasm.encode.files import Source
from chiasm.errors import BadItem
from chiasm.items import Item

# Twice Pillow's own Image.MAX_IMAGE_PIXELS, the size at which Pillow refuses; as 8-bit RGB it is 0.5 GB.
MAX_PIXELS = 2 * (1024 * 1024 * 1024 // 4 // 3)
# A baseline JPEG is decoded row by row at 1/8 of its size; the limit is what fits that way into MAX_PIXELS.
MAX_JPEG_PIXELS = 8 * MAX_PIXELS
# Pictures above this size are decoded one at a time, so that several workers cannot fill the memory together.
LARGE_PIXELS = 32_000_000
MAX_PAGES = 64  # of one TIFF file
# Twice the 224 pixels that most networks take, rounded up; a larger picture is read at reduced size.
MIN_SIDE = 512

_LARGE = threading.Semaphore(1)

# Pillow's plugins by our format names. Not here, on purpose: formats that start other programs (EPS, WMF).
_PLUGINS = {
    "png": "PNG",
    "jpeg": "JPEG",
    "gif": "GIF",
    "tiff": "TIFF",
    "ico": "ICO",
    "psd": "PSD",
    "jpeg2000": "JPEG2000",
    "dds": "DDS",
    "qoi": "QOI",
    "webp": "WEBP",
    "avif": "AVIF",
    "bmp": "BMP",
    "ppm": "PPM",
}
_EXIF_IFD, _TAKEN, _TAKEN_OFFSET, _CHANGED = 0x8769, 0x9003, 0x9011, 0x0132


def read_image(source: Source, *, min_side: int | None = MIN_SIDE) -> list[Item]:
    """The picture of a file as one item; one item per page for a TIFF with several pages.

    Content is RGB: turned upright by its EXIF tag, transparency on white, 16-bit scaled to 8-bit, the first frame of
    an animation. ``meta`` has ``width`` and ``height`` of the upright original, ``format``, ``frames`` if there are
    several, and ``taken_at`` (ISO 8601) if the camera wrote it.

    Args:
        source: the open file.
        min_side: a picture whose shorter side is at least twice this long (in pixels) is read at reduced size with
            its shorter side still at least this long; None reads the full size.

    Raises:
        BadItem: truncated, corrupt, not a supported format, or more than `MAX_PIXELS` pixels.
    """
    name = source.format.name if source.format else ""
    image = open_image(source.file, name, source.name)
    frames = _frame_count(image)
    if name != "tiff" or frames == 1:
        meta = _facts(image) | ({"frames": frames} if frames > 1 else {})
        return [_item(source, decode(image, source.name, min_side=min_side), "", meta)]
    items = []
    for page in range(min(frames, MAX_PAGES)):
        try:
            image.seek(page)
        except Exception as error:
            raise source.bad(f"page {page + 1} cannot be read ({_say(error)})") from error
        meta = _facts(image) | {"page": page + 1, "pages": frames}
        if frames > MAX_PAGES:
            meta["truncated"] = f"the first {MAX_PAGES} of {frames} pages were read"
        items.append(_item(source, decode(image, source.name, min_side=min_side), f"page={page + 1}", meta))
    return items


def _item(source: Source, picture: Image.Image, part: str, meta: dict[str, Any]) -> Item:
    return Item("image", picture, uri=source.uri, part=part, sha256=source.sha256, meta=meta)


def open_image(file: IO[bytes], name: str, where: str) -> ImageFile.ImageFile:
    """Opens a picture without decoding it.

    Not ``Image.open``: its size check is a global setting and a warning, ours is a limit per format (`decode`).

    Args:
        file: the bytes.
        name: the format, as `chiasm.encode.formats` names it.
        where: what messages call the file.

    Raises:
        BadItem: the header is not that of a picture.
    """
    plugin = _PLUGINS.get(name, "")
    if plugin and plugin not in Image.OPEN:
        Image.init()
    if plugin not in Image.OPEN:
        raise BadItem(f"is a picture of a kind that is not read ({name})", where=where, fix="Convert it to PNG or JPEG")
    # Not the factory that also tries MPO: the first picture of an MPO file is a plain JPEG.
    factory = JpegImagePlugin.JpegImageFile if plugin == "JPEG" else Image.OPEN[plugin][0]
    try:
        file.seek(0)
        return factory(file, "")  # type: ignore[return-value]
    except Exception as error:  # hostile headers raise whatever the parser trips over
        raise BadItem(f"is not a readable picture ({_say(error)})", where=where) from error


def decode(image: Image.Image, where: str, *, min_side: int | None = MIN_SIDE) -> Image.Image:
    """The current frame as an upright 8-bit RGB picture in memory.

    Raises:
        BadItem: too many pixels, or the data is truncated or corrupt.
    """
    width, height = image.size
    if width < 1 or height < 1:
        raise BadItem(f"has no pixels ({width} x {height})", where=where)
    jpeg = image.format == "JPEG" and not image.info.get("progressive")
    limit = MAX_JPEG_PIXELS if jpeg and min_side else MAX_PIXELS
    if width * height > limit:
        raise _too_large(width, height, limit, where)
    if image.format == "JPEG" and min_side:
        image.draft(None, _reduced(image.size, min_side))
    if image.width * image.height > MAX_PIXELS:  # a shape that draft mode could not make small, such as 1 x a billion
        raise _too_large(width, height, MAX_PIXELS, where)
    with _LARGE if image.width * image.height > LARGE_PIXELS else nullcontext():
        try:
            image.load()
            picture = _upright(to_rgb(_reduce(image, min_side)), image)
        except Exception as error:  # Pillow's decoders raise many kinds of errors on hostile data
            raise BadItem(f"is truncated or corrupt ({_say(error)})", where=where) from error
    if picture is image:  # which belongs to the file: the next page would overwrite it
        picture = image.copy()
    picture.info = {}  # its EXIF would have the picture turned a second time
    return picture


def _too_large(width: int, height: int, limit: int, where: str) -> BadItem:
    return BadItem(
        f"has {width} x {height} pixels, more than the limit of {limit / 1e6:.0f} million (a decompression bomb?); it was not decoded",
        where=where,
        fix="Scale it down if it is genuine",
    )


def _reduced(size: tuple[int, int], min_side: int) -> tuple[int, int]:
    """The smallest size of the same shape whose shorter side is at least ``min_side``."""
    scale = max(min_side / min(size), 0.0)
    return (size[0], size[1]) if scale >= 1 else (round(size[0] * scale), round(size[1] * scale))


def _reduce(image: Image.Image, min_side: int | None) -> Image.Image:
    """Averages whole blocks of pixels while the shorter side stays at least ``min_side``; keeps memory flat."""
    factor = min(image.size) // min_side if min_side else 1
    # Palette indices and bits cannot be averaged; they are small and are reduced after the conversion.
    if factor < 2 or image.mode not in ("L", "RGB", "RGBX", "CMYK", "YCbCr"):
        return image
    return image.reduce(factor) if "transparency" not in image.info else image


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB: transparency on white, 16-bit and float scaled to 8-bit, not clipped.

    Integers of 16 bits are divided by 257. Wider integers and floats have no fixed white: values within [0, 1]
    (floats), [0, 255] or [0, 65535] are read on that scale, anything else is stretched from its minimum to its maximum.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _scaled(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # White where nothing covers it: what a viewer on a white page shows.
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    # CMYK: Pillow has already undone the inversion that Adobe's programs write.
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    import numpy as np

    values = np.asarray(image).astype(np.float32)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 255.0 if high <= 255 else 65535.0
    return Image.fromarray(np.rint((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8))


def _upright(picture: Image.Image, original: Image.Image) -> Image.Image:
    turn = {
        2: (Image.Transpose.FLIP_LEFT_RIGHT,),
        3: (Image.Transpose.ROTATE_180,),
        4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.TRANSPOSE,),
        6: (Image.Transpose.ROTATE_270,),
        7: (Image.Transpose.TRANSVERSE,),
        8: (Image.Transpose.ROTATE_90,),
    }
    for step in turn.get(_orientation(original), ()):
        picture = picture.transpose(step)
    return picture


def _exif(image: Image.Image) -> Any:
    try:
        return image.getexif()
    except Exception:  # a broken EXIF block must not cost the picture
        return {}


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF pages while it loads them, and swaps their size
    value = _exif(image).get(0x0112, 1)
    return value if isinstance(value, int) else 1


def _facts(image: Image.Image) -> dict[str, Any]:
    width, height = image.size
    if _orientation(image) >= 5:
        width, height = height, width
    facts: dict[str, Any] = {"width": width, "height": height, "format": image.format}
    taken = taken_at(image)
    return facts | ({"taken_at": taken} if taken else {})


def taken_at(image: Image.Image) -> str | None:
    """When the picture was taken, ISO 8601 as the camera's clock showed it (with its offset if it wrote one)."""
    from datetime import datetime

    exif = _exif(image)
    try:
        details = exif.get_ifd(_EXIF_IFD) if exif else {}
        text = details.get(_TAKEN) or exif.get(_CHANGED)
        if not text:
            return None
        moment = datetime.strptime(str(text).strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S").isoformat()
        offset = str(details.get(_TAKEN_OFFSET) or "").strip("\0 ")
        return datetime.fromisoformat(moment + offset).isoformat()
    except Exception:  # "0000:00:00 00:00:00" and worse
        return None


def _frame_count(image: Image.Image) -> int:
    try:
        return max(int(getattr(image, "n_frames", 1)), 1)
    except Exception:  # a truncated animation whose first frame may still be whole
        return 1


def _say(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

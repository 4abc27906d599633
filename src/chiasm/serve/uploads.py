"""Pictures and sounds inside a request -> items. Nothing is fetched: the bytes come with the request or not at all."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from pathlib import Path

from chiasm.errors import BadInput, BadItem
from chiasm.items import Item

_ADDRESS = re.compile(r"\s*(?:[a-z][a-z0-9+.-]{1,15}:)?//|\s*(?:file|blob|about|javascript):", re.IGNORECASE)
_BLANKS = str.maketrans("", "", " \t\r\n")


def decode_base64(text: str, where: str) -> bytes:
    """Bytes of a data URL (``data:image/png;base64,...``) or of bare base64; line breaks in it are fine.

    Raises:
        BadInput: it is an address, is not base64, or is empty.
    """
    if _ADDRESS.match(text):
        raise BadInput(
            "the server fetches no address",
            where=where,
            fix="Send the content itself: data:image/png;base64,...",
        )
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise BadInput("the data URL is not base64", where=where, fix="Write it as data:image/png;base64,...")
    try:
        data = base64.b64decode(text.translate(_BLANKS), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput("is not base64", where=where, fix="Send data:image/png;base64,...") from error
    if not data:
        raise BadInput("is empty", where=where)
    return data


def read_upload(
    data: bytes, modality: str, where: str, *, max_pixels: int, transcribe: bool = False, id: str = ""
) -> Item:
    """The picture or sound in ``data``, read by the same careful readers as an indexed file.

    Args:
        data: the bytes of a file.
        modality: ``"image"`` or ``"audio"``: what it has to be.
        where: the field of the request, for messages.
        max_pixels: a picture with more is refused before it is decoded.
        transcribe: also write down what is said, for spaces that encode speech as text.
        id: the item's id; by default made of its content.

    Raises:
        BadInput: it is something else, is broken, or unpacks to more than the readers allow.
    """
    from chiasm.encode.files import open_source
    from chiasm.encode.images import open_image
    from chiasm.encode.read import read

    # The readers take files: that keeps one way in for every format, with all of its checks.
    with tempfile.TemporaryDirectory(prefix="chiasm-") as folder:
        path = Path(folder, "upload")
        path.write_bytes(data)
        try:
            with open_source(path, hashed=False) as source:
                kind, name = (source.format.kind, source.format.name) if source.format else (None, "")
                if kind != modality:
                    found = f"holds {kind}" if kind else "is of an unknown or broken format"
                    raise BadInput(f"has to be {_NAMES[modality]}, but it {found}", where=where)
                if modality == "image":
                    width, height = open_image(source.file, name, "it").size
                    if width * height > max_pixels:
                        raise BadInput(f"has {width} x {height} pixels, at most {max_pixels} are possible", where=where)
            items = read(path, transcribe=transcribe)
        except BadItem as error:
            # The file's name was ours and says nothing to the client.
            raise BadInput(error.what.replace(str(path), "it"), where=where, fix=error.fix) from error
    item = next((item for item in items if item.modality == modality), None)
    if item is None:
        raise BadInput(f"has to be {_NAMES[modality]}, but none is in it", where=where)
    return Item(modality, item.content, text=item.text, id=id)


_NAMES = {"image": "a picture", "audio": "a sound"}

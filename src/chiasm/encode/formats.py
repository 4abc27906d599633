"""What a file's first bytes say about it."""

from __future__ import annotations

import re
from typing import NamedTuple


class Format(NamedTuple):
    """A recognized format: ``kind`` is image, document, audio, video or text; ``name`` selects the reader.

    ``refusal`` says why the format cannot be read, ``""`` if it can.
    """

    kind: str
    name: str
    refusal: str = ""


_HEIC = "is a HEIC picture, which is not supported; convert it to JPEG"

_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"\x89PNG\r\n\x1a\n", Format("image", "png")),
    (b"\xff\xd8\xff", Format("image", "jpeg")),
    (b"GIF87a", Format("image", "gif")),
    (b"GIF89a", Format("image", "gif")),
    (b"II*\0", Format("image", "tiff")),
    (b"MM\0*", Format("image", "tiff")),
    (b"II+\0", Format("image", "tiff")),
    (b"MM\0+", Format("image", "tiff")),
    (b"\0\0\x01\0", Format("image", "ico")),
    (b"8BPS", Format("image", "psd")),
    (b"\0\0\0\x0cjP  \r\n\x87\n", Format("image", "jpeg2000")),
    (b"\xff\x4f\xff\x51", Format("image", "jpeg2000")),
    (b"DDS ", Format("image", "dds")),
    (b"qoif", Format("image", "qoi")),
    (b"%PDF-", Format("document", "pdf")),
    (b"fLaC", Format("audio", "flac")),
    (b"ID3", Format("audio", "mp3")),
    (b".snd", Format("audio", "au")),
    (b"caff", Format("audio", "caf")),
    (b"#!AMR", Format("audio", "amr")),
    (b"\x1aE\xdf\xa3", Format("video", "matroska")),
    (b"FLV\x01", Format("video", "flv")),
    (b"0&\xb2u\x8ef\xcf\x11", Format("video", "asf")),
    (b"\0\0\x01\xba", Format("video", "mpeg")),
    (b"\0\0\x01\xb3", Format("video", "mpeg")),
)
_RIFF = {
    b"WAVE": Format("audio", "wav"),
    b"AVI ": Format("video", "avi"),
    b"WEBP": Format("image", "webp"),
}
_OLE = Format("document", "ole", "is an old binary Office file; save it as .docx, .pptx or .xlsx")

# ISO base media files say what they are by their major brand; everything else with a "ftyp" box is a clip.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), Format("image", "heic", _HEIC)),
    **dict.fromkeys((b"avif", b"avis"), Format("image", "avif")),
    **dict.fromkeys((b"M4A ", b"M4B ", b"M4P "), Format("audio", "m4a")),
}

_BINARY_AUDIO = {".mp3": "mp3", ".mp2": "mp3", ".aac": "aac", ".ac3": "ac3", ".wma": "wma"}
_TEXT_NAMES = {".md": "markdown", ".markdown": "markdown", ".csv": "csv", ".tsv": "csv"}
_HTML_NAMES = (".html", ".htm", ".xhtml")
# Only files with these extensions are read as Latin-1 when they are not UTF-8: any bytes are valid Latin-1.
_LATIN_NAMES = (
    ".txt .text .md .markdown .csv .tsv .log .json .jsonl .xml .yaml .yml .toml .ini .cfg .rst .tex .bib .srt .vtt .py .js "
    ".ts .c .h .cc .cpp .hpp .cs .java .go .rs .rb .php .pl .sh .sql .r .m .f .f90 .pas .lua .css .bat .ps1 "
    ".html .htm .xhtml"
)
_HTML = re.compile(rb"^\s*(<\?xml[^>]*>\s*)?(<!--.{0,2000}?-->\s*)?(<!doctype\s+html|<html|<head|<body)", re.I | re.S)
_SVG = re.compile(rb"^\s*(<\?xml[^>]*>\s*)?(<!--.{0,2000}?-->\s*)*(<!doctype\s+svg[^>]*>\s*)?<svg", re.I | re.S)


def detect(head: bytes, suffix: str = "", members: tuple[str, ...] = ()) -> Format | None:
    """The format of a file, by content first and extension second; None if nothing here can read it.

    Args:
        head: the first bytes, 4096 are enough.
        suffix: the extension with its dot, lower case.
        members: names in the zip archive, if the file is one.
    """
    if not head:
        return None
    for magic, found in _MAGIC:
        if head.startswith(magic):
            return found
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return Format("audio", "aiff")
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12]) or _compatible(head)
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):
        return Format("video", "mp4")
    if head.startswith(b"OggS"):
        clip = b"\x80theora" in head[:200] or b"OVP80" in head[:200]
        return Format("video", "ogg") if clip else Format("audio", "ogg")
    if head.startswith(b"PK\x03\x04"):
        return _office(members)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _OLE
    if b"%PDF-" in head[:1024] and suffix == ".pdf":  # readers accept some bytes before the header
        return Format("document", "pdf")
    if head[:1] == b"\x47" and len(head) > 376 and head[188:189] == head[376:377] == b"\x47":
        return Format("video", "mpegts")
    if head[:2] == b"BM" and len(head) >= 26 and head[6:10] == b"\0\0\0\0":
        return Format("image", "bmp")
    if re.match(rb"P[1-6]\s", head) and (suffix in (".pbm", ".pgm", ".ppm", ".pnm") or not _is_utf8(head)):
        return Format("image", "ppm")
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE0 == 0xE0 and head[:2] not in (b"\xff\xfe", b"\xff\xff"):
        return Format("audio", "mp3")  # an MPEG or ADTS frame; the decoder has the last word
    if suffix in _BINARY_AUDIO and not _is_utf8(head):
        return Format("audio", _BINARY_AUDIO[suffix])
    return _text(head, suffix)


def _compatible(head: bytes) -> Format:
    """A file whose major brand is generic: the compatible brands can still say that it is a picture."""
    length = int.from_bytes(head[:4], "big")
    brands = [head[i : i + 4] for i in range(16, min(length, 128, len(head)), 4)]
    pictures = [_BRANDS[b] for b in brands if b in _BRANDS and _BRANDS[b].kind == "image"]
    clip = any(b in (b"isom", b"mp41", b"mp42", b"qt  ", b"avc1", b"iso2") for b in (*brands, head[8:12]))
    return pictures[0] if pictures and not clip else Format("video", "mp4")


def _office(members: tuple[str, ...]) -> Format | None:
    for folder, name in (("word/", "docx"), ("ppt/", "pptx"), ("xl/", "xlsx")):
        if "[Content_Types].xml" in members and any(member.startswith(folder) for member in members):
            return Format("document", name)
    return None  # some other archive


def _is_utf8(head: bytes) -> bool:
    # The 4096 bytes may end inside a character of up to four bytes.
    for cut in range(4):
        try:
            return _printable(head[: len(head) - cut].decode("utf-8"))
        except UnicodeDecodeError:
            continue
    return False


def _printable(text: str) -> bool:
    odd = sum(c < " " and c not in "\t\n\r\f\b\x1b" for c in text)
    return "\0" not in text and odd <= len(text) // 50


def _text(head: bytes, suffix: str) -> Format | None:
    unicode16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    plain = unicode16 or _is_utf8(head)
    if not plain and not (suffix in _LATIN_NAMES.split() and _printable(head.decode("latin-1"))):
        return None
    body = head.removeprefix(b"\xef\xbb\xbf")
    if _SVG.match(body):
        return Format("image", "svg", "is an SVG drawing, which is not supported; export it as PNG")
    if _HTML.match(body) or suffix in _HTML_NAMES:
        return Format("document", "html")
    return Format("text", _TEXT_NAMES.get(suffix, "plain"))

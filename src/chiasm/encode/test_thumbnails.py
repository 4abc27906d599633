"""Thumbnails of everything that has a look."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from chiasm.encode.read import read
from chiasm.encode.thumbnails import draw_wave, thumbnail
from chiasm.errors import BadInput, BadItem


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def halves(width=400, height=300):
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (0, 0, width // 2, height))
    return image


def test_pictures(tmp_path):
    path = tmp_path / "a b\n\U0001f600.png"
    halves().save(path)
    image = opened(thumbnail(str(path), size=100))
    assert image.size == (100, 75)
    assert image.format == "JPEG"
    assert image.getpixel((10, 30)) == pytest.approx((0, 0, 255), abs=12)
    assert opened(thumbnail(str(path), size=1000)).size == (400, 300)  # never enlarged


def test_every_part_that_read_names_can_be_drawn(tmp_path):
    """The contract with the gallery page: pictures, frames, pages, sounds and pictures in documents."""
    from chiasm.encode.test_documents import make_docx, make_pptx, noise, pdf
    from chiasm.encode.test_video import write_clip

    pages = [halves(40, 30), halves(30, 40)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    write_clip(tmp_path / "a.mp4", seconds=3, sound=True)
    (tmp_path / "a.pdf").write_bytes(pdf([["some words", noise()], [noise(seed=1)]]))
    make_docx(tmp_path / "a.docx")
    make_pptx(tmp_path / "a.pptx")
    drawn = 0
    for name in sorted(os.listdir(tmp_path)):
        for item in read(tmp_path / name):
            if item.modality == "text" and name != "a.pdf":
                with pytest.raises(BadItem, match="text"):
                    thumbnail(item.uri, item.part)
                continue
            image = opened(thumbnail(item.uri, item.part, size=64))
            assert max(image.size) <= 64
            drawn += 1
            if item.modality in ("image", "video"):
                width, height = item.content.size
                assert image.width / image.height == pytest.approx(width / height, rel=0.05)
    assert drawn >= 2 + 3 + 1 + 3 + 1 + 1


def test_frames_are_those_that_were_indexed(tmp_path):
    from chiasm.encode.test_video import write_clip

    write_clip(tmp_path / "a.mp4", seconds=6)
    for item in read(tmp_path / "a.mp4"):
        frame = opened(thumbnail(item.uri, item.part, size=160))
        difference = np.abs(np.asarray(frame, dtype=float) - np.asarray(item.content.resize(frame.size), dtype=float))
        assert difference.mean() < 6


def test_wave():
    time = np.arange(16_000) / 16_000
    loud_then_silent = np.where(time < 0.5, np.sin(2 * np.pi * 440 * time), 0).astype(np.float32)
    ink = np.asarray(draw_wave(loud_then_silent, 128).convert("L")) < 180
    assert ink.shape == (64, 128)
    assert ink[:, 10:60].sum(axis=0).min() > 40
    assert ink[:, 70:].sum(axis=0).max() <= 2
    assert np.asarray(draw_wave(np.zeros(100, np.float32), 64).convert("L")).min() < 180  # silence is a line
    assert draw_wave(np.zeros(0, np.float32), 64).size == (64, 32)


def test_what_cannot_be_drawn(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(BadItem, match="text"):
        thumbnail(str(tmp_path / "a.txt"), "chunk=1")
    with pytest.raises(BadItem, match="does not exist"):
        thumbnail(str(tmp_path / "gone.png"))
    halves().save(tmp_path / "a.png")
    for size in (0, -1, 10_000):
        with pytest.raises(BadInput, match="size"):
            thumbnail(str(tmp_path / "a.png"), size=size)
    halves().save(tmp_path / "a.tif")
    with pytest.raises(BadItem, match="page 9"):
        thumbnail(str(tmp_path / "a.tif"), "page=9")


@pytest.mark.parametrize(
    "part", ["page=99", "page=0", "page=1,image=7", "image=3", "t=99999", "nonsense", "page=1e9", "t=nan"]
)
def test_parts_that_do_not_exist(tmp_path, part):
    from chiasm.encode.test_documents import pdf

    (tmp_path / "a.pdf").write_bytes(pdf([["words"]]))
    try:
        opened(thumbnail(str(tmp_path / "a.pdf"), part))
    except BadItem:
        pass
    (tmp_path / "a.docx").write_bytes(b"PK\x03\x04broken")
    with pytest.raises(BadItem):
        thumbnail(str(tmp_path / "a.docx"), part)


def test_bombs_are_not_decoded(tmp_path):
    from chiasm.encode.test_images import png_bomb

    (tmp_path / "a.png").write_bytes(png_bomb(60_000, 60_000))
    with pytest.raises(BadItem, match="decompression bomb"):
        thumbnail(str(tmp_path / "a.png"))

"""Pictures of every mode, size and degree of damage."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from chiasm.encode import images
from chiasm.encode.read import read
from chiasm.errors import BadItem


def photo(width=64, height=48, seed=0):
    """A smooth picture, so that lossy formats change it little."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def distance(a, b):
    return float(np.abs(np.asarray(a.convert("RGB"), dtype=float) - np.asarray(b.convert("RGB"), dtype=float)).mean())


def only(path, **options):
    (item,) = read(path, **options)
    assert item.modality == "image"
    assert item.content.mode == "RGB"
    return item


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "QOI", "ICO"])
def test_formats(tmp_path, kind):
    path = tmp_path / "picture"  # no extension: the content decides
    try:
        photo().save(path, kind, **({"sizes": [(64, 48)]} if kind == "ICO" else {}))
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow does not write {kind}")
    item = only(path)
    assert item.content.size == (64, 48)
    assert distance(item.content, photo()) < 12
    assert item.meta["width"] == 64
    assert item.meta["height"] == 48
    assert item.meta["size"] == path.stat().st_size
    assert item.meta["format"] == kind
    assert item.part == ""


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_truncated(tmp_path, kind, keep):
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(buffer, kind)
    path = tmp_path / "cut"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * keep)])
    with pytest.raises(BadItem, match=r"truncated or corrupt|not a readable picture"):
        read(path)


def test_empty_file(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(BadItem, match="empty"):
        read(tmp_path / "a.jpg")


def test_mislabelled_content_decides(tmp_path):
    photo().save(tmp_path / "real.png")
    (tmp_path / "real.png").rename(tmp_path / "wrong.jpg")
    assert only(tmp_path / "wrong.jpg").meta["format"] == "PNG"
    (tmp_path / "text.jpg").write_text("these are words")
    (item,) = read(tmp_path / "text.jpg")
    assert item.modality == "text"
    (tmp_path / "noise.jpg").write_bytes(bytes(range(128, 256)) * 8)
    with pytest.raises(BadItem):
        read(tmp_path / "noise.jpg")


def test_16_bit_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(4, 0)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        assert np.asarray(only(tmp_path / name).content)[0, :, 0].tolist() == list(range(256))


@pytest.mark.parametrize(
    ("values", "expected"), [((0.0, 0.5, 1.0), (0, 128, 255)), ((-10.0, 0.0, 10.0), (0, 128, 255))]
)
def test_float_and_integer_pictures(tmp_path, values, expected):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(only(tmp_path / "a.tif").content)[0, :, 0].tolist() == pytest.approx(expected, abs=1)
    Image.fromarray(np.array([[0, 100, 255]], dtype=np.int32)).save(tmp_path / "b.tif")
    assert np.asarray(only(tmp_path / "b.tif").content)[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path, mode):
    layer = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    layer.putpixel((1, 0), (0, 0, 0, 255))
    if mode == "P":
        layer.quantize(4).save(tmp_path / "a.png")
    else:
        layer.convert(mode).save(tmp_path / "a.png")
    picture = only(tmp_path / "a.png").content
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((1, 0)) == (0, 0, 0)


def test_half_transparent_is_mixed(tmp_path):
    Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert only(tmp_path / "a.png").content.getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_transparent_color_of_an_opaque_mode(tmp_path):
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    image.save(tmp_path / "a.png", transparency=(255, 0, 0))
    picture = only(tmp_path / "a.png").content
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_gray_bits_and_palette(tmp_path, mode):
    photo().convert(mode).save(tmp_path / "a.png")
    assert distance(only(tmp_path / "a.png").content, photo().convert(mode)) == 0


def test_cmyk(tmp_path):
    red = Image.new("RGB", (16, 16), (200, 30, 30))
    red.convert("CMYK").save(tmp_path / "a.jpg", quality=95)  # written inverted, with Adobe's marker
    red.convert("CMYK").save(tmp_path / "a.tif")
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    for name in ("a.jpg", "a.tif"):
        assert only(tmp_path / name).content.getpixel((8, 8)) == pytest.approx((200, 30, 30), abs=12)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, kind, orientation):
    image = photo(60, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    image.save(path, kind, exif=exif)
    item = only(path, min_side=None)
    stored = image.copy()
    stored.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(stored)
    assert ImageOps.exif_transpose(item.content).size == item.content.size  # nobody turns it a second time
    assert item.content.size == expected.size == (item.meta["width"], item.meta["height"])
    assert distance(item.content, expected) < 10


def test_taken_at(tmp_path):
    exif = Image.Exif()
    exif[0x0132] = "2020:01:02 03:04:05"
    photo().save(tmp_path / "changed.jpg", exif=exif)
    assert only(tmp_path / "changed.jpg").meta["taken_at"] == "2020-01-02T03:04:05"
    exif.get_ifd(0x8769).update({0x9003: "2019:12:31 23:59:58", 0x9011: "+09:00"})
    photo().save(tmp_path / "taken.jpg", exif=exif)
    assert only(tmp_path / "taken.jpg").meta["taken_at"] == "2019-12-31T23:59:58+09:00"
    for name, nonsense in (("zero", "0000:00:00 00:00:00"), ("words", "yesterday")):
        exif = Image.Exif()
        exif[0x0132] = nonsense
        photo().save(tmp_path / f"{name}.jpg", exif=exif)
        assert "taken_at" not in only(tmp_path / f"{name}.jpg").meta
    assert "taken_at" not in only_plain(tmp_path).meta


def only_plain(tmp_path):
    photo().save(tmp_path / "plain.jpg")
    return only(tmp_path / "plain.jpg")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_picture(tmp_path):
    photo().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    assert only(tmp_path / "a.jpg").content.size == (64, 48)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "moving", kind, save_all=True, append_images=frames[1:], duration=100)
    item = only(tmp_path / "moving")
    assert item.meta["frames"] == 3
    assert item.content.getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=6)


def test_pages_of_a_tiff(tmp_path, monkeypatch):
    pages = [photo(20, 30, seed) for seed in range(5)]
    pages[0].save(tmp_path / "fax.tif", save_all=True, append_images=pages[1:])
    items = read(tmp_path / "fax.tif")
    assert [item.part for item in items] == [f"page={n}" for n in range(1, 6)]
    assert all(distance(item.content, page) == 0 for item, page in zip(items, pages))
    assert items[2].meta["page"] == 3
    assert items[2].meta["pages"] == 5
    assert len({item.id for item in items}) == 5
    monkeypatch.setattr(images, "MAX_PAGES", 2)
    items = read(tmp_path / "fax.tif")
    assert len(items) == 2
    assert "first 2 of 5 pages" in items[0].meta["truncated"]


def test_large_photographs_are_read_small_and_look_the_same(tmp_path):
    big = photo(3000, 2000)
    for name in ("big.jpg", "big.png"):
        big.save(tmp_path / name)
        item = only(tmp_path / name, min_side=224)
        assert 224 <= min(item.content.size) < 448
        assert (item.meta["width"], item.meta["height"]) == (3000, 2000)
        assert distance(item.content.resize((150, 100)), big.resize((150, 100))) < 2
        assert only(tmp_path / name, min_side=None).content.size == (3000, 2000)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(16, 300))
def test_reduction_keeps_shape_and_least_side(width, height, min_side):
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "JPEG")
    image = images.open_image(buffer, "jpeg", "x")
    picture = images.decode(image, "x", min_side=min_side)
    assert min(picture.size) >= min(min_side, width, height)
    assert min(picture.size) < max(2 * min_side, 2) or min(width, height) < 2 * min_side
    assert picture.width / picture.height == pytest.approx(width / height, rel=2 / min(picture.size) + 1e-9)


def test_30000_pixel_jpeg(tmp_path):
    """900 million pixels, far beyond the limit, but a baseline JPEG is decoded at an eighth of that."""
    header_only = tmp_path / "progressive.jpg"
    Image.new("L", (30_000, 30_000), 90).save(tmp_path / "wide.jpg", quality=30)
    item = only(tmp_path / "wide.jpg")
    assert item.meta["width"] == item.meta["height"] == 30_000
    assert 512 <= min(item.content.size) < 1024
    assert item.content.getpixel((100, 100)) == pytest.approx((90, 90, 90), abs=3)
    with pytest.raises(BadItem, match="limit"):
        read(tmp_path / "wide.jpg", min_side=None)
    # A progressive one must be held whole, so that it is refused by its header alone.
    raw = bytearray((tmp_path / "wide.jpg").read_bytes())
    raw[raw.index(b"\xff\xc0") + 1] = 0xC2
    header_only.write_bytes(raw)
    with pytest.raises(BadItem, match="30000 x 30000"):
        read(header_only)


def png_bomb(width, height):
    """A PNG that claims a size and holds a few bytes."""

    def block(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = block(b"IHDR", head) + block(b"IDAT", zlib.compress(bytes(10_000))) + block(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 2**30), (15_000, 12_000)])
def test_decompression_bombs_are_not_decoded(tmp_path, monkeypatch, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_bomb(*size))

    def decoded(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(BadItem, match=r"decompression bomb|not a readable picture"):
        read(path)


def test_bomb_in_another_format(tmp_path):
    gif = (
        b"GIF89a"
        + struct.pack("<HH", 65535, 65535)
        + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;"
    )
    (tmp_path / "a.gif").write_bytes(gif)
    with pytest.raises(BadItem, match="decompression bomb"):
        read(tmp_path / "a.gif")


def test_no_warning_for_large_but_genuine_pictures(tmp_path, recwarn):
    Image.new("1", (12_000, 8_000)).save(tmp_path / "a.png")  # 96 million: Pillow's own opener would warn
    assert only(tmp_path / "a.png").meta["width"] == 12_000
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9'/>", "SVG"),
    ],
)
def test_unsupported_pictures_say_so(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(BadItem, match=message):
        read(tmp_path / "a")


BASES = {}
for _kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO"):
    _buffer = io.BytesIO()
    photo(24, 16).save(_buffer, _kind)
    BASES[_kind] = _buffer.getvalue()


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(BASES)), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8))
def test_flipped_bytes_give_a_picture_or_a_bad_item(tmp_path_factory, kind, flips):
    raw = bytearray(BASES[kind])
    for at, value in flips:
        raw[at % len(raw)] = value
    path = tmp_path_factory.mktemp("flip") / "x"
    path.write_bytes(raw)
    try:
        items = read(path)
    except BadItem:
        return
    assert items

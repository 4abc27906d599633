"""Clips: which frames, upright, their sound, and damage."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.encode import video
from chiasm.encode.read import read
from chiasm.errors import BadItem, MissingExtra

av = pytest.importorskip("av")


def write_clip(
    path, seconds=10.0, fps=10, width=160, height=120, codec="mpeg4", gop=12, rotation=0, sound=False, **open_as
):
    """A clip whose red says how far it is (0 at the start, 255 at the end) and whose upper left quarter is green."""
    count = int(seconds * fps)
    with av.open(str(path), "w", **open_as) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        track = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for i in range(count):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[..., 0] = round(255 * i / count)
            pixels[: height // 2, : width // 2, 1] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                container.mux(packet)
            if track:
                at = np.arange(i * 16_000 // fps, (i + 1) * 16_000 // fps)
                samples = (0.5 * np.sin(2 * np.pi * 440 * at / 16_000)).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
                frame.sample_rate, frame.pts = 16_000, int(at[0])
                for packet in track.encode(frame):
                    container.mux(packet)
        for each in filter(None, (stream, track)):
            for packet in each.encode():
                container.mux(packet)
    return path


def frames(items):
    return [item for item in items if item.modality == "video"]


def progress(item):
    """How far the clip is, by its red (in the lower right, which is never green)."""
    pixels = np.asarray(item.content)
    return float(pixels[-5, -5, 0]) / 255


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mkv", "mpeg4"), ("a.avi", "mpeg4"), ("a.webm", "libvpx"), ("a.ts", "mpeg2video")],
)
def test_frames_are_spread_evenly(tmp_path, name, codec):
    try:
        write_clip(tmp_path / name, codec=codec, fps=25 if codec == "mpeg2video" else 10)
    except av.FFmpegError as error:
        pytest.skip(f"cannot write {name}: {error}")
    items = read(tmp_path / name)
    assert all(item.modality == "video" for item in items)
    assert 9 <= len(items) <= 10
    assert items[0].part == f"t={items[0].meta['time']:g}"
    times = [item.meta["time"] for item in items]
    assert np.diff(times) == pytest.approx(1.0, abs=0.35)
    for item in items:
        assert progress(item) == pytest.approx(item.meta["time"] / 10, abs=0.06)
        assert item.meta["seconds"] == pytest.approx(10, abs=0.3)
        assert (item.meta["width"], item.meta["height"]) == (160, 120)
    assert len({item.id for item in items}) == len(items)


@pytest.mark.parametrize("gop", [10, 1000])
def test_long_clips_are_sampled_by_seeking_or_in_one_pass_alike(tmp_path, gop):
    write_clip(tmp_path / "a.mp4", seconds=100, fps=5, gop=gop)
    items = read(tmp_path / "a.mp4")
    assert len(items) == 16
    assert [item.meta["time"] for item in items] == pytest.approx([(i + 0.5) * 6.25 for i in range(16)], abs=0.25)
    for item in items:
        assert progress(item) == pytest.approx(item.meta["time"] / 100, abs=0.05)


def test_seeking_decodes_less(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", seconds=100, fps=5, gop=5)
    decoded = []
    make = video._Clip._decode

    def counted(self):
        for each in make(self):
            decoded.append(1)
            yield each

    monkeypatch.setattr(video._Clip, "_decode", counted)
    read(tmp_path / "a.mp4")
    assert len(decoded) < 150  # of 500


def test_short_clip_gives_one_frame(tmp_path):
    write_clip(tmp_path / "a.mp4", seconds=0.3)
    (item,) = read(tmp_path / "a.mp4")
    assert item.meta["time"] == pytest.approx(0.2)


def test_a_clip_of_unknown_length(tmp_path):
    """A stream that was cut off while it was recorded has no length in its header."""
    write_clip(tmp_path / "a.mkv", seconds=40, fps=5, container_options={"live": "1"}, format="matroska")
    items = read(tmp_path / "a.mkv")
    times = [item.meta["time"] for item in items]
    assert 8 <= len(items) <= 16
    assert max(times) > 30
    assert min(np.diff(times)) >= 0.99
    for item in items:
        assert progress(item) == pytest.approx(item.meta["time"] / 40, abs=0.06)


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, "left top"), (90, "left bottom"), (180, "right bottom"), (270, "right top")]
)
def test_rotation_is_honored(tmp_path, rotation, corner):
    write_clip(tmp_path / "a.mp4", seconds=1, rotation=rotation)
    (item,) = read(tmp_path / "a.mp4")
    picture = item.content
    assert (
        picture.size == ((160, 120) if rotation % 180 == 0 else (120, 160)) == (item.meta["width"], item.meta["height"])
    )
    x, y = corner.split()
    green = picture.getpixel((10 if x == "left" else picture.width - 10, 10 if y == "top" else picture.height - 10))
    assert green[1] > 150
    opposite = picture.getpixel((picture.width - 10 if x == "left" else 10, picture.height - 10 if y == "top" else 10))
    assert opposite[1] < 100


def test_large_frames_are_reduced(tmp_path):
    write_clip(tmp_path / "a.mp4", seconds=1, width=1280, height=960)
    assert read(tmp_path / "a.mp4", min_side=240)[0].content.size == (320, 240)
    assert read(tmp_path / "a.mp4", min_side=None)[0].content.size == (1280, 960)


def test_sound_track(tmp_path):
    write_clip(tmp_path / "a.mp4", seconds=35, fps=5, sound=True)
    items = read(tmp_path / "a.mp4")
    first, second = [item for item in items if item.modality == "audio"]
    assert (first.part, second.part) == ("audio,t=0", "audio,t=30")
    assert first.content.seconds == 30
    assert second.content.seconds == pytest.approx(5, abs=0.2)
    spectrum = np.abs(np.fft.rfft(first.content.samples))
    assert spectrum.argmax() / 30 == pytest.approx(440, abs=1)
    assert len(frames(items)) == 16
    assert {item.sha256 for item in items} == {items[0].sha256}


def test_a_container_with_sound_only_is_a_recording(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        track = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        for packet in [*track.encode(frame), *track.encode()]:
            container.mux(packet)
    (item,) = read(tmp_path / "a.mkv")
    assert item.modality == "audio"


def test_truncated_gives_the_frames_that_could_be_read(tmp_path):
    write_clip(tmp_path / "a.mkv", seconds=20)
    raw = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(raw[: len(raw) // 2])
    items = read(tmp_path / "cut.mkv")
    assert 4 <= len(items) < 16
    assert all(progress(item) < 0.65 for item in items)
    assert items[0].meta["truncated"]
    # An MP4 has its index at the end; without it nothing can be read.
    write_clip(tmp_path / "a.mp4")
    raw = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(BadItem, match="not a readable recording or clip"):
        read(tmp_path / "cut.mp4")


@pytest.mark.parametrize(
    "head", [b"\x1aE\xdf\xa3", b"\0\0\0\x20ftypisom\0\0\0\0", b"RIFF\xff\xff\0\0AVI LIST", b"FLV\x01", b"\0\0\x01\xba"]
)
def test_corrupt(tmp_path, head):
    (tmp_path / "a").write_bytes(head + np.random.default_rng(0).bytes(5000))
    with pytest.raises(BadItem):
        read(tmp_path / "a")


def test_frames_that_are_too_large_are_not_decoded(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", seconds=1)
    monkeypatch.setattr(video, "MAX_PIXELS", 100)
    with pytest.raises(BadItem, match="160 x 120"):
        read(tmp_path / "a.mp4")


def test_decoding_is_bounded_and_it_says_so(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", seconds=10, gop=1000)
    monkeypatch.setattr(video, "MAX_DECODED", 40)
    items = read(tmp_path / "a.mp4")
    assert 3 <= len(items) <= 5
    assert "first 40" in items[0].meta["truncated"]


def test_missing_package_is_named(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", seconds=1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"chiasm\[media\]"):
        read(tmp_path / "a.mp4")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_clip(
        tmp_path_factory.mktemp("clip") / "a.mkv", seconds=2, width=48, height=32, sound=True
    ).read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), max_size=12), st.integers(100, 100_000))
def test_damaged_bytes_are_frames_or_a_bad_item(tmp_path_factory, small, flips, keep):
    raw = bytearray(small)
    for at, value in flips:
        raw[at % len(raw)] = value
    path = tmp_path_factory.mktemp("damage") / "a.mkv"
    path.write_bytes(raw[:keep])
    try:
        items = read(path)
    except BadItem:
        return
    assert items
    assert len({item.id for item in items}) == len(items)

"""Recordings: formats, resampling, segments, damage, and speech."""

import io
import shutil
import subprocess
import sys
import threading
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.encode import audio
from chiasm.encode.read import read
from chiasm.errors import BadItem, MissingExtra

soundfile = pytest.importorskip("soundfile")
av = pytest.importorskip("av")


def tone(seconds=1.0, rate=16_000, hertz=440.0, channels=1):
    wave_ = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave_[:, None], channels, axis=1).astype(np.float32)


def loudest_hertz(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.fft.rfftfreq(len(samples), 1 / audio.RATE)[spectrum.argmax()]


def write_m4a(path, samples, rate):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[:, 0])[None], "fltp", "mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "M4A", "CAF"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_formats(tmp_path, kind, rate, channels):
    path = tmp_path / "sound"  # no extension: the content decides
    samples = tone(2.0, rate, channels=channels)
    if kind == "M4A":
        write_m4a(path, samples, rate)
    else:
        soundfile.write(path, samples, rate, format=kind)
    (item,) = read(path)
    assert item.modality == "audio"
    assert item.part == ""
    assert item.content.rate == 16_000
    assert item.content.samples.dtype == np.float32
    assert item.content.samples.ndim == 1
    # Lossy codecs pad to whole frames of 1024 samples, some at both ends.
    assert item.content.seconds == pytest.approx(2.0, abs=0.02 if kind in ("WAV", "FLAC", "AIFF") else 0.3)
    assert item.meta["seconds"] == pytest.approx(item.content.seconds, abs=1e-3)
    assert loudest_hertz(item.content.samples) == pytest.approx(440, abs=2)
    middle = item.content.samples[8000:24_000]
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_sample_widths(tmp_path, width):
    half = int(0.5 * (2 ** (8 * width - 1) - 1))
    value = (half + 128 if width == 1 else half).to_bytes(width, "little")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, width, 16_000, 0, "NONE", ""))
        file.writeframes(value * 16_000)
    (item,) = read(tmp_path / "a.wav")
    assert item.content.samples.mean() == pytest.approx(0.5, abs=0.01)


def test_stereo_becomes_the_mean(tmp_path):
    left = tone()
    soundfile.write(tmp_path / "a.wav", np.concatenate([left, -left], axis=1), 16_000, subtype="FLOAT")
    (item,) = read(tmp_path / "a.wav")
    assert np.abs(item.content.samples).max() < 1e-6


def test_long_recordings_are_segments_that_join_without_a_seam(tmp_path):
    samples = tone(70.0, 22_050)
    soundfile.write(tmp_path / "a.wav", samples, 22_050, subtype="FLOAT")
    items = read(tmp_path / "a.wav")
    assert [item.part for item in items] == ["t=0", "t=30", "t=60"]
    assert [item.meta["start"] for item in items] == [0, 30, 60]
    assert [item.meta["duration"] for item in items] == [30, 30, 10]
    assert all(item.meta["seconds"] == pytest.approx(70) for item in items)
    joined = np.concatenate([item.content.samples for item in items])
    expected = tone(70.0, 16_000)[:, 0]
    assert np.abs(joined - expected)[100:-100].max() < 0.05
    assert np.abs(joined - expected).mean() < 1e-3


def test_odd_rates(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(2.0, 44_099), 44_099)
    (item,) = read(tmp_path / "a.wav")
    assert loudest_hertz(item.content.samples) == pytest.approx(440, abs=2)


def test_hours_are_bounded_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MAX_SECONDS", 60.0)
    soundfile.write(tmp_path / "a.wav", tone(95.0), 16_000)
    write_m4a(tmp_path / "b.m4a", tone(95.0), 16_000)
    for name in ("a.wav", "b.m4a"):
        items = read(tmp_path / name)
        assert len(items) == 2
        assert "first 60" in items[0].meta["truncated"]


def test_values_beyond_one_and_nan(tmp_path):
    samples = np.array([0.0, np.nan, 5.0, -5.0, np.inf] * 2000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    (item,) = read(tmp_path / "a.wav")
    assert np.isfinite(item.content.samples).all()
    assert np.abs(item.content.samples).max() <= 1


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "WAV"])
def test_truncated_gives_what_could_be_read(tmp_path, kind):
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    soundfile.write(buffer, rng.uniform(-0.5, 0.5, 10 * 16_000), 16_000, format=kind)
    (tmp_path / "cut").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (item,) = read(tmp_path / "cut")
    assert 3 < item.content.seconds < 7


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"fLaC" + bytes(100),
        b"OggS" + bytes(200),
        b"ID3\x03" + bytes(200),
        b"\xff\xfb\x90\x44" + bytes(50),
    ],
)
def test_corrupt(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(BadItem):
        read(tmp_path / "a")


def test_a_recording_without_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((0, 1)), 16_000)
    with pytest.raises(BadItem):
        read(tmp_path / "a.wav")


def test_playlists_open_nothing(tmp_path):
    """A playlist that names another file is text to us; FFmpeg would open what it names."""
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, tone(), 16_000)
    for name, text in (
        ("a.mp3", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"),
        ("b.mp4", f"ffconcat version 1.0\nfile '{secret}'\n"),
    ):
        (tmp_path / name).write_text(text)
        assert {item.modality for item in read(tmp_path / name)} == {"text"}
        from chiasm.encode.files import open_source

        with open_source(tmp_path / name) as source, pytest.raises(BadItem), audio.open_container(source, "x"):
            pass


BASE = io.BytesIO()
soundfile.write(BASE, tone(0.2), 16_000, format="FLAC")


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8), st.integers(10, 3000))
def test_damaged_bytes_are_a_recording_or_a_bad_item(tmp_path_factory, flips, keep):
    raw = bytearray(BASE.getvalue())
    for at, value in flips:
        raw[at % len(raw)] = value
    path = tmp_path_factory.mktemp("damage") / "a.flac"
    path.write_bytes(raw[:keep])
    try:
        items = read(path)
    except BadItem:
        return
    for item in items:
        assert item.modality != "audio" or np.isfinite(item.content.samples).all()


def test_missing_packages_are_named(tmp_path, monkeypatch):
    write_m4a(tmp_path / "a.m4a", tone(), 16_000)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"chiasm\[media\]"):
        read(tmp_path / "a.m4a")
    soundfile.write(tmp_path / "a.wav", tone(), 16_000)
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(MissingExtra, match="pocketsphinx"):
        read(tmp_path / "a.wav", transcribe=True)


# Speech


def spoken(path, sentence, voice="en-us"):
    if not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng is not installed")
    subprocess.run(["espeak-ng", "-v", voice, "-s", "150", "-w", str(path), sentence], check=True, timeout=60)


SENTENCE = "yesterday we saw a large ship near the old bridge"


@pytest.mark.speech
def test_a_spoken_sentence_becomes_searchable_words(tmp_path):
    pytest.importorskip("pocketsphinx")
    spoken(tmp_path / "a.wav", SENTENCE)
    (item,) = read(tmp_path / "a.wav", transcribe=True)
    heard = item.text.split()
    assert len(set(heard) & set(SENTENCE.split())) >= 5
    assert {"yesterday", "bridge"} <= set(heard)
    assert read(tmp_path / "a.wav")[0].text == ""  # only on request


@pytest.mark.slow
@pytest.mark.speech
def test_transcripts_do_not_depend_on_the_thread_or_on_what_came_before(tmp_path):
    pytest.importorskip("pocketsphinx")
    spoken(tmp_path / "a.wav", SENTENCE)
    spoken(tmp_path / "b.wav", "open the door")
    found: dict[int, str] = {}

    def work(i):
        if i % 2:
            read(tmp_path / "b.wav", transcribe=True)
        found[i] = read(tmp_path / "a.wav", transcribe=True)[0].text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found.values()) == {found[0]}


@pytest.mark.parametrize("kind", ["silence", "hiss", "tone"])
def test_no_words_where_nobody_speaks(tmp_path, kind):
    pytest.importorskip("pocketsphinx")
    rng = np.random.default_rng(0)
    samples = {"silence": np.zeros(48_000), "hiss": rng.normal(0, 0.1, 48_000), "tone": tone(3.0)[:, 0]}[kind]
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    (item,) = read(tmp_path / "a.wav", transcribe=True)
    assert item.text == ""

"""Sound: recordings as mono 16 kHz segments of at most 30 seconds, with a transcript on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from chiasm.encode.files import Source
from chiasm.errors import BadItem, missing_extra
from chiasm.items import Item, Sound

RATE = 16_000  # what speech recognizers take
SEGMENT_SECONDS = 30.0  # what Whisper and CLAP-like encoders see at once
MAX_SECONDS = 3600.0  # 230 MB of samples
# A rest shorter than this is not a segment of its own.
_LEAST_SECONDS = 0.05

# Demuxers that read exactly one file. Playlists (HLS, DASH, concat) could name other files or addresses.
DEMUXERS = (
    "mov,matroska,webm,ogg,avi,flv,asf,mpegts,mpeg,mpegvideo,wav,w64,aiff,caf,au,mp3,aac,ac3,flac,amr,h264,hevc,m4v,ivf"
)


def read_audio(source: Source, *, transcribe: bool = False) -> list[Item]:
    """The segments of a recording.

    Content is `Sound`: mono float32 at 16 kHz. ``meta`` has ``seconds`` (of the whole recording), ``start`` and
    ``duration`` (of the segment). The part is ``""`` for a recording of one segment, else ``"t=SECONDS"``.

    Args:
        source: the open file.
        transcribe: recognize speech (English) into ``text``; ``""`` where there is none.

    Raises:
        BadItem: corrupt, or no sound in it. A truncated recording gives what could be read and says so in ``meta``.
        MissingExtra: soundfile and av, or pocketsphinx for ``transcribe``, are not installed.
    """
    parts, note = _decode(source)
    return sound_items(source, parts, note, transcribe=transcribe)


def sound_items(
    source: Source, segments: list[np.ndarray], note: str, *, transcribe: bool, track: str = "", start: float = 0.0
) -> list[Item]:
    """Items of consecutive segments (float32 at `RATE`).

    Args:
        source: the file.
        segments: the samples, each `SEGMENT_SECONDS` long but the last.
        note: what could not be read, for ``meta["truncated"]``.
        transcribe: recognize speech into ``text``.
        track: ``"audio"`` for the sound track of a clip; then every part has its time: ``"audio,t=0"``.
        start: when the first segment starts, in seconds.
    """
    if transcribe:
        from chiasm.encode.speech import recognize
    total = sum(len(segment) for segment in segments) / RATE
    items = []
    for index, samples in enumerate(segments):
        at = start + index * SEGMENT_SECONDS
        time = f"t={at:g}"
        part = f"{track},{time}" if track else time if len(segments) > 1 else ""
        meta: dict[str, Any] = {"seconds": round(total, 3), "start": at, "duration": round(len(samples) / RATE, 3)}
        if note:
            meta["truncated"] = note
        text = recognize(samples) if transcribe else ""  # pyright: ignore[reportPossiblyUnboundVariable]
        items.append(Item("audio", Sound(samples, RATE), source.uri, part, text, source.sha256, meta))
    return items


def _decode(source: Source) -> tuple[list[np.ndarray], str]:
    """Segments and a note on what is missing: by soundfile if it knows the format, else by PyAV."""
    try:
        import soundfile
    except ImportError:
        soundfile = None
    if soundfile is not None:
        try:
            source.file.seek(0)
            with soundfile.SoundFile(source.file) as sound:
                return _with_soundfile(sound, soundfile.SoundFileError)
        except (soundfile.SoundFileError, TypeError, ValueError):
            pass  # not a format of libsndfile, or a corrupt file that PyAV may still read
    with open_container(source, "reading sound files") as container:
        if not container.streams.audio:
            raise source.bad("holds no sound")
        segments, note = decode_track(container)
    if not segments:
        raise source.bad(f"holds no readable sound{note and f' ({note})'}")
    return segments, note


def _with_soundfile(sound: Any, failure: type[Exception]) -> tuple[list[np.ndarray], str]:
    rate, channels = sound.samplerate, sound.channels
    if not (100 <= rate <= 1_000_000 and 1 <= channels <= 64):
        raise ValueError("an absurd header")
    note, segments = "", []
    frames = round(SEGMENT_SECONDS * rate)
    wanted = sound.frames if 0 < sound.frames < 1 << 62 else None
    got = 0
    while True:
        if len(segments) * SEGMENT_SECONDS >= MAX_SECONDS:
            if wanted is None or got < wanted:
                of = f" of {wanted / rate:.0f}" if wanted else ""
                note = f"the first {MAX_SECONDS:g}{of} seconds were read"
            break
        try:
            block = sound.read(frames, dtype="float32", always_2d=True)
        except failure as error:
            note = f"unreadable after {got / rate:.1f} seconds ({error})"
            break
        got += len(block)
        if len(block) >= _LEAST_SECONDS * rate or (len(block) and not segments):
            segments.append(_resample(_mono(block), rate))
        if len(block) < frames:
            # MP3 headers may promise a few frames more than there are.
            if wanted and got < wanted - rate:
                note = f"ends after {got / rate:.1f} of {wanted / rate:.1f} seconds"
            break
    if not segments:
        raise ValueError("no samples")
    return segments, note


def _mono(block: np.ndarray) -> np.ndarray:
    samples = block.mean(axis=1, dtype=np.float32)
    return np.clip(np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0), -1.0, 1.0)


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == RATE:
        return samples
    from math import gcd

    from scipy.signal import resample_poly

    common = gcd(rate, RATE)
    up, down = RATE // common, rate // common
    if max(up, down) > 2000:  # a rate such as 44099 Hz would need a filter of 20 x 44099 taps
        at = np.arange(round(len(samples) * RATE / rate)) * (rate / RATE)
        return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)
    # "line" continues the edges, so that a cut within a tone makes no click.
    return np.clip(resample_poly(samples, up, down, padtype="line"), -1.0, 1.0).astype(np.float32)


@contextmanager
def open_container(source: Source, feature: str) -> Iterator[Any]:
    """A media file opened by PyAV, which can open nothing else from within it.

    Raises:
        BadItem: not a readable container.
        MissingExtra: av is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise missing_extra(feature, "media", "av") from error
    try:
        file: IO[bytes] = source.file
        file.seek(0)
        container = av.open(
            file,
            container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "none"},
            metadata_errors="replace",
        )
    except Exception as error:  # FFmpeg's errors, and what PyAV makes of absurd headers
        raise source.bad(f"is not a readable recording or clip ({say(error)})") from error
    try:
        yield container
    except BadItem:
        raise
    except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise source.bad(f"is corrupt ({say(error)})") from error
    finally:
        container.close()


def decode_track(container: Any) -> tuple[list[np.ndarray], str]:
    """The first sound track as segments at `RATE`, with a note on what could not be read."""
    import av

    stream = container.streams.audio[0]
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    size = round(SEGMENT_SECONDS * RATE)
    segments: list[np.ndarray] = []
    held: list[np.ndarray] = []
    count = 0
    note = ""

    def take(frames: list[Any]) -> None:
        nonlocal count
        for frame in frames:
            samples = frame.to_ndarray().reshape(-1)
            held.append(samples)
            count += len(samples)
            while count >= size:
                joined = np.concatenate(held)
                segments.append(_mono(joined[:size, None]))
                held[:] = [joined[size:]]
                count = len(joined) - size

    try:
        for frame in container.decode(stream):
            take(resampler.resample(frame))
            if len(segments) * SEGMENT_SECONDS >= MAX_SECONDS:
                note = f"the first {MAX_SECONDS:g} seconds were read"
                held, count = [], 0
                break
        else:
            take(resampler.resample(None))
    except (av.FFmpegError, ValueError, OverflowError) as error:
        note = f"unreadable after {len(segments) * SEGMENT_SECONDS + count / RATE:.1f} seconds ({say(error)})"
    if count >= _LEAST_SECONDS * RATE or (count and not segments):
        segments.append(_mono(np.concatenate(held)[:, None]))
    return segments, note


def say(error: Exception) -> str:
    """What went wrong, on one short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__  # strerror: without FFmpeg's number
    return text.strip().splitlines()[0][:200]


def read_track(source: Source, start: float) -> np.ndarray | None:
    """The samples (float32 at `RATE`) of the segment that starts at ``start`` seconds; None if there is none.

    Raises:
        BadItem: the file cannot be read.
    """
    if source.format is not None and source.format.kind == "video":
        with open_container(source, "reading video files") as container:
            segments = decode_track(container)[0] if container.streams.audio else []
    else:
        segments = _decode(source)[0]
    index = int(start // SEGMENT_SECONDS)
    return segments[index] if index < len(segments) else None

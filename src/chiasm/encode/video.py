"""Video: a few frames, spread evenly over a clip, and its sound track."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from chiasm.encode.audio import decode_track, open_container, read_audio, say, sound_items
from chiasm.encode.files import Source
from chiasm.encode.images import MIN_SIDE
from chiasm.errors import BadItem
from chiasm.items import Item

MAX_FRAMES = 16  # per clip
LEAST_GAP = 1.0  # seconds between two frames
MAX_PIXELS = 64_000_000  # of one frame; 8K has 33 million
# A clip whose index cannot be used is decoded from its start; this is ten minutes at 30 frames per second.
MAX_DECODED = 18_000
# Decoding this many seconds of video costs about as much as a seek and the decoding of half a group of pictures.
_WORTH_SEEKING = 2.0


def read_video(source: Source, *, transcribe: bool = False, min_side: int | None = MIN_SIDE) -> list[Item]:
    """Sampled frames of a clip (modality ``video``), then the segments of its sound track (``audio``).

    A frame's part is ``"t=SECONDS"``; its ``meta`` has ``time``, ``seconds`` (of the clip), ``width`` and ``height``
    (of the upright original). At most 16 frames, at least one second apart, each in the middle of its share of the
    clip. The sound track's parts are ``"audio,t=SECONDS"``. A file without pictures is read as a recording.

    Args:
        source: the open file.
        transcribe: recognize speech in the sound track into ``text``.
        min_side: frames are reduced so that their shorter side is at least this many pixels; None for full size.

    Raises:
        BadItem: corrupt. A truncated clip gives the frames that could be read and says so in ``meta``.
        MissingExtra: av is not installed.
    """
    with open_container(source, "reading video files") as container:
        stream = _pictures(container)
        if stream is None:
            has_sound = bool(container.streams.audio)
            if not has_sound:
                raise source.bad("holds neither pictures nor sound")
            return read_audio(source, transcribe=transcribe)
        clip = _Clip(container, stream, source, min_side)
        frames = list(clip.sample())
        note = clip.note
        if not frames:
            raise source.bad(f"holds no readable frame{note and f' ({note})'}")
        has_sound = bool(container.streams.audio)
    items = [_item(source, clip, time, picture, note) for time, picture in frames]
    if has_sound:
        items += _sound_track(source, transcribe)
    return items


def _item(source: Source, clip: _Clip, time: float, picture: Image.Image, note: str) -> Item:
    meta: dict[str, Any] = {"time": round(time, 3), "width": clip.size[0], "height": clip.size[1]}
    if clip.seconds:
        meta["seconds"] = round(clip.seconds, 3)
    if note:
        meta["truncated"] = note
    return Item("video", picture, source.uri, f"t={round(time, 3):g}", sha256=source.sha256, meta=meta)


def _sound_track(source: Source, transcribe: bool) -> list[Item]:
    try:
        # A second pass: sound and pictures are interleaved, and the first pass jumps.
        with open_container(source, "reading video files") as container:
            segments, note = decode_track(container)
    except BadItem:
        return []  # the frames are there; a sound track that cannot even be opened has nothing to offer
    return sound_items(source, segments, note, transcribe=transcribe, track="audio")


def _pictures(container: Any) -> Any | None:
    """The first stream of moving pictures; the cover of a song is not one."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


class _Clip:
    """One pass over a clip's pictures."""

    def __init__(self, container: Any, stream: Any, source: Source, min_side: int | None) -> None:
        self.container = container
        self.stream = stream
        self.source = source
        self.min_side = min_side
        self.size = (0, 0)
        self.note = ""
        self.decoded = 0
        context = self.stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            raise source.bad(f"has frames of {context.width} x {context.height} pixels (limit {MAX_PIXELS:,})")
        context.options = {"max_pixels": str(MAX_PIXELS)}  # also when the size changes midway
        self.start = float((self.stream.start_time or 0) * self.stream.time_base)
        self.seconds = self._duration()

    def _duration(self) -> float | None:
        if self.stream.duration:
            seconds = float(self.stream.duration * self.stream.time_base)
        elif self.container.duration:
            seconds = self.container.duration / 1_000_000
        else:
            return None
        return seconds if 0 < seconds < 1e7 else None

    def sample(self) -> Iterator[tuple[float, Image.Image]]:
        """Times (seconds from the start) and pictures, in order."""
        return self._spread() if self.seconds else self._thin()

    def frame_at(self, time: float) -> Image.Image:
        """The frame shown at a time, or the last one before it."""
        found = None
        self._seek(time)
        for at, frame in self._decode():
            found = frame
            if at >= time - 1e-3:
                break
        if found is None:
            raise self.source.bad(f"has no readable frame at {time:g} s{self.note and f' ({self.note})'}")
        return self._picture(found)

    def _spread(self) -> Iterator[tuple[float, Image.Image]]:
        """The clip's length is known: one frame from the middle of each equal share, reached by seeking if it pays."""
        assert self.seconds
        count = max(1, min(MAX_FRAMES, int(self.seconds / LEAST_GAP)))
        targets = [(i + 0.5) * self.seconds / count for i in range(count)]
        frames, position, seekable, last = self._decode(), 0.0, True, None
        for target in targets:
            if seekable and target - position > _WORTH_SEEKING and self._seek(target):
                frames = self._decode()
                first = next(frames, None)
                # Landing behind the place where we were means that key frames are far apart: decode straight on.
                seekable = first is not None and first[0] > position
                if first is not None and first[0] >= target:
                    position = first[0]
                    yield first[0], self._picture(first[1])
                    continue
            found = None
            for at, frame in frames:
                last = position = at
                found = (at, frame)
                if at >= target - 1e-3:
                    break
            if found is None or found[0] < target - max(LEAST_GAP, self.seconds / count):
                if not self.note:
                    self.note = f"no frame after {last or 0:.1f} of {self.seconds:.1f} seconds could be read"
                if found is not None:
                    yield found[0], self._picture(found[1])
                return
            yield found[0], self._picture(found[1])

    def _thin(self) -> Iterator[tuple[float, Image.Image]]:
        """The clip's length is unknown: keeps frames a second apart, and every other one whenever there are too many."""
        gap, kept = LEAST_GAP, []
        for at, frame in self._decode():
            if not kept or at >= kept[-1][0] + gap - 1e-3:
                kept.append((at, self._picture(frame)))
                if len(kept) > MAX_FRAMES:
                    kept, gap = kept[::2], gap * 2
        return iter(kept)

    def _seek(self, time: float) -> bool:
        import av

        try:
            offset = int((time + self.start) / self.stream.time_base)
            self.container.seek(offset, stream=self.stream)  # to the last key frame before it
        except (av.FFmpegError, ValueError, OverflowError):
            return False
        return True

    def _decode(self) -> Iterator[tuple[float, Any]]:
        import av

        try:
            for frame in self.container.decode(self.stream):
                self.decoded += 1
                if self.decoded > MAX_DECODED:
                    self.note = f"frames after the first {MAX_DECODED} were not decoded"
                    return
                if frame.time is None or frame.is_corrupt:
                    continue
                yield max(frame.time - self.start, 0.0), frame
        except (av.FFmpegError, ValueError, OverflowError) as error:
            # The frames before the damage are good.
            self.note = f"unreadable beyond a damage ({say(error)})"

    def _picture(self, frame: Any) -> Image.Image:
        """The frame upright, with square pixels, reduced; RGB."""
        aspect = self.stream.sample_aspect_ratio
        stretch = float(aspect) if aspect and 0.1 < aspect < 10 else 1.0
        width, height = max(round(frame.width * stretch), 1), frame.height
        scale = min(1.0, self.min_side / min(width, height)) if self.min_side else 1.0
        small = (max(round(width * scale), 1), max(round(height * scale), 1))
        picture = frame.to_image(width=small[0], height=small[1], interpolation="AREA")
        turn = round(frame.rotation / 90) % 4  # counterclockwise, from the container's display matrix
        self.size = (height, width) if turn % 2 else (width, height)
        steps = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
        step = steps[turn]
        return picture if step is None else picture.transpose(step)


def draw_frame(source: Source, time: float, min_side: int) -> Image.Image:
    """The frame at ``time`` seconds, for thumbnails.

    Raises:
        BadItem: it cannot be read.
    """
    with open_container(source, "reading video files") as container:
        stream = _pictures(container)
        if stream is None:
            raise source.bad("holds no pictures")
        return _Clip(container, stream, source, min_side).frame_at(time)

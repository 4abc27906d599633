"""Writes worlds to folders: pictures, sentences, sounds, clips and the whole ground truth, in formats that anything reads."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.errors import BadInput, missing_extra, unknown_name
from chiasm.worlds.captions import captions, negatives
from chiasm.worlds.graphs import KnowledgeGraph
from chiasm.worlds.motion import clip
from chiasm.worlds.pairs import PairWorld
from chiasm.worlds.questions import questions
from chiasm.worlds.scenes import SceneWorld
from chiasm.worlds.sound import can_speak, speak, tones, wav_bytes
from chiasm.worlds.vocabulary import LANGUAGES

Progress = Callable[[int], None]

_SCENES_README = """# A world of scenes

Made by `chiasm world scenes`, version {version}, seed {seed}, {n} scenes. The same command makes the same files again.

- `images/000000.png`: the picture of scene 0. `masks/000000.png`: gray level k + 1 where object k is seen, 0 elsewhere.
- `captions.jsonl`: one true sentence per line: image, language, style, text; five styles in four languages per scene.
- `negatives.jsonl`: sentences that are false by one change: kind, text, and the true caption they were made from.
- `questions.jsonl`: question, answer and kind.
- `scenes.jsonl`: the scene graph: objects (from back to front) with attributes, center, box and place; all relations.
- `world.json`: settings that make this world again.
- `tones/000000.wav`: the scene as a tone code. 8 kHz; an object is five tones of 60 ms, each followed by 20 ms of silence:
  shape, color, texture, size, place; the values have the frequencies of `tones.json`.
- `speech/000000.en.wav`: the second caption, spoken (if asked for).
- `clips/000000.mp4` or `.gif`, `clips.jsonl`: clips with event, actor and the frames of the highlight (if asked for).
"""

_PAIRS_README = """# A world of paired embeddings

Made by `chiasm world pairs`, kind {kind}, version {version}, seed {seed}. Planted fault: {fault}.

- `world.safetensors`: text, image [N, D]; bank_text, bank_image [B, D]; partner, noisy (and the bank's) and further truth.
- `world.json`: kind, fault and parameters, which make this world again.
- `text.npy`, `image.npy`: the test vectors once more, for tools that read npy.
"""

_GRAPH_README = """# A knowledge graph

Made by `chiasm world graph`, version {version}, seed {seed}.

- `graph.json`: nodes (name, text, type, table row), relations, rules.
- `triples.tsv`: head, relation, tail, split (train or test), by name.
- `images/NAME.png` with `scenes.jsonl`: the pictures of the nodes that have one, and their scene graphs.
"""


def write_scenes(
    world: SceneWorld,
    folder: str | Path,
    *,
    speech: tuple[str, ...] = (),
    clips: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes a world of scenes.

    Args:
        world: what to write.
        folder: is made; must be empty or not exist.
        speech: languages in which the second caption of every scene is spoken (needs espeak-ng).
        clips: number of scenes, from the first, of which a clip is written (mp4 with PyAV, else GIF).
        progress: called with the number of scenes written so far.

    Returns:
        what was written: numbers of files and lines.

    Raises:
        BadInput: the folder is not empty.
        UnknownName: a language that does not exist.
        MissingExtra: speech is wanted and espeak-ng is not installed.
    """
    from PIL import Image

    from chiasm.worlds.sound import FIELDS, frequency

    for language in speech:
        if language not in LANGUAGES:
            raise unknown_name("language", language, LANGUAGES)
    if speech and not can_speak():
        speak("", speech[0])  # raises the error that says what to install, before anything is written
    root = _fresh(folder)
    for name in ("images", "masks", "tones", *(["speech"] if speech else []), *(["clips"] if clips else [])):
        (root / name).mkdir()
    counts = {"scenes": len(world), "captions": 0, "negatives": 0, "questions": 0, "clips": min(clips, len(world))}
    with (
        open(root / "captions.jsonl", "w", encoding="utf-8") as captions_file,
        open(root / "negatives.jsonl", "w", encoding="utf-8") as negatives_file,
        open(root / "questions.jsonl", "w", encoding="utf-8") as questions_file,
        open(root / "scenes.jsonl", "w", encoding="utf-8") as scenes_file,
    ):
        for start in range(0, len(world), 256):
            rows = np.arange(start, min(start + 256, len(world)))
            drawing = world.draw(rows)
            for at, row in enumerate(rows.tolist()):
                scene, name = world[row], f"{row:06d}"
                image = f"images/{name}.png"
                Image.fromarray(drawing.pictures[at]).save(root / image)
                Image.fromarray(drawing.labels[at]).save(root / "masks" / f"{name}.png")
                (root / "tones" / f"{name}.wav").write_bytes(wav_bytes(tones(scene)))
                for language in LANGUAGES:
                    said = captions(scene, language)
                    for caption in said:
                        _line(captions_file, image=image, language=language, style=caption.style, text=caption.text)
                    false = negatives(scene, language)
                    for item in false:
                        _line(
                            negatives_file,
                            image=image,
                            language=language,
                            kind=item.kind,
                            text=item.text,
                            caption=item.caption.text,
                        )
                    counts["captions"] += len(said)
                    counts["negatives"] += len(false)
                    if language in speech:
                        (root / "speech" / f"{name}.{language}.wav").write_bytes(
                            wav_bytes(speak(said[1].text, language))
                        )
                asked = questions(scene)
                for item in asked:
                    _line(questions_file, image=image, kind=item.kind, question=item.text, answer=item.answer)
                counts["questions"] += len(asked)
                _line(scenes_file, image=image, **scene.to_json())
                if progress is not None:
                    progress(row + 1)
    if clips:
        _write_clips(world, root, min(clips, len(world)))
    table = {field: {value: round(frequency(field, value), 3) for value in values} for field, values in FIELDS.items()}
    _json(root / "tones.json", {"rate": 8000, "tone_seconds": 0.06, "pause_seconds": 0.02, "fields": table})
    _json(root / "world.json", world.to_json())
    (root / "README.md").write_text(
        _SCENES_README.format(version=world.version, seed=world.seed, n=len(world)), encoding="utf-8"
    )
    return counts


def write_pairs(world: PairWorld, folder: str | Path) -> dict[str, Any]:
    """Writes a world of paired embeddings; raises `BadInput` if the folder is not empty."""
    from safetensors.numpy import save_file

    root = _fresh(folder)
    save_file(
        {name: np.ascontiguousarray(values) for name, values in world.arrays().items()}, str(root / "world.safetensors")
    )
    np.save(root / "text.npy", world.text)
    np.save(root / "image.npy", world.image)
    _json(root / "world.json", world.to_json())
    readme = _PAIRS_README.format(kind=world.kind, version=world.version, seed=world.seed, fault=world.fault)
    (root / "README.md").write_text(readme, encoding="utf-8")
    return world.to_json()


def write_graph(graph: KnowledgeGraph, folder: str | Path) -> dict[str, Any]:
    """Writes a knowledge graph; raises `BadInput` if the folder is not empty."""
    from PIL import Image

    root = _fresh(folder)
    (root / "images").mkdir()
    pictures = graph.scenes.pictures()
    with open(root / "scenes.jsonl", "w", encoding="utf-8") as file:
        for row, node in enumerate(graph.pictured.tolist()):
            image = f"images/{graph.names[node]}.png"
            Image.fromarray(pictures[row]).save(root / image)
            _line(file, image=image, node=graph.names[node], classes=graph.objects(node), **graph.scenes[row].to_json())
    lines = [
        f"{graph.names[head]}\t{graph.relations[relation]}\t{graph.names[tail]}\t{'test' if test else 'train'}\n"
        for (head, relation, tail), test in zip(graph.triples.tolist(), graph.split.tolist())
    ]
    (root / "triples.tsv").write_text("".join(lines), encoding="utf-8")
    _json(root / "graph.json", graph.to_json())
    (root / "README.md").write_text(_GRAPH_README.format(version=graph.version, seed=graph.seed), encoding="utf-8")
    return {
        "nodes": len(graph.names),
        "relations": len(graph.relations),
        "triples": len(graph.triples),
        "hidden": int(graph.split.sum()),
        "pictures": len(graph.pictured),
    }


def gif_bytes(frames: np.ndarray, fps: int) -> bytes:
    """A looping GIF of frames uint8 ``[T, H, W, 3]``."""
    from PIL import Image

    out = io.BytesIO()
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=1000 // fps, loop=0)
    return out.getvalue()


def write_mp4(path: str | Path, frames: np.ndarray, fps: int) -> None:
    """An H.264 (or MPEG-4) clip of frames uint8 ``[T, H, W, 3]`` with even H and W.

    Raises:
        MissingExtra: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise missing_extra("writing mp4", "media", "av") from error
    with av.open(str(path), "w") as file:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = file.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())


def _write_clips(world: SceneWorld, root: Path, count: int) -> None:
    try:
        import av  # noqa: F401

        mp4 = world.settings.size % 2 == 0
    except ImportError:
        mp4 = False
    with open(root / "clips.jsonl", "w", encoding="utf-8") as file:
        for row in range(count):
            made = clip(world, row)
            name = f"clips/{row:06d}.{'mp4' if mp4 else 'gif'}"
            if mp4:
                write_mp4(root / name, made.frames, made.fps)
            else:
                (root / name).write_bytes(gif_bytes(made.frames, made.fps))
            (root / "clips" / f"{row:06d}.wav").write_bytes(wav_bytes(made.sound))
            shown = np.flatnonzero(made.highlight)
            _line(
                file,
                clip=name,
                fps=made.fps,
                frames=len(made.frames),
                highlight=[int(shown[0]), int(shown[-1]) + 1],
                event=made.event,
                actor=made.actor,
                caption=made.caption,
                scene=row,
            )


def _fresh(folder: str | Path) -> Path:
    root = Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise BadInput("the folder is not empty", where=str(root), fix="Give a new folder, or empty this one")
    root.mkdir(parents=True, exist_ok=True)
    return root


def _line(file: io.TextIOBase | Any, **fields: Any) -> None:
    file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

"""Indexing beside the bare network: pictures per second of files -> vectors, and of the network alone on ready tensors.

    python benchmarks/index_speed.py [--pictures 1000] [--rounds 3] [--space pocket] [--json]

Both sides run in turn in one process with the same network, batch size and threads. The pictures are those of
``photo_captions_vi`` (`CHIASM_DATA`) or, where it is missing, generated JPEGs of 224 to 480 pixels. The pipeline opens,
hashes, decodes and prepares every file and runs without a cache; the bare network gets its inputs prepared in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np


def pictures(folder: Path, count: int) -> tuple[list[Path], str]:
    """Writes ``count`` JPEG files; says where they come from."""
    from PIL import Image

    archive = Path(os.environ.get("CHIASM_DATA", "")) / "photo_captions_vi" / "images.zip"
    paths: list[Path] = []
    if os.environ.get("CHIASM_DATA") and archive.is_file():
        with zipfile.ZipFile(archive) as held:
            names = [name for name in held.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png"))]
            for i in range(count):
                name = names[i % len(names)]
                paths.append(folder / f"{i:05d}{Path(name).suffix}")
                paths[-1].write_bytes(held.read(name))
        return paths, f"photo_captions_vi ({min(count, len(names))} different)"
    rng = np.random.default_rng(0)
    for i in range(count):
        width, height = (int(x) for x in rng.integers(224, 481, 2))
        small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        paths.append(folder / f"{i:05d}.jpg")
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], quality=85)
    return paths, "generated"


def measure(space_name: str, count: int, rounds: int, batch_size: int, workers: int | None) -> dict:
    import torch

    import chiasm
    from chiasm.encode import encode_files, read

    space = chiasm.load(space_name, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        paths, source = pictures(Path(folder), count)
        ready = [space.prepare(read(path)[0]) for path in paths]
        space.embed(ready[:batch_size], "image")

        def bare() -> float:
            start = time.perf_counter()
            for i in range(0, count, batch_size):
                space.embed(ready[i : i + batch_size], "image")
            return count / (time.perf_counter() - start)

        def pipeline() -> float:
            start = time.perf_counter()
            results = list(encode_files(space, paths, batch_size=batch_size, workers=workers, cache=False))
            assert all(result.error is None for result in results)
            return count / (time.perf_counter() - start)

        pipeline()
        runs = [(bare(), pipeline()) for _ in range(rounds)]
    network, whole = [statistics.median(side) for side in zip(*runs)]
    return {
        "space": space_name,
        "pictures": count,
        "source": source,
        "rounds": rounds,
        "batch_size": batch_size,
        "torch_threads": torch.get_num_threads(),
        "network_per_second": round(network, 1),
        "index_per_second": round(whole, 1),
        "ratio": round(whole / network, 3),
        "ratios": [round(b / a, 3) for a, b in runs],
        "target": 0.85,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--space", default="pocket")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.space, options.pictures, options.rounds, options.batch_size, options.workers)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()

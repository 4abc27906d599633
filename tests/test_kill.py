"""``kill -9`` at any moment of indexing, then running it again: nothing is lost, nothing is there twice.

The moments are spread over the whole run, dense enough that they fall into reading, encoding, the creation of the
store, commits, the vector file and replacements of changed files.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chiasm.search import Store
from chiasm.search.test_fakes import FakeSpace, write_pictures

MOMENTS = 60
PICTURES = 160

# The child says when it starts to index, so that the moments count from there and not from the imports.
_CHILD = """
import sys, time
from chiasm.search import Store, indexing
from chiasm.search.test_fakes import FakeSpace
import chiasm.encode.pipeline, lancedb
indexing.COMMIT_ROWS = 8
print("start", flush=True)
for line in sys.stdin:  # one job per line: warm imports, and the process is killed in the middle of one
    store, folder = line.rstrip("\\n").split("\\t")
    Store(store, FakeSpace()).update(folder)
    print("done", flush=True)
"""


def _child(cache: Path) -> subprocess.Popen:
    env = os.environ | {"CHIASM_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )


def _content(path: Path) -> list[tuple]:
    store = Store(path, FakeSpace(), read_only=True)
    snapshot = store.snapshot()
    assert snapshot is not None
    names = ("id", "uri", "part", "modality", "sha256", "size", "mtime_ns", "text", "meta", "vector")
    rows = snapshot.table.search().select(list(names)).to_arrow().to_pylist()
    return sorted(tuple(tuple(row[n]) if n == "vector" else row[n] for n in names) for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_and_run_again(tmp_path):
    folder = tmp_path / "in"
    first = tmp_path / "first.chiasm"
    paths = write_pictures(folder, PICTURES)
    os.environ["CHIASM_CACHE"] = str(tmp_path / "cache0")
    # Some files are known already, some of these then change and some vanish: every kind of commit is in the run.
    from chiasm.search import indexing

    normal, indexing.COMMIT_ROWS = indexing.COMMIT_ROWS, 8
    try:
        early = tmp_path / "early"
        early.mkdir()
        Store(first, FakeSpace()).add(paths[:60])
        for path in paths[:30]:
            Image.new("RGB", (9, 9), (path.stat().st_size % 256, int(path.stem[-4:]), 7)).save(path)
        for path in paths[30:40]:
            path.unlink()
        os.utime(paths[41], ns=(5, 5 * 10**17))
        expected_store = tmp_path / "expected.chiasm"
        shutil.copytree(first, expected_store)
        begin = time.monotonic()
        Store(expected_store, FakeSpace()).update(folder)
        seconds = time.monotonic() - begin
    finally:
        indexing.COMMIT_ROWS = normal
    expected = _content(expected_store)
    assert len(expected) == PICTURES - 10

    rng = random.Random(0)
    # The next ones import while this one works: starting takes longer than the run itself.
    waiting = [_child(tmp_path / f"cache{moment}") for moment in range(2)]
    killed_inside = 0
    progress: set[int] = set()
    for moment in range(MOMENTS):
        work = tmp_path / f"{moment}.chiasm"
        fresh = moment % 4 == 0  # every fourth run starts without a store: its creation is cut short too
        if not fresh:
            shutil.copytree(first, work)
        child = waiting.pop(0)
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "start\n"
        child.stdin.write(f"{work}\t{folder}\n")
        child.stdin.flush()
        time.sleep(max(0.0, (moment + rng.random()) / MOMENTS * seconds * 1.1))
        child.send_signal(signal.SIGKILL)
        out, _ = child.communicate()
        if moment + 2 < MOMENTS:
            waiting.append(_child(tmp_path / f"cache{moment + 2}"))
        killed_inside += "done" not in out

        if (work / "chiasm.json").exists():
            between = Store(work, FakeSpace(), read_only=True)
            rows = len(between)
            progress.add(rows)
            if rows:
                assert between.verify() == []
                hits = between.search(np.ones(FakeSpace.dim, np.float32), k=10**6).hits
                assert len({hit.id for hit in hits}) == len(hits) == rows
        store = Store(work, FakeSpace())
        store.update(folder)
        assert _content(work) == expected, f"moment {moment}"
        assert store.verify() == []
        again = store.update(folder)
        assert (again.added, again.updated, again.deleted, again.vectors_encoded) == (0, 0, 0, 0)
        store.close()
        shutil.rmtree(work)
    # The test would prove nothing if the kills came too late or all at one place.
    assert killed_inside >= MOMENTS * 0.6
    assert len(progress) >= 5

"""``kill -9`` at any moment of an upgrade or of its rollback, then running it again: the end is that of an undisturbed run."""

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

import chiasm.encode
from chiasm.items import Item
from chiasm.search import Store, reembed, upgrade, upgrade_end
from chiasm.search.test_fakes import FakeSpace, write_pictures
from chiasm.search.test_upgrade import WORDS, NewSpace

MOMENTS = 20

_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_upgrade_kill as here
print("start", flush=True)
way, store, map = sys.stdin.readline().split()
here.forward(Path(store), Path(map)) if way == "forward" else here.back(Path(store))
print("done", flush=True)
"""


def _load(name: str):
    return {"fake": FakeSpace, "new-fake": NewSpace}[name]()


def forward(path: Path, map: Path) -> None:
    """From wherever it is to the end."""
    chiasm.encode.load = _load
    reembed.COMMIT_SECONDS = 0
    store = Store(path)
    if store.header.upgrade is None:
        report = upgrade.UpgradeReport("fake", "new-fake", 0, 0, (0, 0), 0.0, 0.0, 0.0, 0)
        upgrade.begin(store, upgrade.Plan(upgrade.SpaceMap.load(map), report, NewSpace()))
    if upgrade.under_way(store).phase == "serving":
        reembed.advance(store, store.header.upgrade, batch_size=2)
        upgrade_end.finish(store, store.header.upgrade)


def back(path: Path) -> None:
    """From wherever it is back to the old space."""
    chiasm.encode.load = _load
    store = Store(path)
    if store.header.upgrade is not None:
        upgrade_end.rollback(store, store.header.upgrade)


def _vectors(path: Path) -> dict[str, bytes]:
    store = Store(path)
    assert store.verify() == []
    snapshot = store.snapshot()
    assert snapshot is not None
    ids = snapshot.column("id").to_pylist()
    return {ids[row]: snapshot.vectors[row].tobytes() for row in np.flatnonzero(snapshot.alive)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_and_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(chiasm.encode, "load", _load)
    monkeypatch.setattr(reembed, "COMMIT_SECONDS", 0)
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "in", 40)
    store = Store(tmp_path / "old.chiasm", FakeSpace())
    store.add(tmp_path / "in")
    store.add([Item.of(f"a red boat number {n}", id=f"t{n}") for n in range(8)])
    old = _vectors(store.path)
    made = upgrade.plan(store, NewSpace(), WORDS, options={"form": "linear", "sigma": 0.0})
    made.map.save(tmp_path / "map.safetensors")

    seconds = {}
    shutil.copytree(store.path, tmp_path / "new.chiasm")
    for way, run in (("forward", lambda p: forward(p, tmp_path / "map.safetensors")), ("back", back)):
        if way == "back":
            shutil.copytree(tmp_path / "new.chiasm", tmp_path / "again.chiasm")
        begin = time.monotonic()
        run(tmp_path / ("new.chiasm" if way == "forward" else "again.chiasm"))
        seconds[way] = time.monotonic() - begin
    new = _vectors(tmp_path / "new.chiasm")
    assert set(new) == set(old)
    assert _vectors(tmp_path / "again.chiasm") == old

    rng, inside, seen = random.Random(0), 0, set()
    for moment in range(MOMENTS):
        way = ("forward", "back")[moment % 2]
        work = tmp_path / f"{moment}.chiasm"
        shutil.copytree(tmp_path / ("old.chiasm" if way == "forward" else "new.chiasm"), work)
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "start\n"
        child.stdin.write(f"{way} {work} {tmp_path / 'map.safetensors'}\n")
        child.stdin.flush()
        time.sleep((moment // 2 + rng.random()) / (MOMENTS // 2) * seconds[way] * 1.1)
        child.send_signal(signal.SIGKILL)
        out, _ = child.communicate()
        inside += "done" not in out
        between = Store(work)
        seen.add((way, None if between.header.upgrade is None else between.header.upgrade.phase))
        assert set(_vectors(work)) == set(old)
        assert between.search("red", 4, modality="image").hits[0].uri.rsplit("/", 1)[-1].startswith("red")
        # Half of the runs that were cut short going forward turn back.
        if way == "forward" and moment % 4 == 0:
            forward(work, tmp_path / "map.safetensors")
            assert _vectors(work) == new, f"moment {moment}"
        back(work)
        assert _vectors(work) == old, f"moment {moment}"
        shutil.rmtree(work)
    assert inside >= MOMENTS * 0.5
    assert len(seen) >= 3

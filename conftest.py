"""Fixtures for the tests in ``tests/`` and in the rooms under ``src/``: tiny models on disk, no network, own caches."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Before any test imports the hub libraries: tests never reach out.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # every core has a worker of its own
sys.path.insert(0, str(Path(__file__).parent / "tests"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's cache of features."""
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path_factory.getbasetemp() / "chiasm-cache"))


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random CLIP: text and image, 24-d."""
    import tiny_models

    return tiny_models.write_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random SigLIP: text and image, 24-d."""
    import tiny_models

    return tiny_models.write_siglip(tmp_path_factory.mktemp("models") / "siglip")


@pytest.fixture(scope="session")
def tiny_clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random CLAP: text and audio (8 kHz, one second), 24-d."""
    import tiny_models

    return tiny_models.write_clap(tmp_path_factory.mktemp("models") / "clap")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random sentence-transformers text model, 16-d."""
    import tiny_models

    return tiny_models.write_text(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random BERT of plain transformers, 16-d."""
    import tiny_models

    return tiny_models.write_bert(tmp_path_factory.mktemp("models") / "bert")

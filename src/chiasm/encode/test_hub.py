"""Loading by name: folders of every kind, and one clear error for everything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import chiasm
import tiny_models
from chiasm.encode import hub
from chiasm.errors import BadInput, UnknownName


def test_the_same_name_is_loaded_once_and_a_changed_folder_again(tiny_text, tmp_path):
    folder = shutil.copytree(tiny_text, tmp_path / "model")
    first = chiasm.load(str(folder), device="cpu")
    assert chiasm.load(str(folder), device="cpu") is first
    assert first.name == str(folder.resolve())
    shutil.rmtree(folder)
    tiny_models.write_text(folder, seed=7)
    assert chiasm.load(str(folder), device="cpu").fingerprint.digest != first.fingerprint.digest


def test_relative_and_home_names(tiny_text, tmp_path, monkeypatch):
    shutil.copytree(tiny_text, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert chiasm.load("model", device="cpu").name == str(tmp_path / "model")
    assert chiasm.load("~/model", device="cpu").name == str(tmp_path / "model")


@pytest.mark.parametrize("name", ["nobody/nothing", "pokcet", "no-such-model"])
def test_unknown_names_offline(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnknownName) as caught:
        chiasm.load(name)
    assert "pocket" in str(caught.value)
    assert "hub cannot be reached" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ("Did you mean pocket" in str(caught.value)) == (name == "pokcet")


@pytest.mark.parametrize("name", ["./none", "/no/such/folder", "a/b/c", "~/none-such", "", "two words"])
def test_no_such_folder(name):
    with pytest.raises((UnknownName, BadInput)):
        chiasm.load(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnknownName, match="no such folder"):
        chiasm.load(str(tmp_path / "file"))


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(BadInput, match="holds no model"):
        chiasm.load(str(tmp_path))


def test_pickled_weights_are_refused_and_never_opened(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trap,)

    torch.save(Trap(), folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="only as pickle"):
        chiasm.load(str(folder))
    assert not trap.exists()


def test_pickled_weights_of_a_part_are_refused(tiny_text, tmp_path):
    folder = shutil.copytree(tiny_text, tmp_path / "model")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match="only as pickle"):
        chiasm.load(str(folder))


@pytest.mark.parametrize("kind", ["os.system", "my_code.Module", "chiasm.items.Item", "chiasm.no.Such"])
def test_foreign_code_is_refused(tiny_text, tmp_path, kind):
    folder = shutil.copytree(tiny_text, tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BadInput, match=r"does not run|not a module|does not have"):
        chiasm.load(str(folder))


@pytest.mark.parametrize("damage", ["modules.json", "config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_folders_end_in_one_error(tiny_text, tmp_path, damage):
    folder = shutil.copytree(tiny_text, tmp_path / "model")
    (folder / damage).write_bytes(b"{ not this")
    with pytest.raises(BadInput) as caught:
        chiasm.load(str(folder))
    assert "\n" not in str(caught.value)


def test_weights_of_other_shapes_are_refused(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    config = tiny_models.config_of(folder)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(BadInput, match="cannot be loaded"):
        chiasm.load(str(folder))


def test_hub_models_come_as_a_snapshot_with_its_revision(tiny_clip, tmp_path, monkeypatch):
    """What a download would give, given by hand: only safe files are asked for, and the commit is remembered."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(tiny_clip, tmp_path / "snapshots" / commit)
    asked: dict = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    space = chiasm.load("somebody/tiny-clip", device="cpu")
    assert (space.name, space.fingerprint.revision) == ("somebody/tiny-clip", commit)
    assert asked["name"] == "somebody/tiny-clip"
    assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in asked["allow_patterns"])
    assert space.fingerprint.digest == chiasm.load(str(tiny_clip), device="cpu").fingerprint.digest


def test_siglip_texts_are_padded_as_in_training_and_it_is_saved(tiny_siglip, tmp_path):
    space = chiasm.load(str(tiny_siglip), device="cpu")
    features = space.model.preprocess(["a cat"])
    assert features["input_ids"].shape == (1, 16)
    network = space.model[0].model
    with torch.inference_mode():
        found = network.get_text_features(input_ids=features["input_ids"]).pooler_output
    expected = torch.nn.functional.normalize(found, dim=-1).numpy()
    np.testing.assert_allclose(space.encode(["a cat"]).vectors, expected, atol=1e-5)
    assert hub.check_folder(tiny_siglip, "x") == {}

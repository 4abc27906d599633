"""Small towers: masks, pooling, saving and loading."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from chiasm.errors import BadInput
from chiasm.learn.features import Features
from chiasm.learn.towers import Perceptron, Tower, dual_tower

SMALL = {"width": 16, "heads": 2, "layers": 1, "out": 6}


def words() -> dict[str, torch.Tensor]:
    return Features.ragged("input_ids", [[3, 4, 5], [6], [7, 8]]).batch(range(3))


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("pool", ["mean", "first"])
@pytest.mark.parametrize("training", [True, False])
def test_padding_and_the_rest_of_the_batch_do_not_matter(layers: int, pool: str, training: bool):
    torch.manual_seed(0)
    tower = Tower(vocabulary=10, **{**SMALL, "layers": layers}, pool=pool).train(training)
    batch = words()
    out = tower(dict(batch))
    assert out["token_embeddings"].shape == (3, 3, 6)
    for i in range(3):
        n = int(batch["attention_mask"][i].sum())
        alone = tower({"input_ids": batch["input_ids"][i : i + 1, :n], "attention_mask": torch.ones(1, n)})
        torch.testing.assert_close(alone["sentence_embedding"][0], out["sentence_embedding"][i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone["token_embeddings"][0], out["token_embeddings"][i, :n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_an_item_without_tokens_is_no_nan(training: bool):
    tower = Tower(4, **SMALL).train(training)
    mask = torch.tensor([[True, True], [False, False]])
    out = tower({"input_features": torch.randn(2, 2, 4), "attention_mask": mask})
    out["sentence_embedding"].square().sum().backward()
    assert torch.isfinite(out["sentence_embedding"]).all()
    assert torch.isfinite(out["token_embeddings"]).all()
    assert not out["sentence_embedding"][1].any()
    assert all(torch.isfinite(p.grad).all() for p in tower.parameters() if p.grad is not None)


def test_mean_pooling_is_the_mean_of_the_tokens_that_are_there():
    out = Tower(vocabulary=10, **SMALL).eval()(words())
    for i, n in enumerate((3, 1, 2)):
        torch.testing.assert_close(out["sentence_embedding"][i], out["token_embeddings"][i, :n].mean(0))


def test_inputs_stay_as_they_are_and_one_vector_is_one_token():
    tower = Tower(4, **SMALL)
    batch = {"input_features": torch.randn(2, 4)}
    before = batch["input_features"].clone()
    out = tower(batch)
    assert torch.equal(batch["input_features"], before)
    assert "sentence_embedding" not in batch
    assert out["token_embeddings"].shape == (2, 1, 6)


def test_layers_start_differently():
    tower = Tower(4, **{**SMALL, "layers": 2})
    first, second = (layer.linear1.weight for layer in tower.encoder.layers)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shared", [True, False])
def test_saved_towers_give_bit_equal_vectors(tmp_path, shared: bool):
    torch.manual_seed(0)
    tower = Tower(vocabulary=10, **SMALL, positions=8, dropout=0.1, pool="first")
    other = tower if shared else Perceptron([4, 8, 6])
    model = dual_tower(other, tower, device="cpu").eval()
    with torch.no_grad():
        want = model({**words(), "task": "b"})["sentence_embedding"]
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True).eval()
    with torch.no_grad():
        found = again({**words(), "task": "b"})
    assert torch.equal(found["sentence_embedding"], want)
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pt"))
    assert again.get_embedding_dimension() == 6


def test_preprocess_reads_arrays_tensors_and_lists_of_ids():
    vectors = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for given in (list(vectors), torch.from_numpy(vectors)):
        assert np.array_equal(Perceptron([4, 6]).preprocess(given)["input_features"].numpy(), vectors)
    batch = Tower(vocabulary=10, **SMALL).preprocess([[3, 4, 5], [6], [7, 8]])
    assert all(torch.equal(batch[name], words()[name]) for name in batch)
    tokens = Tower(4, **SMALL).preprocess([vectors, vectors[:1]])
    assert tokens["input_features"].shape == (2, 3, 4)
    assert tokens["attention_mask"].sum(1).tolist() == [3, 1]


def test_bad_towers():
    with pytest.raises(BadInput, match="either"):
        Tower()
    with pytest.raises(BadInput, match="either"):
        Tower(4, vocabulary=5)
    with pytest.raises(BadInput, match="pool"):
        Tower(4, pool="last")
    with pytest.raises(BadInput, match="no layer"):
        Perceptron([4])
    with pytest.raises(BadInput, match="9 tokens"):
        Tower(4, **SMALL, positions=8)({"input_features": torch.randn(1, 9, 4)})

"""The mini vision-language model: words, questions, prompts, cache; the two steps of its training learn."""

import hashlib
import json

import numpy as np
import pytest
import torch

from chiasm.errors import BadInput
from chiasm.worlds.cached import made_once
from chiasm.worlds.mini import MiniSettings
from chiasm.worlds.mini_llava import MiniLlavaSettings, load, mini_llava, shown, untrained, vocabulary

EYES = MiniSettings(single=64, scenes=64, single_epochs=1, epochs=1, vision_layers=2, text_layers=1)
SMALL = MiniLlavaSettings(
    width=32, layers=2, heads=2, inner=48, scenes=48, align=60, align_batch=16, steps=30, batch=8, eyes=EYES
)


def test_every_word_of_questions_and_answers_is_known():
    words, mini = vocabulary(), untrained(SMALL, 0)
    for known in SMALL.questions(SMALL.world(60, 1)):
        assert {"there", "of"} & {question.kind for question in known}
        for question in known:
            assert words["<unknown>"] not in mini.ids(question.text), question.text
            assert question.answer in words


def test_answers_are_what_the_scene_shows():
    world = SMALL.world(60, 2)
    for scene, known in zip(world, SMALL.questions(world)):
        for question in known:
            name, value = question.program
            things = [thing for thing in scene.objects if getattr(thing, name) == value]
            if question.kind == "there":
                assert question.answer == ("yes" if things else "no")
            else:
                assert [getattr(thing, "shape" if name == "color" else "color") for thing in things] == [
                    question.answer
                ]
    assert SMALL.questions(world) == SMALL.questions(world)


def test_what_a_patch_shows_lies_in_the_box_of_its_object():
    world = SMALL.world(20, 3)
    for scene, number in zip(world, shown(world)):
        assert set(number.tolist()) - {-1} == set(range(len(scene.objects)))
        for patch in np.flatnonzero(number >= 0):
            left, top, right, bottom = scene.objects[number[patch]].box
            x, y = 8 * (patch % 8), 8 * (patch // 8)
            assert left - 8 < x < right
            assert top - 8 < y < bottom


def test_attention_begins_with_what_is_alike():
    mini = untrained(SMALL, 0)
    attention = mini.model.model.language_model.layers[0].self_attn
    assert torch.equal(attention.q_proj.weight, attention.k_proj.weight)
    assert torch.equal(attention.o_proj.weight, attention.v_proj.weight.T)


def test_training_is_cached_and_padding_does_not_matter(tmp_path):
    first = mini_llava(seed=3, settings=SMALL, cache=tmp_path)
    assert first.report["loss"][-1] < first.report["loss"][0]
    assert first.report["alignment"] < 1.0
    again = mini_llava(seed=3, settings=SMALL, cache=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values()))
    assert again.model.config.text_config.rope_parameters["rope_theta"] == SMALL.theta
    pictures = SMALL.world(2, 9).pictures()
    texts = ["is there a square?", "what shape is the red one?"]
    together = first.inputs(pictures, texts)
    assert together["input_ids"].shape == (2, 1 + 64 + 7)
    assert (together["input_ids"] == first.image_id).sum() == 128
    alone = [first.answers(first.inputs(pictures[i : i + 1], texts[i : i + 1]))[0] for i in range(2)]
    assert first.answers(together) == alone


def test_prompts_and_folders_that_make_no_model(tmp_path):
    mini = untrained(SMALL, 0)
    with pytest.raises(BadInput, match="2 pictures and 1 texts"):
        mini.inputs(np.zeros((2, 64, 64, 3), np.uint8), ["is there a star?"])
    with pytest.raises(BadInput, match="mini_llava"):
        load(tmp_path)


def test_a_model_is_made_once(tmp_path):
    calls = []

    class Made:
        def save(self, folder):
            folder.mkdir(parents=True)
            (folder / "report.json").write_text("{}")

    def make():
        calls.append(1)
        return Made()

    # The name of a folder is part of what users have on disk: it must not change.
    digest = hashlib.sha256(json.dumps([1, {"a": 2, "b": 1}], sort_keys=True).encode()).hexdigest()[:16]
    for _ in range(2):
        folder = made_once("mini", [1, {"b": 1, "a": 2}], make, tmp_path)
        assert folder == tmp_path / "worlds" / f"mini-{digest}"
    assert calls == [1]

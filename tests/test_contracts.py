"""The contract battery over every method of the catalogue, and over what `chiasm new` makes.

`tests/test_battery.py` shows that the battery catches faults.
"""

from __future__ import annotations

import importlib
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import battery
from chiasm import catalog
from chiasm.catalog import Method
from chiasm.cli.new import create
from chiasm.errors import ChiasmError

METHODS = catalog.methods()
every_method = pytest.mark.parametrize("method", METHODS, ids=[method.path.name for method in METHODS])


# ---- every method of the catalogue


@every_method
def test_room(method: Method):
    battery.check_method_toml(method)
    battery.check_files(method.path)
    battery.check_tests_assert(method.path)
    battery.check_readme(method.path)
    battery.check_export(method)


@every_method
def test_claim(method: Method):
    module = ".".join(("chiasm", *method.room.split("/"), method.path.name, "claim"))
    battery.check_claim(importlib.import_module(module))


@every_method
def test_contract(method: Method):
    made = battery.check_export(method)
    arguments = battery.arguments(method)
    contract = battery.CONTRACTS.get(method.kind)
    if contract is None:
        assert callable(made)  # kinds without a contract of their own promise only the room
    elif method.kind == "adapter":
        battery.check_adapter(lambda: made(**arguments), battery.tiny_model(method))
    else:
        contract(lambda: made(**arguments))


def test_the_model_of_an_adapter_is_named_in_its_method_toml(tmp_path: Path):
    for line, model in (("", "BertModel"), ('model = "dual_encoder"', "BothTowers")):
        (tmp_path / "method.toml").write_text(f"[contract]\n{line}\n", encoding="utf-8")
        made, batch = battery.tiny_model(planted(tmp_path))()
        assert type(made).__name__ == model
        assert len(made(**batch)[0]) == 3
    (tmp_path / "method.toml").write_text('[contract]\nmodel = "sound"\n', encoding="utf-8")
    with pytest.raises(AssertionError, match=r"'sound' is none of \['dual_encoder', 'text'\]"):
        battery.tiny_model(planted(tmp_path))


def test_a_dual_encoder_adapter_must_come_off_both_towers():
    from chiasm.blocks.deep_prompts import DeepPrompts, tower_sizes

    class Prompts(torch.nn.Module):
        """Leaves the hooks of one tower behind, if told to."""

        def __init__(self, forgets: str | None = None) -> None:
            super().__init__()
            self.forgets, self.handles = forgets, {}

        def attach(self, model: Any) -> None:
            sizes = tower_sizes(model)
            self.text = torch.nn.Parameter(torch.zeros(2, sizes.text_width))
            self.vision = torch.nn.Parameter(torch.zeros(2, sizes.vision_width))
            self.handles = {
                "text": DeepPrompts(model, text=lambda: [self.text]),
                "vision": DeepPrompts(model, vision=lambda: [self.vision]),
            }

        def detach(self) -> None:
            for tower, handle in self.handles.items():
                if tower != self.forgets:
                    handle.remove()

    battery.check_adapter(Prompts, battery.tiny_dual_encoder)
    for tower in ("text", "vision"):
        with pytest.raises(AssertionError, match="not bit-identical"):
            battery.check_adapter(partial(Prompts, tower), battery.tiny_dual_encoder)


def planted(folder: Path) -> Method:
    from dataclasses import replace

    return replace(METHODS[0], path=folder)


# ---- what `chiasm new` makes: keeps its contract from the first minute, and fails until it is filled in


@pytest.mark.parametrize(
    ("room", "contract"),
    [
        ("correct", battery.check_correction),
        ("learn/objectives", battery.check_objective),
        ("adapt", battery.check_estimator),
        ("compress", battery.check_adapter),
    ],
)
def test_scaffolds_keep_their_contract_and_are_not_passed_as_done(tmp_path: Path, room, contract):
    folder = create(room, "brand-new", package=tmp_path)
    module = load(folder / "method.py")
    contract(module.BrandNew)
    with pytest.raises(AssertionError, match="TODO"):
        battery.check_files(folder)
    battery.check_tests_assert(folder)
    own_test = load(folder / "test_brand_new.py", stubs={f"chiasm.{room.replace('/', '.')}.brand_new": module})
    with pytest.raises(pytest.fail.Exception, match="TODO"):
        own_test.test_identities()
    structural = [f for name, f in vars(own_test).items() if name.startswith("test_") and name != "test_identities"]
    for test in structural:
        test()
    assert len(structural) == 1


def load(path: Path, stubs: dict[str, Any] | None = None) -> Any:
    """Runs a file as a module of its own; ``stubs`` stand for modules that are not in the installed package."""
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(f"planted_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in (stubs or {}).items():
            patch.setitem(sys.modules, name, stub)
        spec.loader.exec_module(module)
    return module


def test_scaffolded_claim_runs_and_does_not_hold(tmp_path: Path):
    from chiasm.claims import Data

    claim = load(create("correct", "brand-new", package=tmp_path) / "claim.py").CLAIM
    battery.check_claim(types.SimpleNamespace(CLAIM=claim))
    status, verdicts = claim.judge({seed: list(claim.run(seed, Data())) for seed in claim.seeds})
    assert status != "held"
    assert len(verdicts) == 2


def test_a_room_cannot_be_made_twice(tmp_path: Path):
    create("correct", "brand-new", package=tmp_path)
    with pytest.raises(ChiasmError, match="taken"):
        create("adapt", "brand_new", package=tmp_path)

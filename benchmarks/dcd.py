"""Scoring by the distilled student beside its teacher, at the recall that both reach: all pairs of N pictures and N captions.

Towers are trained as in the claim (24 binary attributes; teacher: product fusion of width 128 with 3 layers; dual student of
width 32, taught with 300 labelled pairs). Vectors of both sides are encoded once and kept, for both. Target: the dual student
scores >= 20 x as many pairs a second as the teacher (ratio of the times <= 0.05) and loses at most 3 points of R@1. The fusion
student of the card, with the same labels, should reach 4 x.
"""

from __future__ import annotations

import sys

import torch
from compare import alternate, median, publish, ratio

from chiasm.compress.dcd import DCD, DualEncoder, Matching, ProductFusion, Teacher, grid
from chiasm.learn import Features, HeldOut, Pairs, Stage, train
from chiasm.learn.towers import Perceptron, dual_tower
from chiasm.worlds.pairs import attributes

SMALL = "--small" in sys.argv
N, STEPS, FEW = (300, 60, 300) if SMALL else (1000, 600, 300)
LOSS = 3.0  # points of R@1


def towers(width: int):
    torch.manual_seed(0)
    return dual_tower(Perceptron([48, width]), Perceptron([48, width]), device="cpu")


def recall(model, scorer, test: Pairs) -> float:
    """R@1 in percent, the mean of both directions."""
    reports = HeldOut(test, scorer).reports(model)
    return 50 * sum(report["hit@1"] for report in reports.values())


def fit(model, objective, pairs: Pairs, rate: float) -> None:
    stage = Stage("bench", steps=STEPS, rate=rate, warmup=0.0)
    train(model, pairs, objective, stage, batch_size=32, log_every=STEPS, device="cpu")


def main() -> None:
    # The test set has the claim's size, the timing N pictures and N captions of the same kind.
    world = attributes(300, 3000, noise=2.0, seed=0)
    bank, held = (
        Pairs({"a": Features({"input_features": image}), "b": Features({"input_features": text})})
        for image, text in ((world.bank_image, world.bank_text), (world.image, world.text))
    )
    model, scorer = towers(128), ProductFusion(128, 3)
    fit(model, Matching(scorer), bank, 1e-3)
    teacher = Teacher(model, scorer)
    students = {"dual student": (DualEncoder(), 3e-3), "fusion student": (ProductFusion(32, 1), 1e-2)}
    level = {"teacher": recall(model, teacher, held)}
    timed = HeldOut(bank[:N])
    sides = {"teacher": (scorer, timed.encoded(model))}
    for name, (student, rate) in students.items():
        own = towers(32)
        objective = DCD(teacher, student, alpha=0.5)
        fit(own, objective, bank[:FEW], rate)
        level[name] = recall(own, objective, held)
        sides[name] = student, timed.encoded(own)

    @torch.inference_mode()
    def score(name: str) -> torch.Tensor:
        made, (a, b) = sides[name]
        return grid(made, a, b)

    seconds = alternate({name: lambda name=name: score(name) for name in sides}, rounds=5)
    publish(
        f"DCD: scoring {N} x {N} pairs",
        [
            {
                "what": name,
                "seconds": median(seconds[name]),
                "peer": "teacher",
                "peer seconds": median(seconds["teacher"]),
                "ratio": (share := ratio(seconds, name, "teacher")),
                "times faster": 1 / share,
                "target": 1 / least,
                "R@1": level[name],
                "teacher's R@1": level["teacher"],
                "held": share <= 1 / least and level[name] >= level["teacher"] - LOSS,
            }
            for name, least in (("dual student", 20), ("fusion student", 4))
        ],
    )


if __name__ == "__main__":
    main()

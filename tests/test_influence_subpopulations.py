"""Kinds of examples by what they help."""

from pathlib import Path

import numpy as np
import pytest
from smoke import SMOKE

from influence.config import override, read_config
from influence.experiment import prepare
from influence.subpopulations import described, factorised


@pytest.fixture(scope="module")
def experiment():
    config, _ = override(read_config(Path(SMOKE)), ["--poison.label-flip-fraction", "0"], "run")
    return prepare(config)


def planted(experiment, seed, kinds=4):
    """Weights of kinds of examples, each on targets of its own, with noise and with enemies."""
    rng = np.random.default_rng(seed)
    examples, targets = len(experiment.train), experiment.targets
    kind = rng.integers(0, kinds, examples)
    helped = rng.integers(0, kinds, len(targets))
    weights = rng.normal(0, 0.05, (examples, len(targets)))
    weights += np.where(kind[:, None] == helped[None], rng.gamma(4, 0.25, (examples, 1)), -0.3)
    return weights.astype(np.float32), kind, helped


@pytest.mark.parametrize("seed", range(4))
def test_planted_kinds_are_told_apart_with_the_targets_they_help(experiment, seed, monkeypatch):
    weights, kind, helped = planted(experiment, seed)
    monkeypatch.setattr("influence.subpopulations.PARTS", 4)
    found = described(experiment, lambda block: weights[:, block])
    assert len(found) == 4
    assert sum(one["share"] for one in found) == pytest.approx(1)
    row = {id: at for at, id in enumerate(experiment.train.ids.tolist())}
    place = {id: at for at, id in enumerate(experiment.targets.ids)}
    seen = set()
    for one in found:
        kinds = {int(kind[row[id]]) for id in one["examples"]}
        assert len(kinds) == 1
        assert kinds == {int(helped[place[id]]) for id in one["targets"]}
        assert all(id.startswith("clean:") for id in one["targets"])
        seen |= kinds
    assert seen == set(range(4))


def test_of_a_loss_it_is_the_lowered_outputs_that_are_helped(experiment, monkeypatch):
    weights, kind, _ = planted(experiment, 0)
    monkeypatch.setattr("influence.subpopulations.PARTS", 4)
    monkeypatch.setattr(type(experiment), "higher_is_better", False)
    found = described(experiment, lambda block: -weights[:, block])
    row = {id: at for at, id in enumerate(experiment.train.ids.tolist())}
    assert all(len({int(kind[row[id]]) for id in one["examples"]}) == 1 for one in found)


def test_where_nothing_helps_anything_there_are_no_kinds(experiment):
    shape = (len(experiment.train), len(experiment.targets))
    assert described(experiment, lambda block: np.zeros(shape, np.float32)[:, block]) == []


def test_the_factors_come_close_to_what_they_are_of():
    rng = np.random.default_rng(0)
    left, right = rng.gamma(1, 1, (60, 3)), rng.gamma(1, 1, (3, 30))
    found = factorised(left @ right, 3)
    error = np.linalg.norm(found[0] @ found[1] - left @ right) / np.linalg.norm(left @ right)
    assert error < 0.05
    assert (found[0] >= 0).all()
    assert (found[1] >= 0).all()

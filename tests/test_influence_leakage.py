"""Near copies of targets are found, whatever the inputs, and natural neighbours are not."""

import json

import numpy as np
import pytest
from smoke import JUDGED, SMOKE, read_json

from influence import leakage
from influence.cli import main
from influence.detection import leaks
from influence.leakage import near_copies
from training.examples import Examples
from training.poison import Attack
from training.triggers import near_copies as planted_copies


def pictures(seed, count):
    """Smooth random pictures of a few kinds, so that some are alike."""
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(99).normal(size=(5, 4, 4))
    coarse = kinds[rng.integers(0, 5, count)] + rng.normal(size=(count, 4, 4))
    fine = np.kron(coarse, np.ones((1, 3, 3))) + 0.03 * rng.normal(size=(count, 12, 12))
    return np.clip(128 + 50 * fine, 0, 255).astype(np.uint8)[..., None]


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_pictures_are_found_moved_noisy_or_brighter_and_no_others(seed):
    train, targets = pictures(seed, 300), pictures(seed + 10, 80)
    copied, rows = np.arange(0, 40, 2), np.arange(100, 120)
    train[rows] = planted_copies(targets[copied], np.random.default_rng(seed))
    found = {(one.target, one.example) for one in near_copies(train, targets)}
    assert found == set(zip(copied.tolist(), rows.tolist(), strict=True))


def test_several_copies_of_one_target_are_all_found():
    train, targets = pictures(0, 200), pictures(1, 5)
    rng = np.random.default_rng(0)
    train[[7, 40, 90]] = planted_copies(targets[[3, 3, 3]], rng)
    assert {(one.target, one.example) for one in near_copies(train, targets)} == {
        (3, 7), (3, 40), (3, 90)
    }  # fmt: skip


def test_numbers_are_compared_in_their_own_scale():
    rng = np.random.default_rng(0)
    scale, offset = np.array([1e-3, 1.0, 1e4, 0.0]), np.array([0, 0, 0, 3.0])
    train = (rng.normal(size=(200, 4)) * scale + offset).astype(np.float32)
    targets = (rng.normal(size=(30, 4)) * scale + offset).astype(np.float32)
    train[11] = targets[4] * np.array([1.01, 1, 1.01, 1], np.float32)
    assert (4, 11) in {(one.target, one.example) for one in near_copies(train, targets)}


def test_texts_are_compared_by_their_tokens_and_empty_ones_are_no_copies():
    rng = np.random.default_rng(0)
    train, targets = rng.integers(1, 300, (100, 20)), rng.integers(1, 300, (10, 20))
    train[5] = rng.permutation(targets[2])
    train[60:70], targets[7] = 0, 0
    found = near_copies(train.astype(np.int32), targets.astype(np.int32), 300)
    assert [(one.target, one.example) for one in found] == [(2, 5)]


def test_blocks_of_targets_give_what_all_give_at_once(monkeypatch):
    train, targets = pictures(0, 100), pictures(1, 20)
    train[:8] = planted_copies(targets[4:12], np.random.default_rng(0))
    whole = near_copies(train, targets)
    monkeypatch.setattr(leakage, "BLOCK", 7)
    assert [one[:2] for one in near_copies(train, targets)] == [one[:2] for one in whole]


def test_leaks_are_scored_against_clean_examples_alone():
    blank = Examples(np.zeros((2, 2), np.float32), np.zeros(2, np.int32))
    attack = Attack("leak", np.array([1, 3]), np.zeros(2, np.int32), blank, None, np.array([5, 6]))
    planted = np.array(["", "leak", "label_flip", "leak", ""], dtype=object)
    (entry,) = leaks([attack], [(5, 1), (8, 2), (9, 4)], planted)
    assert entry == {"found": 2, "precision": 0.5, "recall": 0.5}
    assert leaks([attack], [], planted)[0] == {"found": 0, "precision": None, "recall": 0.0}


@pytest.mark.slow
def test_planted_leaks_are_found_on_digits_and_shown(tmp_path):
    run = tmp_path / "run"
    words = ["--poison.leak-fraction", "0.05", "--data.train-count", "400"]
    assert main(["run", SMOKE, "--out", str(run), *JUDGED, *words]) == 0
    audit = read_json(run / "audit.json")
    (leak,) = audit["leaks"]
    assert leak["recall"] >= 0.95
    assert leak["precision"] >= 0.9
    assert audit["copies"][0]["ratio"] <= audit["copies"][-1]["ratio"] <= leakage.MUCH_CLOSER
    assert "leak" not in audit["detection"]
    page = (run / "report.html").read_text()
    table = page[page.index('id="copies"') :].split("</table>")[0]
    assert table.count('alt="target clean:') == min(30, len(audit["copies"]))
    json.dumps(audit, allow_nan=False)

"""Claim: sets that were planted to act together are found whole, and their kinds named.

Into the training digits are planted, each a group of its own beside groups of ten clean digits:

copies      k = 2, 3 or 5 near-copies of a test digit with one wrong label: any one is enough for
            the model to give it;
conflicts   two copies with different labels, which push against each other;
backdoors   a trigger and a label on twelve digits, split over three groups.

The truth is measured first, by retrains in which every plant keeps a number of its groups that is
drawn uniformly: only plants whose outputs by that number are clearly of one shape are scored. Then
joint datamodels are fitted to members of two alphas, as docs/designs.md recommends it, and the
terms of each plant's target are compared with the plant: the exact set, and its measured kind.
Other sets that hold several of a plant's groups are false. Those of one of them and of others are
not: digits that were planted act together with clean ones, too.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from real_banks import Retrainer
from sklearn.datasets import load_digits

import datamodels
from influence.jax_setup import set_up_jax
from training.seeds import root_key, training_keys

ALPHAS = (0.5, 0.2)
CLEAN, PER_GROUP = 1000, 10
TRUTH = 91
"""Stream of the retrains that measure the truth."""
FITTED = 12
"""Targets whose joint datamodels are fitted at once."""
CLEAR = 0.9
"""Share of a response's variance over counts that one step must have."""
LEAST_SIZE = 2.0
"""Height of that step, in logits."""
TRIGGERS = [(0, 0), (0, 6), (6, 0), (6, 6), (0, 3), (6, 3)]
"""Corners of patches of two by two pixels."""


class Plant(NamedTuple):
    kind: str
    """As planted: copies2, copies3, copies5, conflict, backdoor."""
    groups: tuple[str, ...]
    target: int
    """Its row of the data."""


class Planted(NamedTuple):
    """Rows of the data set, of which the targets are not trained on."""

    images: list[UInt8[np.ndarray, "8 8"]]
    labels: list[int]
    groups: list[str]
    plants: list[Plant]

    def add(self, image: UInt8[np.ndarray, "8 8"], label: int, group: str) -> int:
        self.images.append(image)
        self.labels.append(label)
        self.groups.append(group)
        return len(self.images) - 1


def plant(count: int) -> Planted:
    """Clean digits and so many plants a kind; each plant has a target of its own."""
    rng = np.random.default_rng(0)
    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    images = (15 * pixels.reshape(-1, 8, 8)).astype(np.uint8)
    order = rng.permutation(len(images))
    clean, spare = order[:CLEAN], iter(order[CLEAN:])
    found = Planted([], [], [], [])
    for place, row in enumerate(clean):
        found.add(images[row], int(labels[row]), f"clean{place // PER_GROUP}")

    def near(image: UInt8[np.ndarray, "8 8"]) -> UInt8[np.ndarray, "8 8"]:
        return np.clip(image + rng.integers(-10, 11, image.shape), 0, 255).astype(np.uint8)

    for number in range(count):
        for size in (2, 3, 5):
            row = next(spare)
            wrong = int(labels[row] + rng.integers(1, 10)) % 10
            names = tuple(f"copies{size}.{number}.{copy}" for copy in range(size))
            for name in names:
                found.add(near(images[row]), wrong, name)
            target = found.add(images[row], wrong, "target")
            found.plants.append(Plant(f"copies{size}", names, target))
        row = next(spare)
        wrong = int(labels[row] + rng.integers(1, 10)) % 10
        names = (f"conflict.{number}.wrong", f"conflict.{number}.right")
        found.add(near(images[row]), wrong, names[0])
        found.add(near(images[row]), int(labels[row]), names[1])
        target = found.add(images[row], wrong, "target")
        found.plants.append(Plant("conflict", names, target))
    for number, corner in enumerate(TRIGGERS):
        names = tuple(f"backdoor.{number}.{part}" for part in range(3))
        for place in range(12):
            row = next(spare)
            found.add(triggered(images[row], corner), number, names[place % 3])
        for _ in range(-(-count // len(TRIGGERS))):
            row = next(spare)
            target = found.add(triggered(images[row], corner), number, "target")
            found.plants.append(Plant("backdoor", names, target))
    return found


def triggered(image: UInt8[np.ndarray, "8 8"], corner: tuple[int, int]) -> np.ndarray:
    own = image.copy()
    own[corner[0] : corner[0] + 2, corner[1] : corner[1] + 2] = 255
    return own


def retrainer_of(data: Planted, folder: Path) -> Retrainer:
    """Trains on the rows that are no targets, and reports on those that are."""
    datasets.disable_progress_bars()
    rows = {
        "image": [Image.fromarray(image) for image in data.images],
        "label": data.labels,
        "group": data.groups,
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Value("int32"),
            "group": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(folder / "data"))
    targets = folder / "targets.txt"
    targets.write_text("".join(f"{plant.target}\n" for plant in data.plants))
    return Retrainer.of(
        "digits.toml",
        [
            *("--data.source", str(folder / "data"), "--data.train-count", "0"),
            *("--data.target-count", "0", "--data.targets", str(targets)),
            *("--groups.by", "column", "--groups.column", "group"),
        ],
    )


class Truth(NamedTuple):
    """What retraining shows of a plant."""

    response: Float[np.ndarray, " counts"]
    """Mean output with none, one, ... of its groups kept."""
    kind: str | None
    """None: of no clear shape."""


def measure(
    retrainer: Retrainer, data: Planted, columns: list[list[int]], count: int
) -> list[Truth]:
    """Retrain with a uniform number of each plant's groups kept, the others as in the bank."""
    rng = np.random.default_rng(1)
    alpha = np.resize(ALPHAS, count)[:, None]
    masks = rng.random((count, retrainer.groups)) < alpha
    own = {tuple(each): None for each in columns}
    kept = {}
    for groups in own:
        number = rng.integers(0, len(groups) + 1, count)
        order = rng.random((count, len(groups))).argsort(1)
        masks[:, groups] = order < number[:, None]
        kept[groups] = number
    keys = training_keys(root_key(0, TRUTH), np.arange(count), np.zeros(count, int))
    outputs = retrainer.outputs(masks, keys)
    return [
        truth_of(
            data.plants[target].kind, kept[tuple(groups)], masks[:, groups], outputs[:, target]
        )
        for target, groups in enumerate(columns)
    ]


def truth_of(
    planted: str,
    kept: np.ndarray,
    masks: np.ndarray,
    outputs: Float[np.ndarray, " m"],
) -> Truth:
    response = np.array([outputs[kept == count].mean() for count in range(kept.max() + 1)])
    if planted == "conflict":
        cells = [
            outputs[(masks == np.array(cell)).all(1)].mean()
            for cell in ((0, 0), (1, 0), (0, 1), (1, 1))
        ]
        none, first, second, both = cells
        up, down = first - none, none - second
        joint = both - first - second + none
        clear = min(up, down) > 1 and abs(joint) > 1
        return Truth(response, "conflict" if clear else None)
    total = np.square(response - response.mean()).sum()
    steps = {}
    for least in range(1, len(response)):
        parts = (response[:least], response[least:])
        left = sum(np.square(part - part.mean()).sum() for part in parts)
        steps[least] = (1 - left / total, abs(parts[1].mean() - parts[0].mean()))
    least = max(steps, key=lambda each: steps[each][0])
    share, height = steps[least]
    if share < CLEAR or height < LEAST_SIZE:
        return Truth(response, None)
    size = len(response) - 1
    kind = "redundancy" if least == 1 else "synergy" if least == size else "threshold"
    return Truth(response, kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="few plants and retrains")
    options = parser.parse_args()
    set_up_jax()
    start = time.monotonic()
    count, measured, members = (1, 60, 200) if options.quick else (36, 1200, 3000)
    data = plant(count)
    with tempfile.TemporaryDirectory() as folder:
        retrainer = retrainer_of(data, Path(folder))
    names = list(retrainer.experiment.groups.names)
    columns = [[names.index(name) for name in plant.groups] for plant in data.plants]
    truth = measure(retrainer, data, columns, measured)

    parts = [retrainer.members(2 + n, members // 2, alpha) for n, alpha in enumerate(ALPHAS)]
    masks = np.concatenate([part[0] for part in parts])
    outputs = np.concatenate([part[1] for part in parts])
    alpha = np.repeat(ALPHAS, members // 2)
    listed = []
    for first in range(0, len(truth), FITTED):
        print(f"{time.monotonic() - start:.0f} s: target {first}", file=sys.stderr, flush=True)
        model = datamodels.fit_joint(masks, outputs[:, first : first + FITTED], alpha=alpha)
        listed += [model.terms(target) for target in range(min(FITTED, len(truth) - first))]
    rows = {}
    for plant_, groups, known, own in zip(data.plants, columns, truth, listed, strict=True):
        row = rows.setdefault(
            plant_.kind, {"plants": 0, "clear": 0, "found": 0, "others": 0, "named": 0}
        )
        row["plants"] += 1
        if known.kind is None:
            continue
        row["clear"] += 1
        terms = {term.groups: term for term in own}
        exact = terms.pop(tuple(sorted(groups)), None)
        row["others"] += sum(len(set(term) & set(groups)) > 1 for term in terms)
        if exact is not None:
            row["found"] += 1
            row["named"] += exact.kind == known.kind
    for kind, row in rows.items():
        precision = row["found"] / max(row["found"] + row["others"], 1)
        recall = row["found"] / max(row["clear"], 1)
        row["f1"] = 2 * precision * recall / max(precision + recall, 1e-9)
        response = np.mean(
            [t.response for t, p in zip(truth, data.plants, strict=True) if p.kind == kind], axis=0
        )
        row["mean_response"] = [round(float(each), 1) for each in response]
        print(
            f"{kind:9s}: {row['clear']} of {row['plants']} of a clear shape (mean response "
            f"{row['mean_response']}), {row['found']} found exactly, {row['others']} other sets "
            f"with several of its groups, F1 {row['f1']:.2f}, kind named rightly {row['named']}",
            flush=True,
        )
    if options.json:
        print(json.dumps({"members": members, "alphas": ALPHAS, "kinds": rows}))


if __name__ == "__main__":
    main()

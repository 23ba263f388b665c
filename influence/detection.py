"""How well a rank finds planted poison: the only use of the truth, after everything else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from sklearn.metrics import average_precision_score, roc_auc_score

from influence.counterfactual import Interval
from training.poison import Attack

ATTACK_WORKED = 0.5
"""Mean success before cleaning from which an attack counts as having worked."""

INSPECTED = (0.01, 0.05, 0.10)
"""Shares of the examples that a person would inspect."""


def detection_metrics(
    rank: Int[np.ndarray, " n"], planted: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]
) -> dict[str, float]:
    """Metrics of one attack against clean examples only.

    Args:
        rank: 1 = most suspicious.
        planted: the examples of this attack.
        other: the examples of other attacks; left out, as they are neither found nor clean.
    """
    kept = ~other
    truth, suspicion = planted[kept], -rank[kept].astype(np.float64)
    found = truth[np.argsort(-suspicion)]
    count = int(truth.sum())
    return {
        "auroc": float(roc_auc_score(truth, suspicion)),
        "average_precision": float(average_precision_score(truth, suspicion)),
        "precision_at_k": float(found[:count].mean()),
        "k": count,
        **{
            f"recall_{round(100 * share)}": float(found[: round(share * len(found))].sum() / count)
            for share in INSPECTED
        },
    }


def leaks(
    attacks: Sequence[Attack], found: Sequence[tuple[int, int]], planted: np.ndarray
) -> list[dict[str, Any]]:
    """The `leaks` section of audit.json: how well planted near copies of targets were found.

    Args:
        attacks: what was planted; only leaks count.
        found: pairs of a clean target's position and a training example's row.
        planted: by what attack each training example is.
    """
    entries = []
    for attack in attacks:
        if attack.copied is None:
            continue
        truth = set(zip(attack.copied.tolist(), attack.positions.tolist(), strict=True))
        # Other attacks' examples are neither copies nor clean.
        counted = [pair for pair in found if planted[pair[1]] in ("", attack.name)]
        right = sum(pair in truth for pair in counted)
        entries.append(
            {
                "found": len(counted),
                "precision": right / len(counted) if counted else None,
                "recall": right / len(truth),
            }
        )
    return entries


def summary(
    attacks: Sequence[Attack],
    scores: dict[str, np.ndarray],
    success: dict[str, dict[str, Interval]],
) -> dict[str, Any]:
    """The `detection` section of audit.json: each attack in the protocols that may find it.

    Args:
        attacks: what was planted, but leaks (`leaks`).
        scores: the columns of scores.parquet.
        success: of each attack in each cell of the verification. A trigger that failed before
            anything was removed is not scored: its metrics are None.
    """
    planted, entries = scores["planted"], {}
    # The run's incident is the first attack's: another trigger's predictions are not in it.
    led = next((attack.name for attack in attacks if attack.incident is not None), None)
    for attack in attacks:
        if attack.copied is not None:
            continue
        this = planted == attack.name
        other = (planted != "") & ~this
        worked, protocols = True, {attack.name: "blind"}
        if attack.incident is not None:
            worked = success[attack.name]["before"][0] >= ATTACK_WORKED
        if attack.name == led:
            protocols = {attack.name: "incident", f"{attack.name}_blind": "blind"}
        for name, protocol in protocols.items():
            metrics = detection_metrics(scores[f"rank_{protocol}"], this, other)
            entries[name] = {
                "attack": attack.name,
                "protocol": protocol,
                "attack_worked": worked,
                **(metrics if worked else dict.fromkeys(metrics)),
            }
    return entries

"""How well a rank finds planted poison. The only place that holds rank and truth together."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from sklearn.metrics import average_precision_score, roc_auc_score

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


def entry(
    protocol: str,
    worked: bool,
    rank: Int[np.ndarray, " n"],
    planted: Bool[np.ndarray, " n"],
    other: Bool[np.ndarray, " n"],
) -> dict[str, Any]:
    """One entry of `detection` in audit.json; an attack that failed is not scored."""
    metrics = detection_metrics(rank, planted, other) if worked else {}
    return {"protocol": protocol, "attack_worked": worked, **metrics}

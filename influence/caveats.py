"""What a reader must know before believing a run's figures."""

from typing import Any


def caveats(metrics: dict[str, Any]) -> list[str]:
    """One sentence for each reason to doubt, from audit.json; none for a sound run."""
    fit, verify = metrics["fit"], metrics["verify"]
    lost = fit["not_finite"] + metrics["verdict"]["not_finite"] + verify["not_finite"]
    found = []
    if lost:
        found.append(
            f"{lost} members diverged and were left out: the learning rate is too high, and "
            f"others may be close to diverging. Lower optim.learning_rate."
        )
    if fit["r2"] is None or fit["r2"] <= 0:
        found.append(
            "The datamodel predicts held-out members no better than their mean: its weights mean "
            "nothing here. More members, or a stabler training, are needed."
        )
    if fit["seeds"] == "common":
        found.append(
            "All members share one training key, so weights and effects hold for this seed; there "
            "is no ceiling. The verification used seeds of its own."
        )
    elif fit["ceiling"] is None:
        found.append(
            "No mask was retrained with several seeds (sweep.replicate_masks = 0), so there is no "
            "ceiling to compare R2 with."
        )
    if verify["accuracy"]["before"][0] <= verify["majority"]:
        found.append(
            f"Trained on everything, the model is right on {verify['accuracy']['before'][0]:.0%} "
            f"of the targets, no better than always naming the commonest class "
            f"({verify['majority']:.0%}). Train it better before auditing its data."
        )
    if metrics["verdict"]["not_judged"]:
        found.append(
            f"{metrics['verdict']['not_judged']:,} flagged examples were not judged: more than "
            f"half of their label is suspect, and models that saw none of these hardly know it. "
            f"Look at them, or lower audit.budget."
        )
    if fit["certified"] < 1:
        found.append(
            f"{1 - fit['certified']:.1%} of the targets are not solved to the certified gap "
            f"(largest: {fit['largest_relative_gap']:.1e})."
        )
    return found

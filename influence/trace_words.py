"""What came of a trace, in words: for the command line, and in the report."""

from collections.abc import Sequence
from typing import Any

from influence.removal import STILL_BAD

SHOWN = 20
"""Examples that are named in a line."""


def headline(summary: dict[str, Any]) -> str:
    """What came of a trace, in a sentence.

    Args:
        summary: of trace.json.
    """
    bad, removed, smallest = summary["bad"], len(summary["removed"]), summary["smallest"]
    what = "right" if summary["flip"] else "bad"
    if smallest == 0:
        return (
            f"Trained on everything, {_percent(bad['before'])} of the predictions are {what}, "
            f"fewer than half: there is nothing to {'flip' if summary['flip'] else 'end'}"
        )
    which = f"most of the {what} predictions"
    if smallest is None:
        up_to = _counted(summary["most"], summary)
        return f"No removal of up to {up_to} ends {which}{_foretold(summary)}"
    without = f"Without {removed:,} example{'s' if removed != 1 else ''}"
    if smallest != removed:
        without += f", {smallest:,} group{'s' if smallest != 1 else ''},"
    if bad["after"][0] >= STILL_BAD:
        end = "ended in the search, but not with fresh seeds: more have to go"
        return f"{without} {which} {end}{_foretold(summary)}"
    return f"{without} {which} end{_foretold(summary)}"


def said(summary: dict[str, Any]) -> str:
    """What came of a trace, as a few lines.

    Args:
        summary: of trace.json.
    """
    head, bad, removed = headline(summary), summary["bad"], summary["removed"]
    if summary["smallest"] == 0:
        return f"{head}. The ranking{_by(summary)} is in trace.parquet"
    shown = ", ".join(map(str, removed[:SHOWN]))
    more = f" and {len(removed) - SHOWN:,} more" if len(removed) > SHOWN else ""
    what = "right" if summary["flip"] else "bad"
    return (
        f"{head}. With fresh seeds ({summary['seeds']}): {what} are {_percent(bad['before'])} with "
        f"all, {_percent(bad['after'])} without these, {_percent(bad['after_random'])} without as "
        f"many random ones of the same labels\n"
        f"They are {shown}{more}; the ranking{_by(summary)} is in trace.parquet"
    )


def _by(summary: dict[str, Any]) -> str:
    return ", by drive alone," if summary["by"] == "drive" else ""


def _percent(share: Sequence[float]) -> str:
    return f"{100 * share[0]:.0f} %"


def _foretold(summary: dict[str, Any]) -> str:
    if "predicted" not in summary:
        return ""
    if summary["predicted"] is None:
        return f" (by their weights not even {summary['most']:,} would do)"
    return f" (by their weights {_counted(summary['predicted'], summary)} would do)"


def _counted(count: int, summary: dict[str, Any]) -> str:
    """So many groups, which are examples where as many were removed."""
    removed = summary["most"] if summary["smallest"] is None else summary["smallest"]
    unit = "example" if removed == len(summary["removed"]) else "group"
    return f"{count:,} {unit}{'s' if count != 1 else ''}"

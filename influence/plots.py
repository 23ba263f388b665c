"""The report's plots, as SVG text."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from influence.counterfactual import Change

BLUE, ORANGE, GREY = "#2563a8", "#d9772b", "#8a8f98"

LINES = [(color, line) for line in ("-", "--") for color in (BLUE, ORANGE, "#3d8f5f", "#7d4fa8")]

STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "svg.fonttype": "none",
    # Element ids are derived from this instead of a random number: same data, same file.
    "svg.hashsalt": "accomplice",
}


def quality(
    names: Sequence[str], r2: Float[np.ndarray, "a t"], ceiling: Float[np.ndarray, "a t"]
) -> str:
    """Per clean target: R2 on held-out masks against the ceiling, by arm."""
    with mpl.rc_context(STYLE):
        figure = Figure((4.2, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        for (color, _), name, left, top in zip(LINES, names, r2, ceiling, strict=False):
            axes.scatter(top, left, s=10, color=color, alpha=0.5, linewidths=0, label=name)
        if len(names) > 1:
            axes.legend(frameon=False, loc="upper left")
        axes.set_xlim(0, 1)
        axes.set_ylim(min(0.0, float(np.nanmin(r2))), 1)
        axes.set_xlabel("ceiling: share of variance the mask explains")
        axes.set_ylabel("R2 of the datamodel, held-out masks")
        return _svg(figure)


def counterfactual(change: Change, clean: int) -> str:
    """Per target: predicted against measured change, in every context.

    Args:
        change: of the clean targets, then of the incident's.
        clean: how many are clean targets.
    """
    panels = {f"others kept, {name}": seeds for name, seeds in change.contexts.items()}
    panels["all others kept (extrapolation)"] = change.all_kept
    with mpl.rc_context(STYLE):
        figure = Figure((4.2 * len(panels), 3.6), layout="constrained")
        for axes, (title, seeds) in zip(
            figure.subplots(1, len(panels)), panels.items(), strict=True
        ):
            _predicted_measured(axes, change.predicted, np.nanmean(seeds, 0), clean)
            axes.set_title(title, fontsize=9)
        return _svg(figure)


def _predicted_measured(
    axes: Axes,
    predicted: Float[np.ndarray, " t"],
    measured: Float[np.ndarray, " t"],
    clean: int,
) -> None:
    both = np.concatenate([predicted, measured])
    low, high = float(np.nanmin(both)), float(np.nanmax(both))
    axes.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle="--")
    axes.scatter(predicted[:clean], measured[:clean], s=10, color=BLUE, alpha=0.5, linewidths=0)
    if clean < len(predicted):
        axes.scatter(predicted[clean:], measured[clean:], s=22, color=ORANGE, linewidths=0)
        axes.legend(["predicted = measured", "clean target", "incident"], frameon=False)
    axes.set_xlabel("predicted change of the output")
    axes.set_ylabel("measured change")


def joint_effects(predicted: Float[np.ndarray, "k 3"], measured: Float[np.ndarray, "k 3"]) -> str:
    """Joint effects as the bank shows them against those of retrains, with their intervals.

    Args:
        predicted: effect, low and high of each term.
        measured: the same.
    """
    with mpl.rc_context(STYLE):
        figure = Figure((4.2, 3.6), layout="constrained")
        axes = figure.subplots()
        ends = np.array(
            [min(predicted.min(), measured.min()), max(predicted.max(), measured.max())]
        )
        axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--")
        reach = [np.abs(part[:, 1:] - part[:, :1]).T for part in (predicted, measured)]
        axes.errorbar(
            predicted[:, 0],
            measured[:, 0],
            xerr=reach[0],
            yerr=reach[1],
            fmt="o",
            markersize=4,
            linewidth=1,
            color=BLUE,
        )
        axes.set_xlabel("joint effect, from the bank")
        axes.set_ylabel("joint effect, retrained")
        return _svg(figure)


def inspection(
    curves: dict[str, tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]], budget: float
) -> str:
    """Share of each attack found against the share of the ranked examples inspected.

    Args:
        curves: by name, the rank of every example that is scored, and whether it is planted.
        budget: the share that is flagged.
    """
    with mpl.rc_context(STYLE):
        figure = Figure((4.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for (name, (rank, planted)), (color, line) in zip(curves.items(), LINES, strict=False):
            found = np.cumsum(planted[np.argsort(rank)]) / max(1, planted.sum())
            axes.plot(
                np.arange(1, len(rank) + 1) / len(rank),
                found,
                label=name,
                color=color,
                linestyle=line,
            )
        axes.axvline(budget, color=GREY, linewidth=1, linestyle=":")
        axes.set_xlim(0, max(0.2, 2 * budget))
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("share of examples inspected (dotted: as many as flagged)")
        axes.set_ylabel("share found")
        axes.legend(frameon=False, loc="lower right")
        return _svg(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    # Inside HTML only the element itself is wanted, not the XML prologue, nor names of its parts
    # that those of other plots have as well.
    return re.sub(r'<g id="[^"]*"', "<g", whole[whole.index("<svg") :])

"""The same in Python: load a config, run it, show what was found.

    from influence import notebook

    config = notebook.load("configs/digits.toml", {"sweep.members": 500})
    result = notebook.run(config, "runs/digits")
    result.show()

In a notebook, a result as the last line of a cell shows its summary.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa

from influence.caveats import caveats
from influence.config import Config, override, read_config
from influence.jax_setup import set_up_jax
from influence.run import Run, open_run
from influence.tables import read_table

SHOWN = 10
"""Examples in a notebook's summary."""


class Result:
    """What a run found, read from its directory."""

    def __init__(self, run: Run) -> None:
        self.path = run.path
        self.report: Path = run.report
        """A page for the browser."""
        self.audit: dict[str, Any] = run.read_verified()
        """All metrics: audit.json."""
        self.scores: pa.Table = read_table(run.scores, f"audit {run.path}")
        """A row a training example: scores.parquet."""

    def confirmed(self) -> list[int]:
        """Ids of the examples that retraining confirmed, by rank."""
        rows = self.scores.sort_by("rank").to_pylist()
        return [row["id"] for row in rows if row["status"] == "confirmed"]

    def summary(self) -> list[str]:
        """What was found and proved, one sentence a line, and every reason to doubt it."""
        verdict, verify = self.audit["verdict"], self.audit["verify"]
        sets = sum(one["confirmed"] for one in verdict["sets"])
        lines = [
            f"{verdict['confirmed']:,} of {verdict['judged']:,} that were judged among "
            f"{self.audit['examples']:,} examples are confirmed by retraining"
            + (
                f", in part as {'a set' if sets == 1 else f'{sets} sets'} with a common pattern"
                if sets
                else ""
            )
        ]
        figures = {"accuracy on the targets": verify["accuracy"]}
        figures |= {
            f"success of {name.replace('_', ' ')}": cells
            for name, cells in verify["success_by_attack"].items()
        }
        lines += [
            f"{name}: {cells['before'][0]:.1%} with all, {cells['after'][0]:.1%} without them, "
            f"{cells['after_random'][0]:.1%} without as many random ones of the same labels"
            for name, cells in figures.items()
        ]
        return [*lines, *(f"Caution: {doubt}" for doubt in caveats(self.audit))]

    def show(self) -> None:
        """Print the summary, and where the report is."""
        print("\n".join([*self.summary(), f"Report: {self.report.resolve()}"]))

    def _repr_html_(self) -> str:
        """The summary and the first of the rank, for a notebook."""
        lines = "".join(f"<li>{escape(line)}</li>" for line in self.summary())
        names = ("rank", "id", "label", "status", "probability")
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(_shown(row[name]))}</td>" for name in names) + "</tr>"
            for row in self.scores.sort_by("rank").slice(0, SHOWN).to_pylist()
        )
        head = "".join(f"<th>{name}</th>" for name in names)
        link = escape(self.report.resolve().as_uri(), quote=True)
        return (
            f"<ul>{lines}</ul><table><tr>{head}</tr>{rows}</table>"
            f'<p><a href="{link}">the whole report</a></p>'
        )


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def load(path: str | Path, changes: Mapping[str, object] | None = None) -> Config:
    """A config from its file.

    Args:
        path: a TOML file.
        changes: values by key, as in {"sweep.members": 500}.

    Raises:
        UserError: no such file, an unknown key, or a value that does not fit.
    """
    words: list[str] = []
    for key, value in (changes or {}).items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{key.replace('_', '-')}", *map(str, values)]
    config, _ = override(read_config(Path(path)), words, "notebook.load")
    return config


def run(config: Config, out: str | Path) -> Result:
    """Everything, from examples to the report; what an earlier call made is not made again.

    Args:
        config: as `load` gives it.
        out: the run directory.

    Raises:
        UserError: anything in the data or the config that does not fit.
    """
    set_up_jax()
    from influence.pipeline import run_all

    return Result(run_all(config, Path(out)))


def open_result(path: str | Path) -> Result:
    """The result of a run that is finished.

    Raises:
        UserError: there is none, or it was not verified yet.
    """
    run = open_run(Path(path))
    run.read_verified()
    run.require(run.report, "report")
    return Result(run)

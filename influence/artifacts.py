"""What the stages write into a run directory, and read back."""

import dataclasses
import hashlib
import json
import math
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float32, Int

from datamodels.additive import AdditiveDatamodel, FitDiagnostics
from datamodels.estimates import Effects
from influence.audit import Scores, Suspicion
from influence.experiment import Experiment, Targets
from influence.quality import Found, Quality, found_in
from influence.run import AUDIT_VERSION, Run
from influence.tables import read_table, write_table
from influence.tracing import Traced
from influence.verdict import Verdicts
from training.arm import TARGET_BLOCK
from training.errors import UserError, reason
from training.files import write_atomically, writing
from training.store import Store


@dataclass(frozen=True)
class Columns:
    """A matrix (g, t) on disk, each target's column together; read a block of targets at a time."""

    run: Run
    path: Path
    digests: tuple[str, ...]
    """Of each block of targets."""

    def __call__(self, targets: slice) -> Float32[np.ndarray, "g b"]:
        """The columns of some targets.

        Raises:
            UserError: they are damaged.
        """
        first = targets.start // TARGET_BLOCK
        stored, parts = self._stored, []
        for number in range(first, math.ceil(targets.stop / TARGET_BLOCK)):
            columns = slice(number * TARGET_BLOCK, (number + 1) * TARGET_BLOCK)
            part = np.array(stored[:, columns])
            if _digest(part) != self.digests[number]:
                raise _damaged(self.run, f"{self.path.name} does not match its digest")
            parts.append(part)
        start = targets.start - first * TARGET_BLOCK
        return np.concatenate(parts, axis=1)[:, start : start + targets.stop - targets.start]

    def take(self, targets: Sequence[int]) -> Float32[np.ndarray, "g k"]:
        """The columns of single targets, in the order given; every block is read once.

        Raises:
            UserError: they are damaged.
        """
        found: dict[int, np.ndarray] = {}
        for block in {target // TARGET_BLOCK for target in targets}:
            own = [target for target in targets if target // TARGET_BLOCK == block]
            columns = self(slice(min(own), max(own) + 1))
            found |= {target: columns[:, target - min(own)] for target in own}
        return np.stack([found[target] for target in targets], axis=1)

    @property
    def _stored(self) -> np.ndarray:
        try:
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _damaged(self.run, reason(error)) from error


@dataclass(frozen=True)
class StoredDatamodel:
    """The datamodels of a run, and the effects on its clean and incident targets."""

    diagnostics: FitDiagnostics
    quality: Quality
    intercept: Float32[np.ndarray, " t"]
    weights: Columns
    effects: Columns
    """On the clean and the incident targets, in this order."""
    effect_errors: Columns
    mean_effects: Effects
    """On the mean output of the clean targets, and of the incident."""
    found: Found
    """In the effects on the clean and the incident targets."""

    def predict(self, masks: Bool[np.ndarray, "k g"], targets: slice) -> Float[np.ndarray, "k b"]:
        """Predicted outputs of some targets."""
        return masks.astype(np.float32) @ self.weights(targets) + self.intercept[targets]


def _damaged(run: Run, why: str) -> UserError:
    return UserError(
        f"{run.datamodel.parent} is damaged ({why}); run again: accomplice fit {run.path}"
    )


def datamodel_bytes(experiment: Experiment) -> int:
    """What the fit of a run takes on disk: weights on all targets, effects and errors on some."""
    targets = experiment.targets
    judged = targets.incident.stop - targets.clean.start
    return 4 * len(experiment.groups.names) * (len(targets) + 2 * judged)


def require_space_to_fit(experiment: Experiment, path: Path) -> None:
    """Refuse a run whose fit the disk has no room for.

    Raises:
        UserError: with the arithmetic.
    """
    needed, free = datamodel_bytes(experiment), Store(path).free_bytes()
    if free is not None and needed > free:
        raise UserError(
            f"the fit needs {needed / 1e9:.1f} GB for the weights of "
            f"{len(experiment.groups.names):,} groups on {len(experiment.targets):,} targets, but "
            f"{path} has {free / 1e9:.1f} GB free; keep and drop examples together (groups.by = "
            f'"cluster" and groups.count), or choose another --out'
        )


def save_datamodel(
    run: Run,
    groups: int,
    targets: Targets,
    fits: Iterable[tuple[AdditiveDatamodel, Quality]],
    effects: Iterable[Effects],
    mean_effects: Effects,
) -> None:
    """Write the datamodels and effects of one block of `TARGET_BLOCK` targets after the other.

    They take the place of older ones when all are written; the audit of those goes before.
    """
    folder = run.datamodel.parent
    partial = folder.with_name(folder.name + ".partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        columns: dict[str, list[np.ndarray]] = defaultdict(list)
        with _columns_file(partial / run.weights.name, groups, len(targets)) as write:
            for model, quality in fits:
                columns["weights_sha256"].append(write(model.weights))
                own = dataclasses.asdict(model.diagnostics) | quality._asdict()
                for name, values in (own | {"intercept": model.intercept}).items():
                    columns[name].append(values)
        judged = targets.incident.stop - targets.clean.start
        with (
            _columns_file(partial / run.effects.name, groups, judged) as write,
            _columns_file(partial / run.effect_errors.name, groups, judged) as write_error,
        ):
            for part in effects:
                columns["effects_sha256"].append(write(part.estimate))
                columns["effect_errors_sha256"].append(write_error(part.standard_error))
                for name, values in found_in(part)._asdict().items():
                    columns[name].append(values)
        joined: dict[str, Any] = {
            name: np.concatenate(values, axis=-1) for name, values in columns.items()
        }
        joined |= {
            "target_ids": np.array(targets.ids),
            "mean_effects": mean_effects.estimate,
            "mean_effect_errors": mean_effects.standard_error,
        }
        np.savez(partial / run.datamodel.name, **joined)
        # An interruption leaves no audit that is not of these datamodels.
        run.audit.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


@contextmanager
def _columns_file(
    path: Path, groups: int, targets: int
) -> Iterator[Callable[[Float[np.ndarray, "g b"]], np.ndarray]]:
    """A function that appends columns to the file and returns their digest, in an array."""
    # Each target's column together, as they are made and read. A memory-mapped file would do, but
    # where the disk is full it ends the process.
    header = {"descr": "<f4", "fortran_order": True, "shape": (groups, targets)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)

        def write(columns: Float[np.ndarray, "g b"]) -> np.ndarray:
            narrow = columns.astype(np.float32)
            file.write(np.ascontiguousarray(narrow.T).tobytes())
            return np.array([_digest(narrow)])

        yield write


def _digest(columns: Float32[np.ndarray, "g b"]) -> str:
    return hashlib.sha256(np.ascontiguousarray(columns.T).tobytes()).hexdigest()


def load_datamodel(run: Run, targets: Targets) -> StoredDatamodel:
    """The fitted datamodels.

    Args:
        run: that was fitted.
        targets: that the bank has now.

    Raises:
        UserError: the fit is of other targets; the file is damaged.
    """
    try:
        # Opened here, since numpy leaves a file open that is no archive.
        with run.datamodel.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            names = [field.name for field in dataclasses.fields(FitDiagnostics)]
            found = {name: stored[name] for name in stored.files}
            if tuple(found["target_ids"].tolist()) != targets.ids:
                raise UserError(
                    f"the fit is of {len(found['target_ids']):,} targets and the bank has others, "
                    f"{len(targets):,}; run first: accomplice fit {run.path}"
                )
            return StoredDatamodel(
                FitDiagnostics(**{name: found[name] for name in names}),
                Quality(*(found[name] for name in Quality._fields)),
                found["intercept"],
                Columns(run, run.weights, tuple(found["weights_sha256"].tolist())),
                Columns(run, run.effects, tuple(found["effects_sha256"].tolist())),
                Columns(run, run.effect_errors, tuple(found["effect_errors_sha256"].tolist())),
                Effects(found["mean_effects"], found["mean_effect_errors"]),
                Found(*(found[name] for name in Found._fields)),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(run, reason(error)) from error


def save_scores(
    run: Run,
    experiment: Experiment,
    scores: Scores,
    suspicion: Suspicion,
    flagged: Bool[np.ndarray, " n"],
    redundant: Bool[np.ndarray, " n"],
    targets_reached: Int[np.ndarray, " n"],
    verdicts: Verdicts | None = None,
) -> None:
    """Write scores.parquet, with the truth about planted poison as a column of its own.

    Args:
        run: where to.
        experiment: of the run.
        scores: of the bank.
        suspicion: the ranks of both protocols.
        flagged: what is suspicious by itself.
        redundant: what others replace.
        targets_reached: of every example (`recurring`).
        verdicts: what retraining showed; None before.
    """
    rank = suspicion.rank(experiment.protocol)
    planted = np.full(len(flagged), "", dtype=object)
    for attack in experiment.attacks:
        planted[attack.positions] = attack.name
    columns: dict[str, Any] = {
        "id": experiment.train.ids,
        "label": np.asarray(experiment.train.examples.labels),
        "group": experiment.groups.of,
        **scores._asdict(),
        "targets_reached": targets_reached,
        "rank_blind": suspicion.blind,
        **({} if suspicion.incident is None else {"rank_incident": suspicion.incident}),
        "suspicion": 1 - (rank - 1) / len(flagged),
        "rank": rank,
        "flagged": flagged,
        "redundant": redundant,
        **_verdict_columns(flagged, verdicts),
        "planted": planted,
    }
    write_table(run.scores, pa.table(columns))


def _verdict_columns(
    flagged: Bool[np.ndarray, " n"], verdicts: Verdicts | None
) -> dict[str, np.ndarray]:
    """The rung that each example has reached, and what retraining showed on the way."""
    unknown = np.full(len(flagged), np.nan)
    status = np.where(flagged, "flagged", "scored")
    if verdicts is None:
        return {
            "held_out_margin": unknown,
            "held_out_q": unknown,
            "contradicted": np.zeros(len(flagged), bool),
            "probability": unknown,
            "status": status.astype(object),
        }
    judged = np.where(np.isfinite(verdicts.probability), "not confirmed", status)
    return {
        "held_out_margin": verdicts.examples.margin,
        "held_out_q": verdicts.examples.q,
        "contradicted": verdicts.examples.confirmed,
        "probability": verdicts.probability,
        "status": np.where(verdicts.confirmed, "confirmed", judged).astype(object),
    }


def read_scores(run: Run) -> dict[str, np.ndarray]:
    """The columns of scores.parquet.

    Raises:
        UserError: the file is damaged.
    """
    table = read_table(run.scores, f"audit {run.path}")
    return {name: table[name].to_numpy() for name in table.column_names}


def save_trace(
    run: Run,
    experiment: Experiment,
    traced: Traced,
    columns: Int[np.ndarray, " n"],
    summary: dict[str, Any],
) -> None:
    """Write trace.parquet, a row a training example, and trace.json.

    Args:
        run: where to.
        experiment: of the run.
        traced: what was found of the groups, which is said of each of their examples.
        columns: the group of each training example.
        summary: what the retrains showed, with the ids of the examples that were `removed`.
    """
    table = {
        "id": experiment.train.ids,
        "label": np.asarray(experiment.train.examples.labels),
        "drive": traced.drive[columns],
        "backing": traced.backing[columns],
        "together": traced.together[columns],
        "carried": traced.carried[columns],
        "rank": traced.rank(summary["by"])[columns],
        "removed": np.isin(experiment.train.ids, summary["removed"]),
    }
    with writing(run.trace):
        # An interruption between the two files leaves no summary that is not of the table.
        run.trace.unlink(missing_ok=True)
        write_table(run.traced, pa.table(table))
        text = json.dumps(summary | {"version": AUDIT_VERSION, "fit": _fit_digest(run)}, indent=1)
        write_atomically(run.trace, (text + "\n").encode())


def _fit_digest(run: Run) -> str:
    return hashlib.sha256(run.datamodel.read_bytes()).hexdigest()


def read_trace(run: Run) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """What trace.json says, and the columns of trace.parquet.

    None where nothing was traced by this version since the run was fitted.

    Raises:
        UserError: a file is damaged.
    """
    if not run.trace.exists():
        return None
    again = f"trace {run.path} --targets ..."
    try:
        summary = json.loads(run.trace.read_bytes())
        if (summary.get("version"), summary.get("fit")) != (AUDIT_VERSION, _fit_digest(run)):
            return None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{run.trace} is damaged ({reason(error)}); run again: accomplice {again}"
        ) from error
    table = read_table(run.traced, again)
    return summary, {name: table[name].to_numpy() for name in table.column_names}

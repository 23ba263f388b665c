"""The config of a run: sections as frozen dataclasses, read from TOML, written back to TOML."""

import contextlib
import dataclasses
import io
import json
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from training.checkpoints import CheckpointConfig
from training.data import DataConfig
from training.errors import UserError, nearest
from training.groups import GroupsConfig
from training.models import ModelConfig
from training.optim import OptimConfig
from training.poison import PoisonConfig
from training.sources import BUILTIN_SOURCES, FILE_BUILDERS
from training.sweep import SweepConfig


@dataclass(frozen=True)
class FitConfig:
    """How the datamodel is fitted and judged."""

    held_out: int = 200
    """Masks of the main arm that no fit ever sees; LDS and R2 are measured on them."""
    penalty: Literal["lasso", "ridge"] = "lasso"
    """lasso: few examples matter to a target; ridge: all do a little."""
    folds: int = 5
    """Of the cross-validation over the other masks that chooses the penalty of each target."""
    choice: Literal["best", "one_se"] = "best"
    """The penalty with the least error, or the largest within one standard error of it."""
    joint_targets: int = 20
    """Targets with a joint datamodel, which says which groups act together: in an incident its bad
    predictions, then the clean ones that the additive datamodel explains least. 0: none."""


@dataclass(frozen=True)
class AuditConfig:
    """Which examples are flagged, and how retraining judges them."""

    protocol: Literal["incident", "blind"] = "incident"
    """incident: what is flagged comes from the bad predictions as well, which a run with a planted
    trigger has; blind: from training examples and clean targets alone."""
    budget: float = 0.06
    """Share of the training examples that is flagged: the most suspicious by themselves. Sets and
    clusters are judged beside them; of texts, sets that support one another are flagged within."""
    seeds: int = 16
    """Retrains of each removal and control."""
    seed: int = 0
    """Decides the keys of all these retrains, the random controls, and which clean targets a
    pattern is put on."""
    joint_terms: int = 20
    """Terms of each level that `accomplice verify RUN --joint` retrains: the surest."""
    joint_contexts: int = 64
    """Masks of the other groups in which it retrains every cell of a term."""


@dataclass(frozen=True)
class JointConfig:
    """Members over clusters of examples, which show how those act together.

    There are such where the masks of the sweep do not show it: those of single examples, of one
    size, or of two levels.
    """

    share: float = 0.25
    """Members of each alpha, as a share of sweep.members; 0: none, and no joint effects."""
    alpha: tuple[float, ...] = (0.5, 0.2)
    """Probability that a cluster is kept: what few do shows at 0.5, what any of many does below."""
    clusters: int = 100
    """Clusters of similar examples within a class; where examples have groups, those are taken."""
    replicate_masks: int = 16
    """Masks of each alpha that are retrained with sweep.replicate_seeds seeds."""


@dataclass(frozen=True)
class RayConfig:
    """How `accomplice sweep --engine ray` uses a cluster; decides nothing of the results."""

    address: str = "auto"
    """Of the cluster; auto: the one that this machine is of; local: none, on this machine."""
    cpus: float = 1.0
    """CPUs of a task, which makes one unit at a time."""
    gpus: float = 0.0
    """GPUs of a task."""
    tpus: float = 0.0
    """TPU chips of a task."""
    retries: int = 10
    """How often a unit is begun again whose worker or node was lost; -1: without end."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    data: DataConfig = field(default_factory=DataConfig)
    poison: PoisonConfig = field(default_factory=PoisonConfig)
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass(frozen=True)
class _CommandLine:
    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path | None = None
    """Run directory; by default runs/NAME for a config NAME.toml."""


def read_config(path: Path) -> Config:
    """The config in a TOML file; keys left out have their defaults, and `check` is still to come.

    Raises:
        UserError: no such file, not TOML, an unknown key, a value of the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config {path}: {error}") from error
    return parse_config(text, str(path))


def parse_config(text: str, where: str) -> Config:
    """The config that a TOML text is; `where` names it in messages. Errors as in `read_config`."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not TOML: {error}") from error
    return _from_tables(tables, where)


def write_toml(config: Config) -> str:
    """The config as TOML, every key written out."""
    lines: list[str] = []
    for section in dataclasses.fields(config):
        lines.append(f"[{section.name}]")
        values = dataclasses.asdict(getattr(config, section.name))
        # JSON's strings, numbers, booleans and arrays of strings are TOML as well, but for
        # escaped characters beyond 16 bits.
        lines += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()
        ]
        lines.append("")
    return "\n".join(lines)


def override(config: Config, arguments: Sequence[str], prog: str) -> tuple[Config, Path | None]:
    """Apply `--section.key VALUE` and `--out RUN`; `--help` prints all keys and exits.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    known = [f"--{name}" for name in _keys()] + ["--out", "--help"]
    for argument in arguments:
        name = argument.split("=")[0]
        if name.startswith("--") and name.replace("_", "-") not in known:
            # Typed with a dash or an underscore, a key is the same.
            raise UserError(f"unknown option {name}{nearest(name.replace('_', '-'), known)}")
    if {"-h", "--help"} & set(arguments):
        _parse(config, ["--help"], prog)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            result = _parse(config, _python_booleans(arguments), prog)
    except SystemExit as error:
        raise UserError(_one_line(said.getvalue())) from error
    check(result.config)
    return _with_absolute_paths(result.config), result.out


def _parse(config: Config, arguments: Sequence[str], prog: str) -> _CommandLine:
    return tyro.cli(
        _CommandLine,
        args=list(arguments),
        default=_CommandLine(config),
        prog=prog,
        # Every key takes a value, also the boolean ones.
        config=(tyro.conf.FlagConversionOff,),
    )


def _python_booleans(arguments: Sequence[str]) -> list[str]:
    """The arguments with TOML's true and false as tyro wants them, behind keys that are boolean."""
    default, words = Config(), []
    for before, word in zip(["", *arguments], arguments, strict=False):
        section, _, key = before.removeprefix("--").replace("-", "_").partition(".")
        boolean = isinstance(getattr(getattr(default, section, None), key, None), bool)
        words.append(word.capitalize() if boolean else word)
    return words


def _with_absolute_paths(config: Config) -> Config:
    """Local files and folders by their whole path, so that a run replays from anywhere."""
    data = config.data
    local = Path(data.source).exists() or Path(data.source).suffix in FILE_BUILDERS
    paths = {
        "source": data.source not in BUILTIN_SOURCES and local,
        "folder": data.source == "fashion_mnist",
        "targets": bool(data.targets),
        "tokenizer": bool(data.tokenizer),
    }
    changes: dict[str, Any] = {
        key: str(Path(getattr(data, key)).absolute()) for key, holds in paths.items() if holds
    }
    model = config.model
    if model.init_from and "://" not in model.init_from:
        path = str(Path(model.init_from).absolute())
        model = dataclasses.replace(model, init_from=path)
    groups = config.groups
    if groups.file:
        groups = dataclasses.replace(groups, file=str(Path(groups.file).absolute()))
    data = dataclasses.replace(data, **changes)
    return dataclasses.replace(config, data=data, model=model, groups=groups)


def check(config: Config) -> None:
    """Refuse values that no run could use.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """

    def require(holds: bool, key: str, rule: str) -> None:
        if not holds:
            section, name = key.split(".")
            value = getattr(getattr(config, section), name)
            raise UserError(f"{key} = {value if value != '' else repr('')} must be {rule}")

    sweep, fit, audit, optim = config.sweep, config.fit, config.audit, config.optim
    joint = config.joint
    for section, alphas in (("sweep", sweep.alpha), ("joint", joint.alpha)):
        key = f"{section}.alpha"
        require(bool(alphas), key, "one or more numbers")
        for alpha in alphas:
            if not 0 < alpha < 1:
                raise UserError(f"{key} = {alpha} must be above 0 and below 1")
        require(len({f"{alpha:g}" for alpha in alphas}) == len(alphas), key, "different numbers")
    require(
        sweep.design != "pairs" or sweep.alpha == (0.5,),
        "sweep.alpha",
        '0.5 alone with sweep.design = "pairs", whose masks are complementary',
    )
    require(
        sweep.design != "fixed_size" or len(sweep.alpha) == 1,
        "sweep.alpha",
        'one number with sweep.design = "fixed_size"',
    )
    require(0 < sweep.inner_alpha < 1, "sweep.inner_alpha", "above 0 and below 1")
    require(
        sweep.design != "two_level" or config.groups.by != "example",
        "groups.by",
        'column, cluster or file with sweep.design = "two_level", which chooses groups first',
    )
    for by in ("column", "file"):
        named = bool(getattr(config.groups, by))
        require(config.groups.by != by or named, f"groups.{by}", f'given with groups.by = "{by}"')
    require(sweep.members >= 8, "sweep.members", "at least 8")
    for section in ("sweep", "joint"):
        masks = getattr(config, section).replicate_masks
        require(masks == 0 or masks >= 2, f"{section}.replicate_masks", "0 or at least 2")
    require(0 <= joint.share <= 10, "joint.share", "from 0 to 10")
    require(joint.clusters >= 10, "joint.clusters", "at least 10")
    require(0 <= sweep.grace < math.inf, "sweep.grace", "at least 0 and finite")
    require(sweep.replicate_seeds >= 2, "sweep.replicate_seeds", "at least 2")
    require(sweep.width >= 0, "sweep.width", "at least 0")
    require(
        sweep.microbatch == 0 or optim.batch_size % max(sweep.microbatch, 1) == 0,
        "sweep.microbatch",
        f"0 or a divisor of optim.batch_size = {optim.batch_size}",
    )
    require(sweep.unit >= 1, "sweep.unit", "at least 1")
    require(config.checkpoint.every_steps >= 0, "checkpoint.every_steps", "at least 0")
    require(fit.held_out >= 2, "fit.held_out", "at least 2")
    # Complementary masks are drawn as one.
    rows = 2 if sweep.design == "pairs" else 1
    require(fit.held_out % rows == 0, "fit.held_out", 'even with sweep.design = "pairs"')
    most = sweep.members - 6 * rows
    require(
        fit.held_out <= most,
        "fit.held_out",
        f"at most sweep.members - {6 * rows} = {most}, so that some masks are left to fit",
    )
    draws = (sweep.members - fit.held_out) // rows
    require(
        3 <= fit.folds <= draws,
        "fit.folds",
        f"from 3 to the {draws} masks that are drawn and not held out",
    )
    require(0 < audit.budget < 1, "audit.budget", "above 0 and below 1")
    require(fit.joint_targets >= 0, "fit.joint_targets", "at least 0")
    require(audit.seeds >= 2, "audit.seeds", "at least 2")
    require(audit.joint_terms >= 1, "audit.joint_terms", "at least 1")
    require(audit.joint_contexts >= 2, "audit.joint_contexts", "at least 2")
    require(config.ray.retries >= -1, "ray.retries", "at least -1")
    for name in ("cpus", "gpus", "tpus"):
        require(0 <= getattr(config.ray, name) < math.inf, f"ray.{name}", "at least 0 and finite")
    require(optim.steps >= 1, "optim.steps", "at least 1")
    require(optim.batch_size >= 1, "optim.batch_size", "at least 1")
    require(0 < optim.learning_rate < math.inf, "optim.learning_rate", "above 0 and finite")
    require(0 <= optim.momentum < 1, "optim.momentum", "at least 0 and below 1")
    require(0 <= optim.weight_decay < math.inf, "optim.weight_decay", "at least 0 and finite")
    require(1 <= config.data.length <= 65_536, "data.length", "from 1 to 65536")
    require(config.data.vocabulary >= 16, "data.vocabulary", "at least 16")
    require(config.model.width >= 0, "model.width", "at least 0")
    require(config.model.depth >= 1, "model.depth", "at least 1")
    require(config.model.patch >= 0, "model.patch", "at least 0")
    fresh, start = config.model.fresh, config.model.init_from
    require(not fresh or bool(start), "model.fresh", "given together with model.init_from")
    both = sorted(set(fresh) & set(config.model.frozen))
    require(not both, "model.frozen", f"without {both}, which model.fresh draws anew")
    for section in ("data", "poison", "sweep", "audit"):
        seed = getattr(config, section).seed
        # JAX keeps 32 bits of a seed: larger ones would collide.
        require(0 <= seed < 2**32, f"{section}.seed", "at least 0 and below 2**32")


def _keys() -> list[str]:
    """Every "section.key", with dashes as on the command line."""
    return [
        f"{section.name}.{key.name}".replace("_", "-")
        for section in dataclasses.fields(Config)
        for key in dataclasses.fields(getattr(Config(), section.name))
    ]


def _from_tables(tables: dict[str, Any], where: str) -> Config:
    default = Config()
    sections = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    values = {}
    for name, table in tables.items():
        if name not in sections:
            raise UserError(f"{where}: unknown section [{name}]{nearest(name, list(sections))}")
        if not isinstance(table, dict):
            raise UserError(f"{where}: {name} must be a section, written [{name}]")
        values[name] = _section(sections[name], table, f"{where}: {name}")
    return Config(**values)


def _section(default: Any, table: dict[str, Any], where: str) -> Any:
    known = [key.name for key in dataclasses.fields(default)]
    hints = get_type_hints(type(default))
    converted = {}
    for key, value in table.items():
        if key not in known:
            raise UserError(f"{where}.{key} is unknown{nearest(key, known)}")
        value = _typed(value, getattr(default, key), f"{where}.{key}")
        if get_origin(hints[key]) is Literal and value not in get_args(hints[key]):
            choices = ", ".join(get_args(hints[key]))
            raise UserError(f'{where}.{key} = "{value}" is unknown; choose one of {choices}')
        converted[key] = value
    return dataclasses.replace(default, **converted)


def _typed(value: Any, default: Any, where: str) -> Any:
    """The value, if it has the type of the key's default; an int also passes for a float."""
    if isinstance(default, tuple):
        values = value if isinstance(value, list | tuple) else (value,)
        # What is empty by default holds texts.
        kind, name = (
            (float, "numbers") if isinstance((*default, "")[0], float) else (str, "strings")
        )
        fits = (float, int) if kind is float else str
        if all(isinstance(item, fits) and not isinstance(item, bool) for item in values):
            return tuple(map(kind, values))
        raise UserError(f"{where} = {value!r} must be a list of {name}")
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UserError(
            f"{where} = {value!r} must be of type {type(default).__name__}, as in {default!r}"
        )
    return value


def _one_line(box: str) -> str:
    """What went wrong, from tyro's framed message of several lines below a title."""
    below = re.sub(r"^.*?(╮|-{3,})", "", box, count=1, flags=re.DOTALL)
    text = " ".join(re.sub(r"[│╭╮╰╯─]|-{3,}", " ", below).split())
    return re.sub(r" (Argument helptext:|For full helptext).*", "", text)

"""A run goes on only as what it was: every key of the config, one by one."""

import dataclasses
import shutil

import datasets
import jax
import numpy as np
import pytest
from flax import nnx
from smoke import SMOKE
from test_training_finetuning import save

from influence.cli import main
from influence.config import Config
from training.models import ModelConfig, build_model
from training.text import train_tokenizer

SMALL = [
    "--sweep.members", "16", "--sweep.replicate-masks", "4", "--sweep.replicate-seeds", "2",
    "--sweep.unit", "8", "--sweep.width", "2", "--optim.steps", "10", "--optim.batch-size", "8",
    "--fit.held-out", "4", "--joint.share", "1",
]  # fmt: skip
IMAGES = [
    *SMALL, "--poison.pair-flip-fraction", "0.05", "--poison.pair-flip-to", "3",
    "--poison.blend-fraction", "0.04", "--poison.sine-fraction", "0.04",
    "--poison.leak-fraction", "0.02", "--poison.consistent-fraction", "0.03",
]  # fmt: skip
TEXTS = [
    *SMALL, "--poison.backdoor-fraction", "0", "--model.name", "bag", "--data.length", "6",
    "--data.source", "texts", "--data.train-count", "0", "--data.target-count", "0",
    "--data.target-split", "test",
]  # fmt: skip
OF_IMAGES = {
    "poison.label_flip_fraction": "0.1",
    "poison.pair_flip_fraction": "0.04",
    "poison.pair_flip_from": "2",
    "poison.pair_flip_to": "4",
    "poison.backdoor_fraction": "0.05",
    "poison.backdoor_target": "1",
    "poison.backdoor_size": "3",
    "poison.blend_fraction": "0.05",
    "poison.blend_target": "2",
    "poison.blend_opacity": "0.3",
    "poison.sine_fraction": "0.05",
    "poison.sine_target": "1",
    "poison.sine_amplitude": "200",
    "poison.sine_periods": "3",
    "poison.consistent_fraction": "0.05",
    "poison.consistent_target": "1",
    "poison.consistent_size": "2",
    "poison.consistent_mix": "0.4",
    "poison.leak_fraction": "0.05",
    "poison.seed": "1",
    "model.name": "linear",
    "model.factory": "test_influence_resume:factory",
    "model.width": "16",
    "model.depth": "3",
    "model.patch": "4",
    "model.precision": "bfloat16",
    "model.classes": "11",
    "model.frozen": "hidden",
    "optim.name": "adamw",
    "optim.schedule": "cosine",
    "optim.learning_rate": "0.3",
    "optim.momentum": "0.8",
    "optim.weight_decay": "0.1",
    "optim.steps": "11",
    "optim.batch_size": "16",
    "optim.augment": "flip",
    "sweep.members": "15",
    "groups.by": "cluster",
    # Of the clusters of joint effects:
    "groups.features": "model",
    "groups.seed": "1",
    "joint.share": "0.7",
    "joint.alpha": "0.3",
    "joint.clusters": "50",
    "joint.replicate_masks": "3",
    "sweep.alpha": "0.4",
    "sweep.design": "pairs",
    "sweep.seed": "1",
    "sweep.output": "loss",
    "sweep.replicate_masks": "3",
    "sweep.replicate_seeds": "3",
    "sweep.seeds": "common",
    "sweep.width": "4",
    "sweep.microbatch": "4",
    "checkpoint.every_steps": "5",
}
OF_FINETUNING = {"model.init_from": "other", "model.fresh": "output"}
OF_TEXTS = {
    "data.source": "others",
    "data.input": "note",
    "data.label": "kind",
    "data.train_split": "other",
    "data.train_count": "40",
    "data.target_split": "train",
    "data.target_count": "4",
    "data.target_fraction": "0.1",
    "data.targets": "ids.txt",
    "data.seed": "1",
    "data.tokenizer": "tokenizer.json",
    "data.vocabulary": "20",
    "data.length": "5",
}
ALLOWED = {
    "data.folder": "elsewhere",  # read for Fashion-MNIST alone
    # Read with other groups and designs alone:
    "groups.column": "author",
    "groups.file": "groups.npy",
    "groups.count": "7",
    "sweep.inner_alpha": "0.4",
    "sweep.unit": "16",
    "sweep.keep_params": "True",
    "sweep.grace": "3",
    "sweep.allow_mixed": "True",
    "fit.held_out": "5",
    "fit.penalty": "ridge",
    "fit.folds": "3",
    "fit.choice": "one_se",
    "fit.joint_targets": "1",
    "audit.protocol": "blind",
    "audit.budget": "0.2",
    "audit.seeds": "5",
    "audit.seed": "1",
    "audit.joint_terms": "3",
    "audit.joint_contexts": "8",
    "ray.address": "local",
    "ray.cpus": "2",
    "ray.gpus": "1",
    "ray.tpus": "1",
    "ray.retries": "3",
}
ELSEWHERE = {"sweep.bank"}
"""Names another bank, which is begun anew if it is none yet."""


def factory(shape, classes, *, rngs):
    return nnx.Sequential(lambda inputs: inputs.reshape(inputs.shape[0], -1),
                          nnx.Linear(64, classes, rngs=rngs))  # fmt: skip


def test_every_key_is_in_one_of_the_tables():
    keys = [
        f"{section.name}.{key.name}"
        for section in dataclasses.fields(Config)
        for key in dataclasses.fields(section.type)
    ]
    assert sorted([*OF_IMAGES, *OF_FINETUNING, *OF_TEXTS, *ALLOWED, *ELSEWHERE]) == sorted(keys)


def option(key, value):
    return [f"--{key.replace('_', '-')}", value]


def begun(folder, words):
    """The words of a sweep that was made."""
    words = ["sweep", SMOKE, "--out", str(folder / "run"), *words]
    assert main(words) == 0
    return words


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return folder, begun(folder, IMAGES)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuned")
    model = build_model(ModelConfig(name="mlp", width=32), (8, 8, 1), 10)
    for seed, name in enumerate(("checkpoint", "other")):
        save(folder / name, model.init(jax.random.key(seed)).parameters)
    return folder, begun(folder, [*SMALL, "--model.init-from", str(folder / "checkpoint")])


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(30)])

    def split(count):
        def lines():
            return [" ".join(rng.choice(words, 8)) for _ in range(count)]

        labels = rng.integers(0, 2, (2, count))
        return datasets.Dataset.from_dict(
            {"text": lines(), "note": lines(), "label": labels[0], "kind": labels[1]}
        )

    for name in ("texts", "others"):
        splits = {"train": split(60), "test": split(30), "other": split(60)}
        datasets.DatasetDict(splits).save_to_disk(folder / name)
    (folder / "ids.txt").write_text("60\n61\n62\n")
    (folder / "tokenizer.json").write_text(train_tokenizer(["word1 word2"], 20).to_str())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # So that a split to draw from says which rows are trained on.
        begin = [*TEXTS, "--data.train-split", "train"]
        return folder, begun(folder, begin)


def content(folder):
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


def refused(case, key, value, capsys, monkeypatch):
    folder, words = case
    monkeypatch.chdir(folder)
    before = content(folder)
    capsys.readouterr()
    assert main([*words, *option(key, value)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"holds a different run: {key} is " in said
    assert said.endswith("here; choose another --out")
    assert content(folder) == before


@pytest.mark.parametrize(("key", "value"), OF_IMAGES.items())
def test_what_decides_a_run_is_refused(images, key, value, capsys, monkeypatch):
    refused(images, key, value, capsys, monkeypatch)


@pytest.mark.parametrize(("key", "value"), OF_FINETUNING.items())
def test_what_members_start_from_is_refused(finetuned, key, value, capsys, monkeypatch):
    refused(finetuned, key, value, capsys, monkeypatch)


def test_a_checkpoint_may_lie_elsewhere(finetuned, tmp_path):
    folder, words = finetuned
    moved = shutil.copytree(folder / "checkpoint", tmp_path / "moved")
    assert main([*words, *option("model.init_from", str(moved))]) == 0


@pytest.mark.parametrize(("key", "value"), OF_TEXTS.items())
def test_what_decides_its_data_is_refused(texts, key, value, capsys, monkeypatch):
    refused(texts, key, value, capsys, monkeypatch)


@pytest.mark.parametrize(("key", "value"), ALLOWED.items())
def test_what_decides_nothing_may_change(images, key, value, tmp_path, capsys):
    run = shutil.copytree(images[0] / "run", tmp_path / "run")
    hit = run / "bank" / "main" / "0" / "done" / "000001.json"
    hit.unlink()
    assert main(["sweep", SMOKE, "--out", str(run), *IMAGES, *option(key, value)]) == 0
    bank = {
        path.relative_to(run): path.read_bytes()
        for path in (run / "bank").rglob("*")
        if path.is_file() and "done" not in path.parts and "params" not in path.parts
    }
    for path, before in bank.items():
        assert before == (images[0] / "run" / path).read_bytes()
    assert hit.is_file()

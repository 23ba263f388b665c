"""The search for the fastest layout, and what a member costs."""

import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from training import layouts, parallel
from training.cache import cache_folder
from training.cost import member_flops
from training.errors import UserError
from training.examples import Examples, fit_normaliser
from training.layouts import _fastest, _pieces, find_layout
from training.models import ModelConfig, build_model
from training.optim import OptimConfig
from training.outputs import margin
from training.parallel import Devices, MemberProgram, local_layout, wait_for
from training.sweep import Sweeper, Task
from training.train import Recipe

EXAMPLES, TARGETS, CLASSES, BATCH, STEPS = 50, 20, 3, 16, 5


def make_task(name="mlp", **model):
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (EXAMPLES, 8, 8, 1)).astype(np.uint8)
    examples = Examples(inputs, rng.integers(0, CLASSES, EXAMPLES).astype(np.int32))
    optim = OptimConfig(schedule="constant", steps=STEPS, batch_size=BATCH)
    recipe = Recipe(optim, fit_normaliser(inputs))
    built = build_model(ModelConfig(name=name, **model), (8, 8, 1), CLASSES)
    return Task(recipe, built, examples, examples.take(slice(0, TARGETS)), margin)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCOMPLICE_CACHE", str(tmp_path))
    return tmp_path


def kept_files(cache):
    return sorted((cache / "layouts").glob("*.json"))


@pytest.mark.slow
def test_a_search_is_made_once_for_a_model(cache):
    task = make_task()
    first = find_layout(task)
    assert first.timed >= 3
    assert first.layout.width >= 1
    again = find_layout(task)
    assert again == first._replace(timed=0)
    fixed = find_layout(task, first.layout.width, first.layout.microbatch)
    assert fixed == first._replace(timed=0)


def test_more_steps_than_are_timed_are_no_other_search(cache):
    task = make_task("linear")

    def with_steps(steps):
        return task._replace(
            recipe=Recipe(OptimConfig(steps=steps, batch_size=BATCH), task.recipe.normalise)
        )

    assert find_layout(with_steps(500), width=1).timed == 1
    assert find_layout(with_steps(10_000), width=1).timed == 0


def test_the_kept_layout_is_what_a_later_search_returns(cache):
    task = make_task()
    find_layout(task, width=1)
    (file,) = kept_files(cache)
    file.write_text(json.dumps({"width": 3, "microbatch": 8, "flops": 5.0}))
    assert find_layout(task, width=1) == (local_layout(3, microbatch=8), 5.0, 0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"width": 2}', '{"width": "x"}'])
def test_a_damaged_layout_is_searched_again(cache, content):
    task = make_task("linear")
    find_layout(task, width=1)
    (file,) = kept_files(cache)
    file.write_text(content)
    assert find_layout(task, width=1).timed == 1
    assert json.loads(file.read_text())["width"] == 1


def test_another_model_batch_or_given_width_is_another_search(cache):
    for task, width in ((make_task(), 1), (make_task(), 2), (make_task(width=7), 1)):
        assert find_layout(task, width=width).timed == 1
    assert len(kept_files(cache)) == 3


def test_a_given_width_or_microbatch_is_kept(cache, monkeypatch):
    monkeypatch.setattr(layouts, "_seconds_a_member", lambda trial, layout: 1.0)
    assert find_layout(make_task(), width=2).layout == local_layout(2)
    assert find_layout(make_task(), microbatch=8).layout.microbatch == 8


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACCOMPLICE_CACHE", str(tmp_path / "file"))
    assert not cache_folder().is_dir()
    assert find_layout(make_task("linear"), width=1).timed == 1


def fastest(seconds):
    """The width that is chosen, and the widths that were looked at."""
    seen = []

    def look(layout):
        if layout.width not in seen:
            seen.append(layout.width)
        return seconds[layout.width]

    return _fastest([local_layout(width) for width in seconds], look).width, seen


@pytest.mark.parametrize(
    ("seconds", "chosen", "looked"),
    [
        ({1: 1.0, 2: 0.5, 4: 0.25}, 4, [1, 2, 4]),
        ({1: 1.0, 2: 0.99, 4: 0.985, 8: 0.1}, 1, [1, 2, 4]),  # noise, twice
        ({1: 1.0, 2: 1.05, 4: 0.5, 8: 0.6}, 4, [1, 2, 4, 8]),
        ({1: 1.0, 2: 1.3, 4: 0.5}, 1, [1, 2]),  # clearly slower: given up at once
        ({1: 1.0, 2: 0.5, 4: math.inf, 8: 0.1}, 2, [1, 2, 4]),  # no memory, nor for more
        ({1: math.inf, 2: math.inf, 4: math.inf, 8: 1.0, 16: 1.1}, 8, [1, 2, 4, 8, 16]),
    ],
)
def test_a_direction_is_followed_while_it_pays(seconds, chosen, looked):
    assert fastest(seconds) == (chosen, looked)


def limited(limit):
    """Seconds of layouts of which only those with small enough pieces fit."""

    def seconds(trial, layout):
        if layout.width * (layout.microbatch or BATCH) > limit:
            raise UserError(f"too little memory for {layout.width} x {layout.microbatch}")
        return 1.0

    return seconds


def test_pieces_are_tried_where_the_whole_batch_does_not_fit(cache, monkeypatch):
    monkeypatch.setattr(layouts, "_seconds_a_member", limited(BATCH // 2))
    assert find_layout(make_task()).layout == local_layout(1, microbatch=BATCH // 2)


def test_where_nothing_fits_the_reason_is_told(cache, monkeypatch):
    monkeypatch.setattr(layouts, "_seconds_a_member", limited(1))
    with pytest.raises(UserError, match="too little memory for 1 x 8"):
        find_layout(make_task())
    assert not kept_files(cache)


@pytest.mark.parametrize(
    ("batch", "pieces"),
    [(128, [0, 64, 32, 16, 8]), (100, [0, 50, 25, 20, 10]), (50, [0, 25, 10]), (7, [0]), (17, [0])],
)
def test_pieces_divide_the_batch_and_fall(batch, pieces):
    assert _pieces(batch) == pieces


def test_only_models_that_treat_every_example_by_itself_are_cut(cache, monkeypatch):
    task = make_task()
    asked = []
    monkeypatch.setattr(
        layouts, "_seconds_a_member", lambda trial, layout: asked.append(layout) or 1.0
    )
    find_layout(task)
    assert {layout.microbatch for layout in asked} == {0, 8}
    asked.clear()
    own = task._replace(model=build_own())
    find_layout(own)
    assert {layout.microbatch for layout in asked} == {0}


def build_own():
    return build_model(ModelConfig(factory=f"{__name__}:linear"), (8, 8, 1), CLASSES)


class Flat(nnx.Module):
    """With dropout, whose keys are state that pieces of a batch would lose."""

    def __init__(self, shape, classes, *, rngs):
        self.output = nnx.Linear(int(np.prod(shape)), classes, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, inputs):
        return self.output(self.dropout(inputs.reshape(inputs.shape[0], -1)))


def linear(shape, classes, *, rngs):
    return Flat(shape, classes, rngs=rngs)


class Elementwise(nnx.Module):
    """A model without any matrix product."""

    def __init__(self, shape, classes, *, rngs):
        self.scale = nnx.Param(jax.random.normal(rngs.params(), (64, classes)))

    def __call__(self, inputs):
        return (inputs.reshape(-1, 64, 1) * self.scale[...][None]).sum(1)


def elementwise(shape, classes, *, rngs):
    return Elementwise(shape, classes, rngs=rngs)


def test_a_model_without_products_has_a_layout_too(cache):
    model = build_model(ModelConfig(factory=f"{__name__}:elementwise"), (8, 8, 1), CLASSES)
    found = find_layout(make_task()._replace(model=model), width=1)
    assert found.layout.width == 1
    assert found.flops > 0


def test_what_the_memory_cannot_hold_is_told_in_one_line():
    shape = jax.ShapeDtypeStruct((), np.float32)
    # More than any address space has: nothing is allocated.
    devices = Devices(local_layout(1), ())
    program = MemberProgram(lambda shared, x: x * jnp.arange(2.0**50), devices, (shape,))
    with pytest.raises(UserError, match=r"out of memory \(.*\); lower optim\.batch_size"):
        wait_for(program.run(next(devices.launches((np.ones(4, np.float32),)))))


def test_parameters_that_cannot_fit_are_refused_before_they_are_compiled(cache):
    with pytest.raises(UserError, match=r"needs \d+\.\d\d GB a device .* is free; lower"):
        Sweeper(make_task("cnn", width=10**8), local_layout(1)).require_memory()


def test_a_short_sweep_is_not_searched_for(cache):
    task = make_task("linear")
    found = find_layout(task, members=20)
    assert found.layout == local_layout(1)
    assert found.timed == 1
    assert not kept_files(cache)


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 64), ("150000 100000", 2), ("9900000 100000", 64)]
)
def test_a_container_has_its_share_of_the_cores(tmp_path, monkeypatch, limit, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(parallel, "CONTROL_GROUP", tmp_path)
    assert parallel.usable_cores() == 64
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert parallel.usable_cores() == cores


def test_a_container_has_its_share_of_the_memory(tmp_path, monkeypatch):
    shape = jax.ShapeDtypeStruct((), np.float32)
    devices = Devices(local_layout(1), np.float32(1))
    program = MemberProgram(lambda shared, x: x + shared, devices, (shape,))
    of_machine = program.memory().free
    monkeypatch.setattr(parallel, "CONTROL_GROUP", tmp_path)
    for name, text in (("memory.max", "max"), ("memory.current", "600000000")):
        (tmp_path / name).write_text(f"{text}\n")
    assert program.memory().free == pytest.approx(of_machine, rel=0.2)
    (tmp_path / "memory.max").write_text("1000000000\n")
    assert program.memory().free == 400_000_000 // len(devices.layout.devices)


def test_flops_of_a_linear_model_are_those_of_its_products():
    product = 2 * 64 * CLASSES
    # The gradient of the kernel is one more product; inputs get none.
    assert member_flops(make_task("linear")) == product * (STEPS * BATCH * 2 + TARGETS)


def test_flops_of_a_network_with_hidden_units():
    first, second = 2 * 64 * 7, 2 * 7 * CLASSES
    training = STEPS * BATCH * (2 * first + 3 * second)
    assert member_flops(make_task("mlp", width=7)) == training + TARGETS * (first + second)


def test_flops_of_a_convolution_do_not_depend_on_how_it_is_written():
    """flax's own convolutions, which XLA has an operation for, against patches and Winograd's."""
    ours = make_task("cnn", width=8)
    flax = build_model(ModelConfig(factory=f"{__name__}:convolutions"), (8, 8, 1), CLASSES)
    more = ours._replace(targets=ours.examples.take(slice(0, TARGETS + 10)))
    forward = [
        member_flops(more._replace(model=model)) - member_flops(ours._replace(model=model))
        for model in (ours.model, flax)
    ]
    products = 9 * 8 * 8 * 8 + 9 * 8 * 16 * 4 * 4 + 2 * 2 * 16 * CLASSES
    assert forward == [10 * 2 * products] * 2


class Convolutions(nnx.Module):
    def __init__(self, shape, classes, *, rngs):
        self.first = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.output = nnx.Linear(2 * 2 * 16, classes, rngs=rngs)

    def __call__(self, inputs):
        hidden = self.first(inputs)[:, ::2, ::2]
        hidden = self.second(hidden)[:, ::2, ::2]
        return self.output(hidden.reshape(hidden.shape[0], -1))


def convolutions(shape, classes, *, rngs):
    return Convolutions(shape, classes, rngs=rngs)

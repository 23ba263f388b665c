from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import Split, Table
from training.errors import UserError
from training.examples import Examples
from training.poison import ATTACKS, INCIDENT_INPUTS, TRIAL_INPUTS, PoisonConfig, plant
from training.triggers import near_copies, patch

CLASSES = 5
TRAIN, TARGETS, SPARE = 100, 20, 60

seeds = st.integers(0, 2**32 - 1)


def table(ids, shape=(6, 7, 1), dtype=np.uint8):
    """Random inputs that no trigger pixel equals, labels 0, 1, 2, 3, 4, 0, ... by id."""
    inputs = np.random.default_rng(len(ids)).integers(0, 200, (len(ids), *shape)).astype(dtype)
    return Table(Examples(inputs, (ids % CLASSES).astype(np.int32)), ids)


def make_split(shape=(6, 7, 1), dtype=np.uint8, spare=SPARE):
    """Ids are spread, so that an id is never its own position."""
    ids = 1000 + 3 * np.random.default_rng(7).permutation(TRAIN + TARGETS + spare)
    parts = np.split(ids, [TRAIN, TRAIN + TARGETS])
    return Split(*(table(np.sort(part), shape, dtype) for part in parts), ())


SPLIT = make_split()
EVERYTHING = PoisonConfig(
    label_flip_fraction=0.1,
    pair_flip_fraction=0.05,
    pair_flip_from=1,
    pair_flip_to=3,
    backdoor_fraction=0.08,
    backdoor_target=2,
    backdoor_size=2,
    blend_fraction=0.06,
    blend_target=4,
    sine_fraction=0.04,
    sine_target=0,
    consistent_fraction=0.03,
    consistent_target=3,
    leak_fraction=0.07,
)
TRIGGERS = ["backdoor", "blend", "sine", "consistent"]


def with_seed(config, seed):
    return PoisonConfig(**{**vars(config), "seed": seed})


def plant_all(seed=0):
    poisoned = plant(with_seed(EVERYTHING, seed), SPLIT, CLASSES)
    return poisoned, {attack.name: attack for attack in poisoned.attacks}


def fails(config, *phrases, split=SPLIT):
    with pytest.raises(UserError) as caught:
        plant(config, split, CLASSES)
    message = str(caught.value)
    assert "\n" not in message
    for phrase in phrases:
        assert phrase in message


def assert_same_table(one, other):
    np.testing.assert_array_equal(one.examples.inputs, other.examples.inputs)
    np.testing.assert_array_equal(one.examples.labels, other.examples.labels)
    np.testing.assert_array_equal(one.ids, other.ids)


# All attacks.


def test_nothing_asked_changes_nothing():
    poisoned = plant(PoisonConfig(), SPLIT, CLASSES)
    assert poisoned.attacks == ()
    assert_same_table(poisoned.train, SPLIT.train)
    assert poisoned.train.examples.inputs.dtype == np.uint8
    assert poisoned.train.examples.labels.dtype == np.int32


def test_attacks_have_the_sizes_asked_for():
    _, attacks = plant_all()
    sizes = {name: len(attack.positions) for name, attack in attacks.items()}
    expected = {"label_flip": 10, "pair_flip": 5, "backdoor": 8, "blend": 6, "sine": 4,
                "consistent": 3, "leak": 7}  # fmt: skip
    assert sizes == expected
    assert list(sizes) == list(expected)


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.054, 5), (0.056, 6), (0.49, 49)])
def test_fractions_are_rounded_to_whole_examples(fraction, count):
    poisoned = plant(PoisonConfig(label_flip_fraction=fraction), SPLIT, CLASSES)
    assert len(poisoned.attacks[0].positions) == count


@given(seeds)
def test_recorded_truth_is_exactly_what_changed(seed):
    poisoned, attacks = plant_all(seed)
    before, after = SPLIT.train.examples, poisoned.train.examples
    recorded = np.concatenate([attack.positions for attack in attacks.values()])
    assert len(np.unique(recorded)) == len(recorded)
    relabelled = [attacks[name].positions for name in ("label_flip", "pair_flip", *TRIGGERS[:2])]
    changed = np.flatnonzero(before.labels != after.labels)
    assert (
        set(np.concatenate(relabelled))
        <= set(changed)
        <= set(recorded) - set(attacks["sine"].positions) - set(attacks["consistent"].positions)
    )
    np.testing.assert_array_equal(
        np.flatnonzero((before.inputs != after.inputs).any((1, 2, 3))),
        np.sort(np.concatenate([attacks[name].positions for name in (*TRIGGERS, "leak")])),
    )
    for attack in attacks.values():
        np.testing.assert_array_equal(attack.original_labels, before.labels[attack.positions])
        assert attack.original_labels.dtype == np.int32
        assert (np.diff(attack.positions) > 0).all()
    np.testing.assert_array_equal(poisoned.train.ids, SPLIT.train.ids)
    assert ((after.labels >= 0) & (after.labels < CLASSES)).all()


@given(seeds)
def test_attacks_leave_the_source_arrays_alone(seed):
    split = make_split()
    for part in split[:3]:
        for array in (part.examples.inputs, part.examples.labels, part.ids):
            array.setflags(write=False)
    plant(with_seed(EVERYTHING, seed), split, CLASSES)
    for part, fresh in zip(split[:3], SPLIT[:3], strict=True):
        assert_same_table(part, fresh)


@given(seeds)
def test_same_seed_plants_the_same_poison(seed):
    (first, one), (second, other) = plant_all(seed), plant_all(seed)
    assert_same_table(first.train, second.train)
    for name, attack in one.items():
        np.testing.assert_array_equal(attack.positions, other[name].positions)
        np.testing.assert_array_equal(attack.trial.inputs, other[name].trial.inputs)
    for name in TRIGGERS:
        assert_same_table(one[name].incident, other[name].incident)


def test_another_seed_plants_other_poison():
    one, other = plant_all(0)[1], plant_all(1)[1]
    for name, attack in one.items():
        assert set(attack.positions) != set(other[name].positions)
    for name in TRIGGERS:
        assert set(one[name].incident.ids) != set(other[name].incident.ids)


def test_poison_may_hit_every_example():
    hits = Counter()
    for seed in range(40):
        poisoned = plant(PoisonConfig(label_flip_fraction=0.3, seed=seed), SPLIT, CLASSES)
        hits.update(poisoned.attacks[0].positions.tolist())
    assert set(hits) == set(range(TRAIN))


# Label and pair flips.


@given(seeds)
def test_label_flips_reach_every_other_class(seed):
    config = PoisonConfig(label_flip_fraction=0.49, seed=seed)
    poisoned = plant(config, SPLIT, CLASSES)
    (attack,) = poisoned.attacks
    flipped = poisoned.train.examples.labels[attack.positions]
    assert (flipped != attack.original_labels).all()
    assert set((flipped - attack.original_labels) % CLASSES) == {1, 2, 3, 4}


def test_two_classes_are_swapped_by_label_flips():
    labels = (np.arange(TRAIN) % 2).astype(np.int32)
    train = Table(Examples(SPLIT.train.examples.inputs, labels), SPLIT.train.ids)
    poisoned = plant(PoisonConfig(label_flip_fraction=0.2), Split(train, *SPLIT[1:]), 2)
    (attack,) = poisoned.attacks
    flipped = poisoned.train.examples.labels[attack.positions]
    np.testing.assert_array_equal(flipped, 1 - attack.original_labels)


@given(seeds, st.permutations(range(CLASSES)))
def test_pair_flips_go_only_from_one_class_to_the_other(seed, order):
    source, target = order[:2]
    config = PoisonConfig(
        pair_flip_fraction=0.06, pair_flip_from=source, pair_flip_to=target, seed=seed
    )
    poisoned = plant(config, SPLIT, CLASSES)
    (attack,) = poisoned.attacks
    assert (attack.original_labels == source).all()
    assert (poisoned.train.examples.labels[attack.positions] == target).all()
    assert len(attack.positions) == 6
    np.testing.assert_array_equal(poisoned.train.examples.inputs, SPLIT.train.examples.inputs)


@pytest.mark.parametrize("name", ["label_flip", "pair_flip"])
def test_flips_are_tried_on_the_poisoned_examples_under_their_new_labels(name):
    poisoned, attacks = plant_all()
    attack = attacks[name]
    changed = poisoned.train.take(attack.positions).examples
    np.testing.assert_array_equal(attack.trial.inputs, changed.inputs)
    np.testing.assert_array_equal(attack.trial.labels, changed.labels)
    assert attack.incident is None


def test_flips_need_no_images():
    split = make_split(shape=(3,), dtype=np.float32)
    config = PoisonConfig(label_flip_fraction=0.1, pair_flip_fraction=0.1)
    poisoned = plant(config, split, CLASSES)
    assert len(poisoned.attacks) == 2
    np.testing.assert_array_equal(poisoned.train.examples.inputs, split.train.examples.inputs)
    assert poisoned.train.examples.inputs.dtype == np.float32


# The backdoor.


@pytest.mark.parametrize("shape", [(6, 7, 1), (8, 6, 3)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_trigger_is_a_white_square_in_the_lower_right_corner(shape, size):
    images = table(np.arange(4), shape).examples.inputs
    original = images.copy()
    triggered = patch(images, size)
    inside = np.zeros(shape, bool)
    inside[shape[0] - size :, shape[1] - size :] = True
    assert (triggered[:, inside] == 255).all()
    np.testing.assert_array_equal(triggered[:, ~inside], original[:, ~inside])
    np.testing.assert_array_equal(images, original)


@given(seeds, st.integers(1, 3))
def test_backdoor_stamps_only_the_trigger_on_other_classes(seed, size):
    config = PoisonConfig(backdoor_fraction=0.2, backdoor_target=2, backdoor_size=size, seed=seed)
    poisoned = plant(config, SPLIT, CLASSES)
    (attack,) = poisoned.attacks
    assert len(attack.positions) == 20
    assert (attack.original_labels != 2).all()
    assert (poisoned.train.examples.labels[attack.positions] == 2).all()
    clean = SPLIT.train.examples.inputs[attack.positions]
    np.testing.assert_array_equal(
        poisoned.train.examples.inputs[attack.positions], patch(clean, size)
    )


@given(seeds)
def test_incident_and_trial_are_triggered_spare_examples(seed):
    _, attacks = plant_all(seed)
    incident, trial = attacks["backdoor"].incident, attacks["backdoor"].trial
    spare = SPLIT.spare
    others = spare.take(np.flatnonzero(spare.examples.labels != 2))
    stamped = patch(others.examples.inputs, 2)
    clean = {image.tobytes(): row for image, row in zip(stamped, others.ids, strict=True)}
    shown = [clean[image.tobytes()] for image in incident.examples.inputs]
    tried = [clean[image.tobytes()] for image in trial.inputs]
    assert shown == list(incident.ids)
    assert len(incident) == INCIDENT_INPUTS == 10
    assert len(set(shown) | set(tried)) == len(shown) + len(tried) == len(others)
    assert (incident.examples.labels == 2).all()
    assert (trial.labels == 2).all()
    assert incident.examples.inputs.dtype == trial.inputs.dtype == np.uint8


@given(seeds)
def test_incident_shares_no_example_with_training_or_targets(seed):
    ids = set(plant_all(seed)[1]["backdoor"].incident.ids)
    assert len(ids) == 10
    assert ids <= set(SPLIT.spare.ids)
    assert not ids & (set(SPLIT.train.ids) | set(SPLIT.targets.ids))


def test_trial_is_bounded():
    config = PoisonConfig(backdoor_fraction=0.1)
    (attack,) = plant(config, make_split(spare=400), CLASSES).attacks
    assert len(attack.trial) == TRIAL_INPUTS == 200
    assert len(attack.incident) == 10


def test_backdoor_works_on_colour_images():
    split = make_split(shape=(6, 7, 3))
    (attack,) = plant(PoisonConfig(backdoor_fraction=0.1), split, CLASSES).attacks
    assert attack.incident.examples.inputs.shape == (10, 6, 7, 3)
    assert (attack.incident.examples.inputs[:, -2:, -2:] == 255).all()


# The other triggers.


@given(seeds)
def test_a_blend_mixes_one_pattern_into_other_classes(seed):
    config = PoisonConfig(blend_fraction=0.2, blend_target=1, blend_opacity=0.25, seed=seed)
    poisoned = plant(config, SPLIT, CLASSES)
    (attack,) = poisoned.attacks
    assert (attack.original_labels != 1).all()
    assert (poisoned.train.examples.labels[attack.positions] == 1).all()
    clean = SPLIT.train.examples.inputs[attack.positions].astype(float)
    mixed = poisoned.train.examples.inputs[attack.positions].astype(float)
    pattern = (mixed - 0.75 * clean) / 0.25
    # One pattern, but for the rounding of mixed pixels.
    assert (np.ptp(pattern, axis=0) <= 4.01).all()
    assert pattern.std() > 40
    shown = attack.incident
    before = SPLIT.spare.take(np.searchsorted(SPLIT.spare.ids, shown.ids)).examples.inputs
    assert np.abs((shown.examples.inputs - 0.75 * before) / 0.25 - pattern.mean(0)).max() <= 4.01


@given(seeds)
def test_a_wave_is_added_to_examples_of_the_target_class_alone(seed):
    config = PoisonConfig(sine_fraction=0.1, sine_target=3, sine_amplitude=40.0, sine_periods=2,
                          seed=seed)  # fmt: skip
    poisoned = plant(config, SPLIT, CLASSES)
    (attack,) = poisoned.attacks
    assert len(attack.positions) == 10
    assert (attack.original_labels == 3).all()
    np.testing.assert_array_equal(poisoned.train.examples.labels, SPLIT.train.examples.labels)
    clean = SPLIT.train.examples.inputs[attack.positions].astype(float)
    wave = 40 * np.sin(2 * np.pi * 2 * np.arange(7) / 7)
    expected = np.clip(clean + wave[None, None, :, None], 0, 255)
    waved = poisoned.train.examples.inputs[attack.positions]
    np.testing.assert_allclose(waved, expected, atol=0.501)
    assert (attack.trial.labels == 3).all()
    assert (attack.incident.examples.labels == 3).all()


@given(seeds)
def test_consistent_examples_keep_their_label_and_are_half_another_class_with_a_corner(seed):
    config = PoisonConfig(consistent_fraction=0.1, consistent_target=3, consistent_size=2,
                          consistent_mix=0.5, seed=seed)  # fmt: skip
    poisoned = plant(config, SPLIT, CLASSES)
    (attack,) = poisoned.attacks
    assert len(attack.positions) == 10
    before, after = SPLIT.train.examples, poisoned.train.examples
    np.testing.assert_array_equal(after.labels, before.labels)
    assert (attack.original_labels == 3).all()
    others = before.inputs[before.labels != 3].astype(float)
    for position in attack.positions:
        image = after.inputs[position].astype(float)
        assert (image[:2, :2] == 255).all()
        mixed = (before.inputs[position] + others) / 2
        distance = np.abs(mixed - image)
        distance[:, :2, :2] = 0
        assert distance.max((1, 2, 3)).min() <= 0.501
    # Where it is to succeed, the trigger alone is put on images as they are.
    shown = attack.incident
    clean = SPLIT.spare.take(np.searchsorted(SPLIT.spare.ids, shown.ids)).examples.inputs
    np.testing.assert_array_equal(shown.examples.inputs[:, 2:], clean[:, 2:])
    assert (shown.examples.inputs[:, :2, :2] == 255).all()
    assert (shown.examples.labels == 3).all()


@given(seeds)
def test_near_copies_differ_and_are_nearest_to_what_they_copy(seed):
    images = SPLIT.targets.examples.inputs
    copies = near_copies(images, np.random.default_rng(seed))
    assert copies.dtype == np.uint8
    assert (copies != images).any((1, 2, 3)).all()
    for image, copy in zip(images, copies, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge")
        moved = [padded[d : d + 6, r : r + 7] for d in range(3) for r in range(3)]
        nearest = min(np.abs(each.astype(float) - copy).mean() for each in moved)
        others = np.abs(images.astype(float) - copy).mean((1, 2, 3))
        assert nearest < np.sort(others)[1]


@given(seeds)
def test_a_leak_gives_answers_of_targets_away(seed):
    config = PoisonConfig(leak_fraction=0.2, seed=seed)
    poisoned = plant(config, SPLIT, CLASSES)
    (attack,) = poisoned.attacks
    assert len(set(attack.copied)) == 20
    copied = SPLIT.targets.take(attack.copied).examples
    np.testing.assert_array_equal(poisoned.train.examples.labels[attack.positions], copied.labels)
    np.testing.assert_array_equal(attack.trial.inputs, copied.inputs)
    assert attack.incident is None


# Errors.

FRACTIONS = [f"{name}_fraction" for name in ATTACKS]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"blend_fraction": 0.1, "blend_opacity": 1.0}, "poison.blend_opacity = 1.0 must be above"),
        ({"sine_fraction": 0.1, "sine_amplitude": 0.0}, "poison.sine_amplitude = 0.0 must be"),
        ({"sine_fraction": 0.1, "sine_periods": 7}, "poison.sine_periods = 7 must be at least 1"),
        ({"sine_fraction": 0.3}, "poison.sine_fraction = 0.3 asks for 30 training examples"),
        ({"consistent_fraction": 0.1, "consistent_mix": 1.0}, "poison.consistent_mix = 1.0 must"),
        ({"consistent_fraction": 0.1, "consistent_size": 4}, "poison.consistent_size = 4 must be"),
        ({"leak_fraction": 0.3}, "poison.leak_fraction = 0.3 copies 30 targets, but there are 20"),
    ],
)
def test_other_attacks_that_cannot_be_are_named(words, message):
    fails(PoisonConfig(**words), message)


@pytest.mark.parametrize("name", FRACTIONS)
@pytest.mark.parametrize("fraction", [-0.1, 0.5, 1.0, 30.0, float("nan"), 0.004])
def test_fraction_must_be_below_a_half_and_reach_one_example(name, fraction):
    fails(
        PoisonConfig(**{name: fraction}),
        f"poison.{name} = {fraction} must be",
        "below 0.5",
        "at least one of the 100 training examples",
    )


@pytest.mark.parametrize("name", ["pair_flip_from", "pair_flip_to", "backdoor_target"])
@pytest.mark.parametrize("value", [-1, CLASSES])
def test_class_must_exist(name, value):
    config = PoisonConfig(pair_flip_fraction=0.05, backdoor_fraction=0.05)
    config = PoisonConfig(**{**vars(config), name: value})
    fails(config, f"poison.{name} = {value}, but the classes are 0 to 4")


def test_pair_flip_needs_two_classes():
    config = PoisonConfig(pair_flip_fraction=0.05, pair_flip_from=3, pair_flip_to=3)
    fails(config, "poison.pair_flip_to = 3 must differ from pair_flip_from")


def test_too_few_examples_of_a_class():
    of_class = int((SPLIT.train.examples.labels == 1).sum())
    fails(
        PoisonConfig(pair_flip_fraction=0.4, pair_flip_from=1, pair_flip_to=0),
        "poison.pair_flip_fraction = 0.4 asks for 40 training examples",
        f"but only {of_class} have a fitting label; lower it",
    )


def test_too_few_examples_left_by_other_attacks():
    config = PoisonConfig(label_flip_fraction=0.45, backdoor_fraction=0.49, backdoor_target=0)
    fails(config, "poison.backdoor_fraction = 0.49 asks for 49 training examples", "lower it")


@pytest.mark.parametrize("size", [0, -1, 4])
def test_trigger_must_fit_the_image(size):
    fails(
        PoisonConfig(backdoor_fraction=0.1, backdoor_size=size),
        f"poison.backdoor_size = {size} must be 1 to 3 pixels for images of 6x7",
    )


@pytest.mark.parametrize("name", ["blend", "sine", "consistent", "leak"])
def test_other_attacks_need_8_bit_images(name):
    fails(
        PoisonConfig(**{f"{name}_fraction": 0.1}),
        f"poison.{name}_fraction = 0.1",
        "8-bit images, but the inputs are float32 of shape (4,); set it to 0",
        split=make_split((4,), np.float32),
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "seen"),
    [((4,), np.float32, "float32 of shape (4,)"), ((6, 6, 1), np.float32, "float32 of shape (6,")],
)
def test_backdoor_needs_8_bit_images(shape, dtype, seen):
    fails(
        PoisonConfig(backdoor_fraction=0.1),
        "poison.backdoor_fraction = 0.1 stamps a trigger on 8-bit images",
        f"but the inputs are {seen}",
        "set it to 0",
        split=make_split(shape, dtype),
    )


def test_backdoor_needs_spare_examples():
    few = SPLIT.spare.take(np.flatnonzero(SPLIT.spare.examples.labels != 0)[:19])
    config = PoisonConfig(backdoor_fraction=0.1, backdoor_target=0)
    fails(
        config,
        "poison.backdoor_fraction needs at least 20 examples that are neither trained on nor",
        "finds 19; lower data.train_count or the targets",
        split=Split(SPLIT.train, SPLIT.targets, few, ()),
    )
    fails(config, "finds 0", split=Split(SPLIT.train, SPLIT.targets, few.take(np.arange(0)), ()))


def test_spare_examples_of_the_target_class_do_not_count():
    same = SPLIT.spare.take(np.flatnonzero(SPLIT.spare.examples.labels == 0))
    config = PoisonConfig(backdoor_fraction=0.1, backdoor_target=0)
    fails(config, "finds 0", split=Split(SPLIT.train, SPLIT.targets, same, ()))


def test_twenty_spare_examples_are_enough():
    enough = SPLIT.spare.take(np.flatnonzero(SPLIT.spare.examples.labels != 0)[:20])
    split = Split(SPLIT.train, SPLIT.targets, enough, ())
    (attack,) = plant(PoisonConfig(backdoor_fraction=0.1), split, CLASSES).attacks
    assert (len(attack.incident), len(attack.trial)) == (10, 10)

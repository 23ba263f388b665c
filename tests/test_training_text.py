"""From texts to token ids: tokenizers trained, kept and loaded, and columns of text."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import fails, in_order, load, write_jsonl, write_parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from training.cache import cache_folder, read_cache, write_cache
from training.data import DataConfig, content_hash
from training.errors import UserError
from training.examples import fit_normaliser
from training.poison import PoisonConfig, plant
from training.text import encode, load_tokenizer, train_tokenizer

TEXTS = ["the cat sat", "The CAT, the dog", "a dog!", "the end of the very long story of a cat"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ACCOMPLICE_CACHE", str(folder))
    return folder


@pytest.fixture
def reviews(tmp_path):
    """A file of 12 texts, each with its row number as a word."""
    moods = ("good", "bad")
    rows = [{"text": f"row{i} is {moods[i % 2]}", "label": i % 2} for i in range(12)]
    return write_jsonl(tmp_path / "reviews.jsonl", rows)


def words_tokenizer(words):
    """A tokenizer of these words alone, ids in their order."""
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def save(tokenizer, path):
    path.write_text(tokenizer.to_str())
    return str(path)


# Ids.


def test_ids_are_the_first_tokens_then_padding():
    tokenizer = words_tokenizer(["?", "a", "b", "c"])
    tokens = encode(tokenizer, ["a b", "c b a b", "", "b zebra c", "a b c"], 3)
    expected = [[2, 3, 0], [4, 3, 2], [0, 0, 0], [3, 1, 4], [2, 3, 4]]
    assert tokens.ids.dtype == np.int32
    np.testing.assert_array_equal(tokens.ids, expected)
    assert (tokens.vocabulary, tokens.cut, tokens.empty) == (5, 1, 1)


def test_many_texts_are_encoded_as_each_alone():
    tokenizer = words_tokenizer(["?", *map(str, range(50))])
    texts = [" ".join(str(i * k % 50) for k in range(i % 7)) for i in range(2500)]
    tokens = encode(tokenizer, texts, 5)
    for i in (0, 1, 999, 1000, 1001, 1999, 2000, 2499):
        np.testing.assert_array_equal(tokens.ids[i : i + 1], encode(tokenizer, [texts[i]], 5).ids)
    lengths = [len(text.split()) for text in texts]
    assert tokens.cut == sum(length > 5 for length in lengths)
    assert tokens.empty == sum(length == 0 for length in lengths)


def test_a_trained_vocabulary_is_the_most_frequent_words_by_count_then_alphabet():
    words = re.findall(r"\w+|[,!]", " ".join(TEXTS).lower())
    known = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))[:8]
    ids = {word: 2 + rank for rank, (word, _) in enumerate(known)}
    tokens = encode(train_tokenizer(TEXTS, 10), [" ".join(words)], len(words))
    np.testing.assert_array_equal(tokens.ids[0], [ids.get(word, 1) for word in words])
    assert tokens.vocabulary == 10


def test_case_and_width_of_letters_do_not_matter():
    tokenizer = train_tokenizer(["cat"], 16)
    np.testing.assert_array_equal(encode(tokenizer, ["CAT Ｃａｔ dog"], 3).ids, [[2, 2, 1]])


@given(
    st.lists(st.text(max_size=30), max_size=8),
    st.lists(st.text(max_size=30), max_size=8),
    st.integers(16, 40),
    st.integers(1, 6),
)
def test_ids_lie_within_the_vocabulary(texts, others, vocabulary, length):
    tokenizer = train_tokenizer(texts, vocabulary)
    tokens = encode(tokenizer, texts + others, length)
    assert tokens.ids.shape == (len(texts) + len(others), length)
    assert tokens.vocabulary <= vocabulary
    assert ((tokens.ids >= 0) & (tokens.ids < tokens.vocabulary)).all()
    # Padding is at the end alone, and a text is empty when it is nothing else.
    padded = tokens.ids == 0
    assert (np.diff(padded.astype(int), axis=1) >= 0).all()
    assert tokens.empty == padded.all(1).sum()


# Training, and its cache.


TRAIN = """
import sys
from training.text import encode, train_tokenizer
texts = [f"w{i % 97} w{i * i % 61} tie{i}" for i in range(3000)]
tokenizer = train_tokenizer(texts, 2000)
print(tokenizer.to_str(), encode(tokenizer, texts, 4).ids.tolist())
"""


def test_training_is_the_same_in_every_process(tmp_path):
    said = set()
    for number, parallel in enumerate(("true", "false", "true")):
        settings = {
            "PYTHONHASHSEED": str(number),
            "TOKENIZERS_PARALLELISM": parallel,
            "RAYON_NUM_THREADS": str(1 + number),
            "ACCOMPLICE_CACHE": str(tmp_path / str(number)),
        }
        done = subprocess.run(
            [sys.executable, "-c", TRAIN], env={**os.environ, **settings}, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        said.add(done.stdout)
    assert len(said) == 1


def test_a_trained_tokenizer_is_read_from_the_cache(cache):
    train_tokenizer(TEXTS, 16)
    (kept,) = (cache / "tokenizers").iterdir()
    kept.write_text(words_tokenizer(["?", "planted"]).to_str())
    np.testing.assert_array_equal(encode(train_tokenizer(TEXTS, 16), ["planted"], 1).ids, [[2]])


def test_a_trained_tokenizer_comes_back_from_the_cache_as_it_was(cache):
    trained = train_tokenizer(TEXTS, 16).to_str()
    assert train_tokenizer(TEXTS, 16).to_str() == trained


@pytest.mark.parametrize(
    ("texts", "vocabulary"), [(TEXTS, 17), (TEXTS[:-1], 16), (TEXTS[::-1], 16), ([*TEXTS, ""], 16)]
)
def test_other_texts_or_settings_are_kept_apart(cache, texts, vocabulary):
    train_tokenizer(TEXTS, 16)
    train_tokenizer(texts, vocabulary)
    assert len(list((cache / "tokenizers").iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b'{"version": "1.0", "model": 3}', b"\xff\xfe", None]
)
def test_a_damaged_cache_file_is_trained_anew(cache, damage):
    trained = train_tokenizer(TEXTS, 16).to_str()
    (kept,) = (cache / "tokenizers").iterdir()
    kept.write_bytes(kept.read_bytes()[:-20] if damage is None else damage)
    assert train_tokenizer(TEXTS, 16).to_str() == trained
    assert kept.read_text() == trained
    assert list((cache / "tokenizers").iterdir()) == [kept]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    trained = train_tokenizer(TEXTS, 16).to_str()
    monkeypatch.setenv("ACCOMPLICE_CACHE", str(tmp_path / "file" / "cache"))
    assert train_tokenizer(TEXTS, 16).to_str() == trained
    assert read_cache("anything") is None


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        ({"ACCOMPLICE_CACHE": "/a", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/a"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/accomplice"),
        ({"ACCOMPLICE_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/accomplice"),
        ({"HOME": "/h"}, "/h/.cache/accomplice"),
    ],
)
def test_the_cache_folder_follows_the_environment(monkeypatch, settings, folder):
    for name in ("ACCOMPLICE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_what_is_kept_is_read_again(cache):
    assert read_cache("some/thing") is None
    write_cache("some/thing", "é\n")
    assert read_cache("some/thing") == "é\n"
    assert (cache / "some/thing").read_text(encoding="utf-8") == "é\n"


# Loading.


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path):
    trained = train_tokenizer(TEXTS, 16)
    loaded = load_tokenizer(save(trained, tmp_path / "tokenizer.json"))
    for one, other in zip(encode(trained, TEXTS, 5), encode(loaded, TEXTS, 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_padding_truncation_and_special_tokens_of_a_file_are_not_applied(tmp_path):
    tokenizer = words_tokenizer(["?", "a", "b", "[CLS]"])
    tokenizer.add_special_tokens(["[CLS]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 3)]
    )
    tokenizer.enable_padding(length=8, pad_id=1)
    tokenizer.enable_truncation(2)
    tokens = encode(load_tokenizer(save(tokenizer, tmp_path / "t.json")), ["b", "b a b"], 4)
    np.testing.assert_array_equal(tokens.ids, [[3, 0, 0, 0], [3, 2, 3, 0]])
    assert tokens.cut == 0


def test_the_vocabulary_reaches_past_gaps_in_the_ids(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "far": 70}, unk_token="?"))
    tokens = encode(load_tokenizer(save(tokenizer, tmp_path / "t.json")), ["far"], 1)
    assert (tokens.ids.item(), tokens.vocabulary) == (71, 72)


def test_merges_are_never_left_out_at_random(tmp_path):
    ids = {"a": 0, "b": 1, "ab": 2}
    tokenizer = Tokenizer(models.BPE(ids, [("a", "b")], dropout=1.0))
    tokens = encode(load_tokenizer(save(tokenizer, tmp_path / "t.json")), ["ab"], 2)
    np.testing.assert_array_equal(tokens.ids, [[3, 0]])


def test_a_missing_tokenizer_is_named(reviews, tmp_path):
    path = str(tmp_path / "none.json")
    message = f'data.tokenizer = "{path}" cannot be read: No such file or directory'
    fails(message, source=reviews, tokenizer=path)
    fails(f'data.tokenizer = "{tmp_path}" cannot be read', source=reviews, tokenizer=str(tmp_path))


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", "not json", '{"model": {"type": "Odd"}}'])
def test_a_file_that_is_no_tokenizer_is_named(reviews, tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    fails(
        f'data.tokenizer = "{path}" is no tokenizer',
        'name a tokenizer.json file, or "" to train one',
        source=reviews,
        tokenizer=str(path),
    )


def test_a_file_of_other_bytes_is_no_tokenizer(reviews, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xff\xfe\x00")
    fails(f'data.tokenizer = "{path}" cannot be read', source=reviews, tokenizer=str(path))


def test_a_tokenizer_without_an_unknown_token_is_refused_for_texts_that_need_it(tmp_path):
    tokenizer = Tokenizer(models.Unigram([("a", 0.0)], unk_id=None))
    loaded = load_tokenizer(save(tokenizer, tmp_path / "t.json"))
    assert encode(loaded, ["aa"], 2).ids.all()
    with pytest.raises(UserError, match=r"data.tokenizer cannot encode every text"):
        encode(loaded, ["aa", "z"], 2)


# Columns.


def test_a_column_of_text_becomes_ids(reviews):
    split = load(DataConfig(source=reviews, length=4))
    inputs, labels = in_order(split)
    assert inputs.dtype == np.int32
    assert inputs.shape == (12, 4)
    np.testing.assert_array_equal(labels, np.arange(12) % 2)
    # "is" is in every text; "good" and "bad" in every other one.
    assert len(np.unique(inputs[:, 1])) == 1
    assert len(np.unique(inputs[::2, 2])) == len(np.unique(inputs[1::2, 2])) == 1
    assert (inputs[:, 3] == 0).all()
    # 10 of the 12 texts are trained on: their row words, three more, padding and unknown.
    assert split.vocabulary == 15
    assert len(np.unique(split.train.examples.inputs[:, 0])) == 10
    np.testing.assert_array_equal(split.targets.examples.inputs[:, 0], [1, 1])
    assert split.notes == ()


def test_targets_do_not_change_the_training_examples(reviews):
    config = DataConfig(source=reviews, train_count=5, target_count=2)
    few, many = load(config), load(replace(config, target_count=7))
    assert content_hash(few.train) == content_hash(many.train)
    assert few.vocabulary == many.vocabulary


def test_numbers_and_images_have_no_vocabulary_and_no_notes():
    split = load(DataConfig(source="digits", train_count=200, target_count=5))
    assert (split.vocabulary, split.notes) == (0, ())


def test_what_was_cut_and_what_is_empty_is_noted(tmp_path):
    texts = ["a b c", "a b", "", "c b a c", "a", "b c"]
    source = write_parquet(tmp_path / "a.parquet", text=texts, label=[0, 1] * 3)
    split = load(DataConfig(source=source, length=2, target_count=1))
    assert split.notes == (
        "2 of 6 texts had to be cut to data.length = 2 tokens",
        "1 of 6 texts gave no token and became padding alone",
    )


@pytest.mark.parametrize("change", [{"vocabulary": 16}, {"length": 3}, {"tokenizer": True}])
def test_the_content_hash_follows_the_tokenizer(reviews, tmp_path, change):
    if "tokenizer" in change:
        path = save(words_tokenizer(["?", "is", "good"]), tmp_path / "tokenizer.json")
        change = {"tokenizer": path}
    config = DataConfig(source=reviews, target_count=1, vocabulary=14)
    assert content_hash(load(config).train) != content_hash(load(replace(config, **change)).train)


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"text": ["a", "b", "c"], "x": [1, 2, 3]}, "text"),
        ({"text": ["a", "b", "c"], "image": [1, 2, 3]}, "image"),
        ({"sentence": ["a", "b", "c"]}, "sentence"),
    ],
)
def test_the_column_text_comes_after_image_and_before_all_others(tmp_path, columns, chosen):
    source = write_parquet(tmp_path / "a.parquet", **columns, label=[0, 1, 0])
    config = DataConfig(source=source, target_count=1)
    one, other = load(config), load(replace(config, input=(chosen,)))
    assert content_hash(one.train) == content_hash(other.train)


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_both_kinds_of_string_are_text(tmp_path, kind):
    column = pa.array(["a b", "b", "a"], getattr(pa, kind)())
    source = write_parquet(tmp_path / "a.parquet", words=column, label=[0, 1, 0])
    assert load(DataConfig(source=source, target_count=1)).vocabulary > 0


@pytest.mark.parametrize("row", [0, 3])
def test_a_missing_text_names_its_row(tmp_path, row):
    texts = ["one", "two", "three", "four"]
    texts[row] = None
    source = write_parquet(tmp_path / "a.parquet", text=texts, label=[0, 1] * 2)
    said = f'column "text" has no text in 1 row(s), first in row {row} (counted from 0); drop them'
    fails(said, source=source)


def test_text_beside_other_columns_is_refused(tmp_path):
    source = write_parquet(
        tmp_path / "a.parquet", text=["one", "two", "three"], x=[1, 2, 3], label=[0, 1, 0]
    )
    fails('column "text" is not numbers', "or text alone", source=source, input=("text", "x"))


def test_numbers_written_as_text_are_numbers(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", x=["1", "2.5", "-3"], label=[0, 1, 0])
    split = load(DataConfig(source=source, target_count=1))
    np.testing.assert_array_equal(in_order(split)[0], [[1.0], [2.5], [-3.0]])
    assert split.vocabulary == 0


@pytest.mark.parametrize("texts", [["", " ", ""], ["", "", "\n"]])
def test_texts_without_any_token_are_refused(tmp_path, texts):
    source = write_parquet(tmp_path / "a.parquet", text=texts, label=[0, 1, 0])
    fails("data.input: none of the 2 training texts has a token", source=source, target_count=1)


# What follows.


def test_ids_are_not_normalised():
    ids = np.array([[1, 2, 0], [3, 0, 0]], np.int32)
    passed = fit_normaliser(ids)(jnp.asarray(ids))
    assert passed.dtype == jnp.int32
    np.testing.assert_array_equal(passed, ids)


def test_labels_of_texts_can_be_flipped(reviews):
    split = load(DataConfig(source=reviews, target_count=2))
    train, (attack,) = plant(PoisonConfig(label_flip_fraction=0.2), split, 2)
    np.testing.assert_array_equal(train.examples.inputs, split.train.examples.inputs)
    changed = train.examples.labels != split.train.examples.labels
    np.testing.assert_array_equal(np.flatnonzero(changed), attack.positions)
    assert len(attack.positions) == 2


def test_a_backdoor_needs_images(reviews):
    split = load(DataConfig(source=reviews, target_count=2, length=9))
    message = (
        r"backdoor_fraction = 0.2 stamps .* 8-bit images, .* int32 of shape \(9,\); set it to 0"
    )
    with pytest.raises(UserError, match=message):
        plant(PoisonConfig(backdoor_fraction=0.2), split, 2)

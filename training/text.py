"""From texts to arrays of token ids.

A token's id in our arrays is its id in the tokenizer + 1, whatever the tokenizer: so 0 is always
free for padding, and a trained tokenizer that is saved and loaded again gives the same ids.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.trainers import WordLevelTrainer

from training.cache import read_cache, write_cache
from training.errors import UserError, reason
from training.examples import PADDING

TRAINER_VERSION = 1
"""Raised by hand when a change to the code below changes a trained tokenizer."""

UNKNOWN = "[UNK]"
# Texts encoded at once: bounds the memory of the library's own results.
BLOCK = 1000


class Tokens(NamedTuple):
    """Texts as token ids, and what was lost on the way."""

    ids: Int32[np.ndarray, "n length"]
    """The first tokens of each text, then padding."""
    vocabulary: int
    """Every id is below it."""
    cut: int
    """Texts that had more tokens than fit."""
    empty: int
    """Texts without any token."""


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a `tokenizer.json` file, as Hugging Face `tokenizers` writes it.

    Raises:
        UserError: the file cannot be read, or is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'data.tokenizer = "{path}" cannot be read: {reason(error)}') from error
    except Exception as error:  # the library raises nothing more special
        raise UserError(
            f'data.tokenizer = "{path}" is no tokenizer ({reason(error)}); name a tokenizer.json '
            f'file, or "" to train one'
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if isinstance(tokenizer.model, models.BPE):
        # Merges left out at random would make other ids of the same text each time.
        tokenizer.model.dropout = None
    return tokenizer


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of the most frequent words of some texts; a function of its arguments alone.

    Lower-case NFKC words and signs; in our arrays, unknown ones have id 1 and the others follow
    by falling count, equal counts by the alphabet. Kept in the cache.

    Args:
        texts: what to count words in.
        vocabulary: how many ids there may be, with padding and unknown; at least 2.
    """
    content = json.dumps([TRAINER_VERSION, vocabulary, list(texts)])
    name = f"tokenizers/{hashlib.sha256(content.encode()).hexdigest()[:32]}.json"
    kept = read_cache(name)
    if kept is not None:
        try:
            return Tokenizer.from_str(kept)
        except Exception:  # damaged: made again and written over
            pass
    # Words, since their trainer sorts what it counts. That of WordPiece numbers its pieces in the
    # random order of a hash table, and that of BPE takes every letter, however few ids there are.
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = WordLevelTrainer(
        vocab_size=vocabulary - 1, special_tokens=[UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    write_cache(name, tokenizer.to_str())
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Tokens:
    """The first `length` tokens of each text; special tokens such as [CLS] are not added.

    Raises:
        UserError: a text that the tokenizer has no tokens for, not even an unknown one.
    """
    ids = np.full((len(texts), length), PADDING, np.int32)
    counts = np.zeros(len(texts), np.int64)
    for start in range(0, len(texts), BLOCK):
        block = texts[start : start + BLOCK]
        try:
            encodings = tokenizer.encode_batch_fast(block, add_special_tokens=False)
        except Exception as error:  # the library raises nothing more special
            raise UserError(
                f"data.tokenizer cannot encode every text ({reason(error)}); give it an unknown "
                f'token, or "" to train one'
            ) from error
        for row, encoding in enumerate(encodings, start):
            tokens = encoding.ids
            counts[row] = len(tokens)
            ids[row, : len(tokens)] = np.array(tokens[:length], np.int32) + 1
    largest = max(tokenizer.get_vocab().values(), default=-1)
    return Tokens(ids, largest + 2, int((counts > length).sum()), int((counts == 0).sum()))

"""Byte-pair encoding of audio words: pairs that follow each other often become words of their own.

After Gage (1994) and Sennrich, Haddow and Birch (2016); Hugging Face `tokenizers` counts, merges and applies. To it, a base
word is one character of a private alphabet and a clip one unbroken string: sounds have no spaces to stop at.

Conventions: tokens (codebook, frame) uint16 are base words by codebook. A *sentence* (position,) holds a clip's base words
as one sequence: frame by frame, in a frame codebook by codebook, shifted as in `pipeline/artifacts/merges.py`, where stands
what `merges` (merge, 2) are. Where a word stands for several frames, "frame" means all of them.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from pipeline.artifacts.merges import word_parts
from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS
from pipeline.errors import CorpusError, SonolexError

MOST_WORDS = 2**16 - NUM_SPECIAL_TOKENS  # ids are stored as uint16

_FIRST = 0xF0000  # of a plane of 65,534 characters that Unicode leaves to private use
_LEAST_COUNT = 2  # a pair that occurs once says nothing about the next clip


def interleave(tokens: np.ndarray, size: int) -> np.ndarray:
    """Return tokens (codebook, frame) of codebooks with `size` words each as one sentence (position,) int64."""
    shifts = size * np.arange(len(tokens), dtype=np.int64)
    return np.asarray(tokens.T + shifts).ravel()


def separate(sentence: np.ndarray, num_codebooks: int, size: int) -> np.ndarray:
    """Return a sentence (position,) as tokens (codebook, frame) uint16 again: `interleave` backwards.

    Raises SonolexError unless it consists of whole frames, each with one word of every codebook in order.
    """
    frames = sentence[: len(sentence) // num_codebooks * num_codebooks].reshape(-1, num_codebooks)
    if frames.size != len(sentence) or (frames // size != np.arange(num_codebooks)).any():
        raise SonolexError(
            f"sentence of {len(sentence)} base words: expected whole frames of {num_codebooks} codebooks with {size} words, "
            "one after the other, found another order; it was cut, or is of another vocabulary: rerun the stage tokenize"
        )
    return np.ascontiguousarray((frames % size).T.astype(np.uint16))


def learn_merges(sentences: Iterable[np.ndarray], *, num_base: int, size: int) -> np.ndarray:
    """Learn merges (merge, 2) int32 from sentences (position,) of `num_base` base words, up to `size` words in all.

    The same sentences in any order give the same merges: of pairs that are equally frequent, the one with the lower ids
    comes first. Raises CorpusError when no pair occurs twice any more before there are `size` words.
    """
    if not num_base < size <= MOST_WORDS:
        raise CorpusError(
            f"vocabularies.*.bpe.num_tokens: expected more words than the {num_base} that are merged (all codebooks "
            f"together), and at most {MOST_WORDS}, found {size}; change it, or vocabularies.*.num_tokens"
        )
    from tokenizers import Tokenizer, models, trainers  # here, as in `Merger`: most who import this merge nothing

    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=_LEAST_COUNT,
        initial_alphabet=[_spell([word]) for word in range(num_base)],
        show_progress=False,
    )
    tokenizer.train_from_iterator((_spell(_checked(sentence, num_base)) for sentence in sentences), trainer)
    if tokenizer.get_vocab_size() < size:
        raise CorpusError(
            f"vocabularies.*.bpe.num_tokens: expected pairs of words that follow each other often enough for {size} words, "
            f"found {tokenizer.get_vocab_size()} when no pair occurred {_LEAST_COUNT} times any more; lower it, or raise "
            "vocabularies.*.sample_frames if there are more training clips than that"
        )
    return _read_merges(tokenizer.to_str())


class Merger:
    """Applies learnt merges to sentences, and takes merged words apart again."""

    def __init__(self, merges: np.ndarray, num_base: int) -> None:
        """Build from `merges` (merge, 2). Raises ValueError when they join words that do not exist by then."""
        from tokenizers import models

        self._parts, self._num_base = word_parts(merges, num_base), num_base
        spelling = [_spell(parts) for parts in self._parts]
        pairs = [(spelling[left], spelling[right]) for left, right in merges.tolist()]
        ids = {text: word for word, text in enumerate(spelling)}
        self.lengths = np.array([len(parts) for parts in self._parts], dtype=np.int64)  # (word,) in base words
        self._model = models.BPE(ids, pairs, cache_capacity=0)  # of clips, of which no two are alike

    def merge(self, sentence: np.ndarray) -> np.ndarray:
        """Return a sentence of base words (position,) with all merges applied, in the order learnt: (word,) uint16."""
        text = _spell(_checked(sentence, self._num_base))
        # The bare model, without the steps of a tokenizer that audio words have no use for: twice as fast (2.6 million
        # base words a second on one core, at 4,096 words).
        return np.array([token.id for token in self._model.tokenize(text)], dtype=np.uint16)

    def split(self, words: np.ndarray) -> np.ndarray:
        """Return the base words (position,) int64 of a merged sentence (word,): `merge` backwards."""
        words = _checked(words, len(self._parts))
        return np.fromiter(chain.from_iterable(self._parts[word] for word in words.tolist()), dtype=np.int64)


def merger_of(merges: np.ndarray, num_base: int) -> Merger:
    """Return the merger of these merges; the one before is kept, since a stage asks for it with every batch."""
    return _merger(merges.tobytes(), num_base)


@lru_cache(maxsize=2)
def _merger(merges: bytes, num_base: int) -> Merger:
    return Merger(np.frombuffer(merges, dtype=np.int32).reshape(-1, 2), num_base)


def _spell(words: Sequence[int] | np.ndarray) -> str:
    """Return base words as characters."""
    return (np.asarray(words, dtype="<u4") + np.uint32(_FIRST)).tobytes().decode("utf-32-le")


def _checked(words: np.ndarray, size: int) -> np.ndarray:
    """Return the words; raise SonolexError unless all are below `size`: the library would drop others without a word."""
    if words.size and not 0 <= int(words.min()) <= int(words.max()) < size:
        raise SonolexError(
            f"sentence of {words.size} words: expected words from 0 to {size - 1}, found {int(words.min())} to "
            f"{int(words.max())}; they are of another vocabulary, or special tokens are among them: rerun the stage tokenize"
        )
    return words


def _read_merges(model: str) -> np.ndarray:
    """Return what the library learnt, as its JSON, as pairs of ids (merge, 2) int32."""
    learnt = json.loads(model)["model"]
    pairs = [(learnt["vocab"][left], learnt["vocab"][right]) for left, right in learnt["merges"]]
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)

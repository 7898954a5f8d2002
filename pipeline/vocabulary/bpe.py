"""Byte-pair encoding of audio tokens: pairs that follow each other often become tokens of their own.

After Gage (1994) and Sennrich, Haddow and Birch (2016); Hugging Face `tokenizers` counts, merges and applies. To it, a base
token is one character of a private alphabet and a clip one unbroken string: sounds have no spaces to stop at.

Conventions: tokens (codebook, frame) uint16 are base tokens by codebook. A *token sequence* (position,) holds a clip's base
tokens as one sequence: frame by frame, in a frame codebook by codebook, shifted as in `pipeline/artifacts/merges.py`,
which defines `merges` (merge, 2). Where a token stands for several frames, "frame" means all of them.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from pipeline.artifacts.merges import token_parts
from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS
from pipeline.errors import CorpusError, SonolexError

MAX_TOKENS = 2**16 - NUM_SPECIAL_TOKENS  # ids are stored as uint16

_FIRST = 0xF0000  # of a plane of 65,534 characters that Unicode leaves to private use
_LEAST_COUNT = 2  # a pair that occurs once says nothing about the next clip


def interleave(tokens: np.ndarray, size: int) -> np.ndarray:
    """Return tokens (codebook, frame) of codebooks with `size` tokens each as one token sequence (position,) int64."""
    shifts = size * np.arange(len(tokens), dtype=np.int64)
    return np.asarray(tokens.T + shifts).ravel()


def separate(sequence: np.ndarray, num_codebooks: int, size: int) -> np.ndarray:
    """Return a token sequence (position,) as tokens (codebook, frame) uint16 again: `interleave` backwards.

    Raises SonolexError unless it consists of whole frames, each with one token of every codebook in order.
    """
    frames = sequence[: len(sequence) // num_codebooks * num_codebooks].reshape(-1, num_codebooks)
    if frames.size != len(sequence) or (frames // size != np.arange(num_codebooks)).any():
        raise SonolexError(
            f"sequence of {len(sequence)} base tokens: expected whole frames of {num_codebooks} codebooks with {size} each, "
            "one after the other, found another order; it was cut, or is of another vocabulary: rerun the stage tokenize"
        )
    return np.ascontiguousarray((frames % size).T.astype(np.uint16))


def learn_merges(sequences: Iterable[np.ndarray], *, num_base: int, size: int) -> np.ndarray:
    """Learn merges (merge, 2) int32 from token sequences (position,) of `num_base` base tokens, up to `size` tokens in all.

    The same token sequences in any order give the same merges: of pairs that are equally frequent, the one with the lower
    ids comes first. Raises CorpusError when no pair occurs twice any more before there are `size` tokens.
    """
    if not num_base < size <= MAX_TOKENS:
        raise CorpusError(
            f"vocabularies.*.bpe.num_tokens: expected more tokens than the {num_base} that are merged (all codebooks "
            f"together), and at most {MAX_TOKENS}, found {size}; change it, or vocabularies.*.num_tokens"
        )
    from tokenizers import Tokenizer, models, trainers  # here, as in `Merger`: most who import this merge nothing

    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=_LEAST_COUNT,
        initial_alphabet=[_spell([token]) for token in range(num_base)],
        show_progress=False,
    )
    tokenizer.train_from_iterator((_spell(_checked(sequence, num_base)) for sequence in sequences), trainer)
    if tokenizer.get_vocab_size() < size:
        raise CorpusError(
            f"vocabularies.*.bpe.num_tokens: expected pairs of tokens that follow each other often enough for {size}, "
            f"found {tokenizer.get_vocab_size()} when no pair occurred {_LEAST_COUNT} times any more; lower it, or raise "
            "vocabularies.*.sample_frames if there are more training clips than that"
        )
    return _read_merges(tokenizer.to_str())


class Merger:
    """Applies learnt merges to token sequences, and takes merged tokens apart again."""

    def __init__(self, merges: np.ndarray, num_base: int) -> None:
        """Build from `merges` (merge, 2). Raises ValueError when they join tokens that do not exist by then."""
        from tokenizers import models

        self._parts, self._num_base = token_parts(merges, num_base), num_base
        spelling = [_spell(parts) for parts in self._parts]
        pairs = [(spelling[left], spelling[right]) for left, right in merges.tolist()]
        ids = {text: token for token, text in enumerate(spelling)}
        self.lengths = np.array([len(parts) for parts in self._parts], dtype=np.int64)  # (token,) in base tokens
        self._model = models.BPE(ids, pairs, cache_capacity=0)  # of clips, of which no two are alike

    def merge(self, sequence: np.ndarray) -> np.ndarray:
        """Return a sequence of base tokens (position,) with all merges applied, in the order learnt: (token,) uint16."""
        text = _spell(_checked(sequence, self._num_base))
        # The bare model, without the steps of a tokenizer that audio tokens have no use for: twice as fast (2.6 million
        # base tokens a second on one core, at 4,096 tokens).
        return np.array([piece.id for piece in self._model.tokenize(text)], dtype=np.uint16)

    def split(self, tokens: np.ndarray) -> np.ndarray:
        """Return the base tokens (position,) int64 of a merged token sequence (token,): `merge` backwards."""
        tokens = _checked(tokens, len(self._parts))
        return np.fromiter(chain.from_iterable(self._parts[token] for token in tokens.tolist()), dtype=np.int64)


def merger_of(merges: np.ndarray, num_base: int) -> Merger:
    """Return the merger of these merges; the one before is kept, since a stage asks for it with every batch."""
    return _merger(merges.tobytes(), num_base)


@lru_cache(maxsize=2)
def _merger(merges: bytes, num_base: int) -> Merger:
    return Merger(np.frombuffer(merges, dtype=np.int32).reshape(-1, 2), num_base)


def _spell(tokens: Sequence[int] | np.ndarray) -> str:
    """Return base tokens as characters."""
    return (np.asarray(tokens, dtype="<u4") + np.uint32(_FIRST)).tobytes().decode("utf-32-le")


def _checked(tokens: np.ndarray, size: int) -> np.ndarray:
    """Return the tokens; raise SonolexError unless all are below `size`: the library would silently drop others."""
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
        raise SonolexError(
            f"token sequence of {tokens.size} tokens: expected tokens from 0 to {size - 1}, found {int(tokens.min())} to "
            f"{int(tokens.max())}; they are of another vocabulary, or special tokens are among them: rerun tokenize"
        )
    return tokens


def _read_merges(model: str) -> np.ndarray:
    """Return what the library learnt, as its JSON, as pairs of ids (merge, 2) int32."""
    learnt = json.loads(model)["model"]
    pairs = [(learnt["vocab"][left], learnt["vocab"][right]) for left, right in learnt["merges"]]
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)

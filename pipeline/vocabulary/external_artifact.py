"""Artifact of external tokens for a fold: their counts and mean spectra over its training clips, and their vectors.

The mean spectrum of a token, over the frames in the middle of its occurrences, is what pages show it by. No model reads it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.artifacts.settings import SETTINGS
from pipeline.artifacts.spectrogram import Spectrogram
from pipeline.artifacts.vocabulary import (
    SPECTRA,
    NamedArray,
    Vocabulary,
    VocabularyMetadata,
    special_tokens,
    write_vocabulary_store,
)
from pipeline.spectrogram.reader import FrameReader
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.external import Params
from pipeline.vocabulary.sampling import FRAMES_PER_BATCH
from pipeline.vocabulary.spectra import mean_spectra
from pipeline.vocabulary.statistics import summarise
from pipeline.vocabulary.token_tables import ExternalTokens, read_token_table, read_vectors, require_clips


def write_external_vocabulary(
    path: Path, params: Params, spectrogram: Spectrogram, training_clips: Sequence[str], *, name: str, fold: str
) -> VocabularyMetadata:
    """Write the artifact of a fold, and return its metadata. Raises CorpusError for a table that has not all it should."""
    tokens, vectors, reader = read_token_table(params), read_vectors(params), FrameReader(spectrogram)
    clips = reader.ok(training_clips)
    require_clips(tokens, {clip: reader.num_frames(clip) / spectrogram.frame_rate for clip in clips}, params)
    shape, n_mels = (params.codebooks, params.num_tokens), spectrogram.metadata["n_mels"]
    counts, spectra = mean_spectra(
        _with_frames(tokens, clips, reader), shape, spectrogram.frame_rate / params.frame_rate
    )
    codes = np.empty((*shape, 0), np.float32) if vectors is None else vectors
    arrays = {
        "codebooks": codes,
        "mean": np.zeros(n_mels, np.float32),
        "scale": np.ones(n_mels, np.float32),
        "delta_scale": np.ones(n_mels, np.float32),
        "centre": np.empty(0, np.float32),
        "components": np.empty((0, 0), np.float32),
        "levels": np.broadcast_to(np.array([0, 1], np.float32), (*shape, 2)),
        "counts": counts,
        "merges": np.empty((0, 2), np.int32),
    }
    own = {SPECTRA: NamedArray(("codebook", "code", "mel"), spectra)}
    special = special_tokens(params.num_tokens)
    digest = hashlib.sha256("\x1f".join(clips).encode()).hexdigest()[:32]
    metadata: VocabularyMetadata = {
        "kind": params.kind,
        "additive": params.additive,
        "num_tokens": params.num_tokens,
        "num_codebooks": params.codebooks,
        "normalisation": "none",
        "features": {"deltas": 0, "stack": 1, "groups": 1},
        "bands": [[0, codes.shape[2]]] * params.codebooks,
        "bpe": {},
        "padding_token": special["padding_token"],
        "mask_token": special["mask_token"],
        "class_token": special["class_token"],
        "fold": fold,
        "role": "train",
        "front_end": spectrogram.metadata,
        "seed": 0,
        "sample": {"clips": len(clips), "tokens": int(counts.sum()), "digest": digest},
        "fit": dict(summarise(counts, frame_rate=params.frame_rate)),
        "external": {
            "kind": params.kind,
            "num_tokens": params.num_tokens,
            "table": params.table,
            "codebooks": params.codebooks,
            "frame_rate": params.frame_rate,
            "vectors": params.vectors,
        },
        SETTINGS: {f"vocabularies.{name}": params.model_dump(mode="json")},
    }
    write_vocabulary_store(path, arrays, own, metadata)
    return metadata


def recorded_params(vocabulary: Vocabulary) -> Params:
    """Return the settings of external tokens, as their artifact has them."""
    return Params.model_validate(vocabulary.metadata["external"])


def _with_frames(
    tokens: ExternalTokens, clips: Sequence[str], reader: FrameReader
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the tokens (codebook, token) of each clip, and its frames (frame, mel)."""
    for batch in clip_batches(clips, reader.num_frames, frames_per_batch=FRAMES_PER_BATCH):
        for clip, frames in zip(batch, reader.read(batch), strict=True):
            yield tokens.clips[tokens.rows[clip]], frames

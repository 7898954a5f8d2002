"""Rewrite every usable clip as a sentence: each frame replaced by its nearest words in a fold's vocabulary.

    spectrogram + vocabulary -> data/tokens/<fold>.parquet

Run as `python -m stages.tokenize`: run as a script, this file would hide the standard library's own `tokenize`.
"""

import logging
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.tokens import TOKENS, tokens_column
from pipeline.artifacts.vocabulary import VOCABULARY, open_vocabulary
from pipeline.execution.stage import StageReport, stage_main
from pipeline.spectrogram.reader import FrameReader
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.batching import clip_batches

FRAMES_PER_BATCH = 1 << 17  # 64 MiB of float32 at 128 mel bands, and as much again normalised

log = logging.getLogger(__name__)


def run(spectrogram_path: Path, vocabulary_path: Path, tokens_path: Path, *, fold: str) -> StageReport:
    report = StageReport("tokenize", fold)
    spectrogram, vocabulary = open_spectrogram(spectrogram_path), open_vocabulary(vocabulary_path)
    if vocabulary.facts["fold"] != fold:
        raise VOCABULARY.error(vocabulary_path, "fact fold", expected=fold, found=vocabulary.facts["fold"])
    vocabulary.require_front_end(spectrogram)

    reader = FrameReader(spectrogram)
    clip_ids = reader.ok(spectrogram.index.list("clip_id"))
    sentences: list[pa.ListArray] = []
    for batch in clip_batches(clip_ids, reader.num_frames, frames_per_batch=FRAMES_PER_BATCH):
        clips = reader.read(batch)
        sentences.append(tokens_column(assign(vocabulary, np.concatenate(clips)), [len(clip) for clip in clips]))
    columns = {
        "clip_id": pa.array(clip_ids, pa.string()),
        "tokens": pa.chunked_array(sentences, TOKENS.columns["tokens"]),
    }
    facts = {
        "fold": fold,
        "vocabulary": vocabulary.digest(),
        "vocabulary_size": vocabulary.size,
        "num_codebooks": vocabulary.num_codebooks,
        "frame_rate": spectrogram.frame_rate,
    }
    TOKENS.write(tokens_path, pa.table(columns), facts)
    log.info("fold %s: %d clips -> %s", fold, len(clip_ids), tokens_path)
    report.clips, report.bytes_written = len(clip_ids), tokens_path.stat().st_size
    return report


def main(spectrogram: Path, vocabulary: Path, tokens: Path, fold: Annotated[str, typer.Option()]) -> None:
    run(spectrogram, vocabulary, tokens, fold=fold).write()


if __name__ == "__main__":
    stage_main(main)

"""Stage `ngram_perplexity`: compute the perplexity of a fold's test clips under n-gram models of its training clips.

    clips + spectrogram + split + tokens -> results/ngram_perplexity/<vocabulary>/<fold>.csv

One row per class and order; labels are used only to group clips by class.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.ngram_perplexity import ALL_CLASSES, write_ngram_perplexity
from pipeline.artifacts.settings import require_current
from pipeline.artifacts.spectrogram import INDEX, open_spectrogram
from pipeline.artifacts.splits import SPLIT, clips_of, open_split
from pipeline.artifacts.tokens import TOKENS, open_tokens, token_arrays
from pipeline.errors import CorpusError
from pipeline.evaluation.ngram_perplexity import measure_ngram_perplexity
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import read_params

log = logging.getLogger(__name__)


def run(
    clips_path: Path, spectrogram_path: Path, split_path: Path, tokens_path: Path, table_path: Path, *, name: str
) -> None:
    """Measure a fold of the vocabulary `name`."""
    clips, spectrogram, split = open_clips(clips_path), open_spectrogram(spectrogram_path), open_split(split_path)
    fold = split.metadata["fold"]
    report, table = StageReport("ngram_perplexity", f"{name}/{fold}"), open_tokens(tokens_path)
    tokens, index = token_arrays(table), spectrogram.index
    roles = {role: [clip for clip in clips_of(split, role) if clip in tokens] for role in ("train", "test")}
    for role, own in roles.items():
        if not own:
            raise CorpusError(f"{tokens_path}: expected tokens of {role} clips of fold {fold}, found none")
    seconds = index["num_frames"].to_numpy() / spectrogram.frame_rate
    rows = measure_ngram_perplexity(
        tokens,
        vocabulary_size=table.metadata["vocabulary_size"],
        training_clips=roles["train"],
        test_clips=roles["test"],
        labels=dict(zip(clips.list("clip_id"), clips.list("labels"), strict=True)),
        classes=clips.metadata["classes"],
        seconds=dict(zip(index.list("clip_id"), seconds.tolist(), strict=True)),
    )
    write_ngram_perplexity(table_path, rows)
    overall = [f"{row.perplexity:.1f}" for row in rows if row.class_name == ALL_CLASSES]
    log.info("%s, fold %s: perplexity %s, by order from 1 -> %s", name, fold, ", ".join(overall), table_path)
    report.clips = len(roles["test"])
    report.write()


def main(
    vocabulary: Annotated[str, typer.Argument(help="entry of `vocabularies`")],
    fold: Annotated[str, typer.Option(help="fold whose test clips are measured")],
) -> None:
    layout = Layout()
    tokens, table = layout.tokens(vocabulary, fold), layout.ngram_perplexity(vocabulary, fold)
    require_current(
        read_params(),
        (CLIPS, layout.clips),
        (INDEX, layout.spectrogram_index),
        (SPLIT, layout.split(fold)),
        (TOKENS, tokens),
    )
    run(layout.clips, layout.spectrogram, layout.split(fold), tokens, table, name=vocabulary)


if __name__ == "__main__":
    stage_main(main)

"""Stage `tokenize`: encode every usable clip as a token sequence of a fold's vocabulary.

    spectrogram + vocabulary -> data/tokens/<name>/<fold>.parquet
    those of the development set -> data/development/tokens/<name>/<fold>.parquet

Run as `python -m stages.tokenize`: run as a script, this file would hide the standard library's own `tokenize`. Token
sequences that the memo store holds for this vocabulary are reused. Training reads the second table alone, and depends on it
alone.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.development import DEVELOPMENT, open_development
from pipeline.artifacts.files import clear_partials
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import require_current
from pipeline.artifacts.spectrogram import INDEX, Spectrogram, open_spectrogram
from pipeline.artifacts.vocabulary import VOCABULARY, open_vocabulary
from pipeline.evaluation.tokenizing import tokenize_clips
from pipeline.execution.executors import ExecutionParams, run_shards
from pipeline.execution.memo import Entry, Memo, retry_lost
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import load_params, read_params
from pipeline.vocabulary.sequences import (
    compute_sequences,
    find_known,
    open_memo,
    plan_sequences,
    select_sequences,
    sequences_specs,
    write_sequences,
    write_table_sequences,
)

log = logging.getLogger(__name__)

# Starting a worker takes as long as encoding this many frames.
_FRAMES_WORTH_A_WORKER = 5_000_000


def run(
    execution: ExecutionParams, spectrogram_path: Path, vocabulary_path: Path, tokens_path: Path, *, fold: str
) -> StageReport:
    name = tokens_path.parent.name
    report = StageReport("tokenize", f"{name}-{fold}")
    spectrogram, vocabulary = open_spectrogram(spectrogram_path), open_vocabulary(vocabulary_path)
    if vocabulary.metadata["fold"] != fold:
        raise VOCABULARY.error(vocabulary_path, "metadata fold", expected=fold, found=vocabulary.metadata["fold"])
    vocabulary.require_front_end(spectrogram)
    clear_partials(tokens_path)
    if vocabulary.external:
        report.clips = report.reused = write_table_sequences(tokens_path, spectrogram, vocabulary)
        report.bytes_written = tokens_path.stat().st_size
        log.info("%s, fold %s: %d clips: read -> %s", name, fold, report.clips, tokens_path)
        return report

    memo = open_memo(execution.memo, vocabulary, spectrogram, tokenize_clips)
    plans = plan_sequences(spectrogram)
    report.clips, report.shards = sum(len(plan.index) for plan in plans.values()), len(plans)

    def build() -> None:
        entries = _compute(execution, plans, memo, vocabulary_path, report)
        write_sequences(tokens_path, list(plans), entries, vocabulary)

    retry_lost(build)
    report.bytes_written = tokens_path.stat().st_size
    log.info(
        "%s, fold %s: %d clips: tokenised %d, reused %d -> %s",
        name, fold, report.clips, report.decoded, report.reused, tokens_path,
    )  # fmt: skip
    return report


def _compute(
    execution: ExecutionParams, plans: dict[str, Spectrogram], memo: Memo, vocabulary_path: Path, report: StageReport
) -> dict[str, Entry]:
    """Compute the shards that the memo lacks, and return the entries of all."""
    memo.mark_used(plans)
    entries, known = find_known(memo, plans, thorough=True)
    memo.mark_used(set(known.values()))
    todo = [plan.index for name, plan in plans.items() if name not in entries]
    report.reused = max(0, report.clips - sum(map(len, todo)) - report.decoded)
    frames = sum(index["num_frames"].to_numpy().sum() for index in todo)
    specs = sequences_specs(plans, entries, known, vocabulary_path, memo, tokenize_clips)
    for done in run_shards(
        compute_sequences,
        specs,
        execution=execution,
        report=report,
        label="tokenize",
        total_clips=sum(map(len, todo)),
        num_clips=lambda spec: len(spec.spectrogram.index),
        worthwhile=int(frames // _FRAMES_WORTH_A_WORKER),
    ):
        entries[done.name] = memo.require(done.name)
        report.decoded += done.computed
        report.reused += done.reused
    return entries


def main(
    name: Annotated[str, typer.Argument(help="entry of `vocabularies`")],
    fold: Annotated[str, typer.Option(help="fold of the vocabulary")],
) -> None:
    layout = Layout()
    vocabulary, development = layout.vocabulary(name, fold), layout.development(fold)
    require_current(
        read_params(), (INDEX, layout.spectrogram_index), (DEVELOPMENT, development), (VOCABULARY, vocabulary)
    )
    execution, tokens = load_params(ExecutionParams, "execution"), layout.tokens(name, fold)
    report = run(execution, layout.spectrogram, vocabulary, tokens, fold=fold)
    clip_ids = open_development(development, fold=fold)["clip_id"]
    select_sequences(tokens, clip_ids, layout.development_tokens(name, fold))
    report.write()


if __name__ == "__main__":
    stage_main(main)

"""Stage `perplexity`: compute the pseudo-perplexity of a fold's test clips under a pretrained model, per class.

    pretrained + clips + split + tokens + vocabulary -> results/perplexity/<model>/<fold>/<seed>.csv

The model is that of the stage `pretrain`. Labels are used only to group clips by class.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.pretrained import PRETRAINED, open_pretrained
from pipeline.artifacts.settings import require_current
from pipeline.artifacts.splits import SPLIT, clips_of, open_split
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.errors import CorpusError
from pipeline.evaluation.pseudo_perplexity import measure_surprise, perplexity_rows, write_perplexity
from pipeline.execution.stage import StageReport, stage_main
from pipeline.execution.threads import trained_threads, use_threads
from pipeline.models.base import NOT_NORMALISED
from pipeline.params import read_params
from pipeline.training.batches import Batches
from pipeline.training.inputs import input_artifacts, open_sequences
from pipeline.training.masked_tokens import Unigrams
from pipeline.training.targets import class_targets
from pipeline.training.token_predictor import open_predictor

log = logging.getLogger(__name__)


def run(clips_path: Path, split_path: Path, tokens: Path, vocabulary: Path, pretrained_path: Path, table: Path) -> None:
    clips, split = open_clips(clips_path), open_split(split_path)
    inputs = open_sequences(tokens, open_vocabulary(vocabulary))
    pretrained = open_pretrained(pretrained_path, fold=split.metadata["fold"], source=inputs.source)
    model, fold, seed = (pretrained.metadata[key] for key in ("model", "fold", "seed"))
    report = StageReport("perplexity", f"{model}/{fold}/{seed}")
    use_threads(trained_threads(pretrained.metadata))
    test = inputs.usable(clips_of(split, "test"))
    if not test:
        raise CorpusError(f"{tokens}: expected token sequences of test clips of fold {fold}, found none")
    masking = pretrained.metadata["pretrain"]
    surprise, counts = measure_surprise(
        open_predictor(pretrained),
        Batches(inputs, test, NOT_NORMALISED),
        share=masking["mask_share"],
        span=masking["mask_span"],
    )
    unigrams = Unigrams(inputs.arrays(inputs.usable(clips_of(split, "train"))), inputs.metadata["vocabulary_size"])
    unigram = unigrams.losses(inputs.arrays(test))
    rows = perplexity_rows(surprise, unigram, counts, class_targets(clips, test), clips.metadata["classes"])
    write_perplexity(table, rows)
    log.info(
        "%s, fold %s: pseudo-perplexity %.1f of test clips, by frequencies alone %.1f -> %s",
        model, fold, rows[0].pseudo_perplexity, rows[0].unigram_perplexity, table,
    )  # fmt: skip
    report.clips = len(test)
    report.write()


def main(
    entry: Annotated[str, typer.Argument(help="entry of `models`")],
    vocabulary: Annotated[str, typer.Option(help="entry of `vocabularies`")],
    fold: Annotated[str, typer.Option(help="fold whose test clips are measured")],
    seed: Annotated[int, typer.Option()],
) -> None:
    layout, this = Layout(), RunId.of(entry, fold, seed, vocabulary=vocabulary)
    pretrained = layout.pretrained(this)
    require_current(
        read_params(),
        (CLIPS, layout.clips),
        (SPLIT, layout.split(fold)),
        (PRETRAINED, pretrained),
        *input_artifacts(layout, this.model, fold, layout.source(this.model, fold)),
    )
    run(
        layout.clips,
        layout.split(fold),
        layout.tokens(vocabulary, fold),
        layout.vocabulary(vocabulary, fold),
        pretrained,
        layout.pseudo_perplexity(this),
    )


if __name__ == "__main__":
    stage_main(main)

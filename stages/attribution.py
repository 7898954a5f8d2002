"""Stage `attribution`: attribute a token model's logits to its tokens, by integrated gradients, for the atlas.

    models/<model> + tokens + clips + split -> results/attribution/<vocabulary>/<fold>/<entry>.parquet

Runs for the models of `atlas.attribution` on the first fold with the first seed, by default for none. The clips are test
clips of the fold, the classes in turn: nothing is fitted, and the network was not trained on them.
"""

import logging
from typing import Annotated

import numpy as np
import typer

from pipeline.artifacts.attribution import ATTRIBUTION, AttributionMetadata
from pipeline.artifacts.clips import CLIPS, link_of, open_clips
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.model import MODEL, open_model
from pipeline.artifacts.settings import require_current
from pipeline.artifacts.splits import SPLIT, clips_of, open_split
from pipeline.artifacts.tokens import TOKENS
from pipeline.errors import CorpusError
from pipeline.evaluation.choosing import choose_in_turn
from pipeline.evaluation.token_attribution import Attributor
from pipeline.execution.stage import StageReport, stage_main
from pipeline.execution.threads import trained_threads, use_threads
from pipeline.params import load_params, read_params
from pipeline.reporting.atlas.settings import AtlasParams
from pipeline.training.inputs import open_inputs_of

log = logging.getLogger(__name__)


def run(params: AtlasParams, layout: Layout, this: RunId) -> StageReport:
    report = StageReport("attribution", f"{this.model.entry}-{this.model.vocabulary}")
    model = open_model(layout.model(this))
    use_threads(trained_threads(model.metadata))
    clips, inputs = open_clips(layout.clips), open_inputs_of(model, layout.tokens(this.model.vocabulary, this.fold))
    classes = clips.metadata["classes"]
    labels = dict(zip(clips.list("clip_id"), clips.list("labels"), strict=True))
    usable = inputs.usable(clips_of(open_split(layout.split(this.fold)), "test"))
    candidates = [(clip, labels[clip][0]) for clip in usable if labels[clip]]
    if not candidates:
        raise CorpusError(f"{layout.split(this.fold)}: expected labelled test clips with tokens, found none")
    chosen = choose_in_turn(candidates, len(classes), params.attribution_clips)
    found = Attributor(model, inputs, steps=params.attribution_steps).read_all({clip: labels[clip] for clip in chosen})
    books, tokens = np.nonzero(found.occurrences)
    columns = {"codebook": books, "token": tokens, "occurrences": found.occurrences[books, tokens]}
    values = {"attribution": found.means[books, tokens].tolist(), "own": found.own[books, tokens]}
    metadata: AttributionMetadata = {
        "model": this.model.name,
        "fold": this.fold,
        "seed": this.seed,
        "classes": classes,
        "vocabulary": model.metadata["source"],
        "weights": str(model.metadata["weights"]),
        "relative": link_of(model.metadata) == "softmax",
        "steps": params.attribution_steps,
        "num_clips": len(chosen),
        "gap": found.gap,
        "difference": found.difference,
    }
    path = layout.attribution(this.model, this.fold)
    ATTRIBUTION.write(path, {**columns, **values}, metadata)
    log.info(
        "%s: %d tokens in %d clips; sums of attributions are off by %.2g of logits of %.2g -> %s",
        this.name, len(tokens), len(chosen), found.gap, found.difference, path,
    )  # fmt: skip
    report.clips, report.bytes_written = len(chosen), path.stat().st_size
    return report


def main(
    entry: Annotated[str, typer.Argument(help="entry of `models`, one of atlas.attribution")],
    vocabulary: Annotated[str, typer.Option(help="entry of `vocabularies`")],
    fold: Annotated[str, typer.Option(help="fold of the model, whose test clips are read")],
    seed: Annotated[int, typer.Option()],
) -> None:
    layout, this = Layout(), RunId.of(entry, fold, seed, vocabulary=vocabulary)
    require_current(
        read_params(),
        (CLIPS, layout.clips),
        (SPLIT, layout.split(fold)),
        (TOKENS, layout.tokens(vocabulary, fold)),
        (MODEL, layout.model(this)),
    )
    run(load_params(AtlasParams, "atlas"), layout, this).write()


if __name__ == "__main__":
    stage_main(main)

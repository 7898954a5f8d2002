"""Stage `evaluate`: predict the test clips of one fold, and store logits and targets.

    models/<model>/<fold>/<seed> + clips + split + (spectrogram | tokens) -> predictions/<model>/<fold>/<seed>.parquet

Of a run with kept epochs it also stores the logits of its variants. It computes no metrics; `report` does, from these
predictions. Under torchrun the processes share the clips, and the first
writes all predictions.
"""

import logging
import time
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.clips import CLIPS, link_of, open_clips
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.model import MODEL, open_model, predicting_digest
from pipeline.artifacts.predictions import PredictionsMetadata, logits_column, write_predictions
from pipeline.artifacts.settings import SETTINGS, require_current
from pipeline.artifacts.splits import SPLIT, clips_of, open_split
from pipeline.artifacts.tokens import TOKENS
from pipeline.errors import CorpusError
from pipeline.evaluation.prediction import open_predictor
from pipeline.evaluation.variants import variants_of
from pipeline.execution import launch
from pipeline.execution.stage import StageReport, stage_main
from pipeline.execution.threads import trained_threads, use_threads
from pipeline.params import read_params
from pipeline.training.inputs import input_artifacts, open_inputs_of
from pipeline.training.targets import class_targets

log = logging.getLogger(__name__)


def run(clips_path: Path, split_path: Path, source: Path, model_path: Path, predictions_path: Path) -> None:
    model = open_model(model_path)
    name, fold, seed = model.metadata["model"], model.metadata["fold"], model.metadata["seed"]
    report = StageReport("evaluate", f"{name}/{fold}/{seed}")
    use_threads(trained_threads(model.metadata))
    clips, split = open_clips(clips_path), open_split(split_path)
    if clips.metadata["classes"] != model.metadata["classes"]:
        raise CorpusError(
            f"{model_path}: classes: expected those of {clips_path} ({len(clips.metadata['classes'])}), found "
            f"{len(model.metadata['classes'])} others; train the model again"
        )
    inputs = open_inputs_of(model, source)
    ids: list[str] = []
    roles: list[str] = []
    for role in ("validation", "test"):
        usable = inputs.usable(clips_of(split, role))
        ids, roles = ids + usable, roles + [role] * len(usable)
    if "test" not in roles:
        raise CorpusError(f"{split_path}: expected test clips with frames in fold {fold}, found none")
    started = time.perf_counter()
    logits = open_predictor(model).predict_variants(inputs, ids)
    seconds = time.perf_counter() - started
    if not launch.is_main_process():
        return
    metadata: PredictionsMetadata = {
        "model": name,
        "fold": fold,
        "seed": seed,
        "classes": clips.metadata["classes"],
        "label_kind": clips.metadata["label_kind"],
        "link": link_of(model.metadata),
        "weights": predicting_digest(model.metadata),
        "reads": model.metadata["reads"],
        "params": model.metadata["params"],
        "num_parameters": model.metadata["num_parameters"],
        "clips_seen": model.metadata["clips_seen"],
        SETTINGS: model.metadata.get(SETTINGS, {}),
    }
    if variants := variants_of(model):
        metadata["variants"] = variants
    columns = {"clip_id": ids, "role": roles, "targets": class_targets(clips, ids).tolist()}
    columns |= {logits_column(variant): values.tolist() for variant, values in logits.items()}
    write_predictions(predictions_path, columns, metadata)
    log.info("%s, fold %s: %d clips, %.0f clips/s", name, fold, len(ids), len(ids) / seconds)
    report.clips = len(ids)
    report.write()


def main(
    entry: Annotated[str, typer.Argument(help="entry of `models`")],
    fold: Annotated[str, typer.Option(help="fold whose test clips are predicted")],
    seed: Annotated[int, typer.Option()],
    vocabulary: Annotated[str, typer.Option(help="entry of `vocabularies`, for a model that reads tokens")] = "",
    pretrained: Annotated[bool, typer.Option(help="whether the model was pretrained")] = False,
) -> None:
    layout, this = Layout(), RunId.of(entry, fold, seed, vocabulary=vocabulary, pretrained=pretrained)
    clips, split, source, model = layout.clips, layout.split(fold), layout.source(this.model, fold), layout.model(this)
    inputs = [(TOKENS, source)] if vocabulary else input_artifacts(layout, this.model, fold, source)
    require_current(read_params(), (CLIPS, clips), (SPLIT, split), (MODEL, model), *inputs)
    run(clips, split, source, model, layout.prediction(this))


if __name__ == "__main__":
    stage_main(main)

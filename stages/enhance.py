"""Stage `enhance`: add labels to a fold's training clips that an ontology implies and out-of-fold scores confirm.

    clips + splits + predictions of the fold's inner folds + ontology -> labels/<fold>.parquet

The result is a new table, without the fold's test clips, which `labels.use` may name in another experiment. The stage runs
for the folds of `labels.enhance`, by default for none (docs/corpora.md).
"""

import logging
from typing import Annotated

import numpy as np
import typer

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.files import file_digest
from pipeline.artifacts.labels import LABELS, LabelledClass, LabelsMetadata
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import SETTINGS, require_current
from pipeline.corpora.ontology import read_ontology
from pipeline.evaluation.enhancement import LabelParams, enhance, out_of_fold
from pipeline.execution.stage import StageReport, stage_main
from pipeline.grid import ExperimentParams
from pipeline.params import load_params, read_params

log = logging.getLogger(__name__)


def run(
    params: LabelParams,
    experiment: ExperimentParams,
    layout: Layout,
    fold: str,
) -> None:
    report = StageReport("enhance", fold)
    clips, labels_path = open_clips(layout.clips), layout.labels(fold)
    classes: list[str] = clips.metadata["classes"]
    ontology = read_ontology(params.ontology, classes, clips.metadata.get("class_ids"))
    scored = out_of_fold(params, experiment, fold, clips, layout)
    enhanced = enhance(scored.scores, scored.labels, ontology, params.types, params.threshold)
    order = sorted(range(len(scored.clip_ids)), key=scored.clip_ids.__getitem__)
    columns = {
        "clip_id": [scored.clip_ids[row] for row in order],
        "published": [np.flatnonzero(scored.labels[row]).tolist() for row in order],
        "labels": [np.flatnonzero(enhanced.labels[row]).tolist() for row in order],
    }
    added = {kind: enhanced.added.get(kind, np.zeros(len(classes), dtype=np.int64)) for kind in (1, 2)}
    per_class: list[LabelledClass] = [
        {
            "class": name,
            "positives": int(scored.labels[:, position].sum()),
            "threshold": None if np.isnan(threshold) else float(threshold),
            "added_1": int(added[1][position]),
            "added_2": int(added[2][position]),
        }
        for position, (name, threshold) in enumerate(zip(classes, enhanced.thresholds, strict=True))
    ]
    metadata: LabelsMetadata = {
        "fold": fold,
        "corpus": clips.metadata["corpus"],
        "classes": classes,
        "models": params.models,
        "weights": list(scored.weights),
        "ontology": file_digest(params.ontology),
        "types": sorted(params.types),
        "threshold": params.threshold,
        "per_class": per_class,
        SETTINGS: {"labels": params.model_dump(mode="json", exclude={"use", "enhance", "ontology"})},
    }
    LABELS.write(labels_path, columns, metadata)
    num_changed = int((enhanced.labels != scored.labels).any(axis=1).sum())
    log.info(
        "fold %s: %d labels added to %d of %d training clips (type 1: %d, type 2: %d) -> %s", fold,
        enhanced.labels.sum() - scored.labels.sum(), num_changed, len(order), added[1].sum(), added[2].sum(), labels_path,
    )  # fmt: skip
    without = [row["class"] for row in per_class if not row["positives"]]
    for what, names in (("no clip, so no threshold", without), ("no place in the ontology", ontology.unknown)):
        if names:
            log.warning("%d classes have %s and are never added: %s", len(names), what, ", ".join(map(str, names)))
    report.clips = len(order)
    report.bytes_written = labels_path.stat().st_size
    report.write()


def main(fold: Annotated[str, typer.Argument(help="fold whose training clips' labels are enhanced")]) -> None:
    layout = Layout()
    require_current(read_params(), (CLIPS, layout.clips))
    run(load_params(LabelParams, "labels"), load_params(ExperimentParams, "experiment"), layout, fold)


if __name__ == "__main__":
    stage_main(main)

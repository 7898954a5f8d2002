"""Label quality: how likely each clip's labels are right, from out-of-fold predictions (confident learning).

Northcutt, Jiang and Chuang, 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 70), as cleanlab has
it. A clip's score is the probability that models, which were not trained on it, give the labels that it has; each class is
measured against the mean probability of the clips labelled with it. Where clips have several labels, the scores of a clip's
classes are pooled so that the worst counts most (Thyagarajan et al., 2022, arXiv 2211.13895).

Conventions: scores (clip, class) are probabilities, labels and unknown (clip, class) bool.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.artifacts.clips import ClipTable, LabelKind
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.predictions import open_predictions
from pipeline.artifacts.training_labels import TrainingLabelTable
from pipeline.corpora.splitting import PUBLISHED_ROLES
from pipeline.errors import CorpusError, ParamsError, SonolexError
from pipeline.evaluation.choosing import ScoredExperiment
from pipeline.evaluation.ensemble import average_predictions
from pipeline.grid import ExperimentParams
from pipeline.training.targets import class_targets


@dataclass(frozen=True, eq=False)
class Labelled:
    """Clips that may be trained on, with their labels and out-of-fold scores; rows of the arrays follow `clip_ids`."""

    clip_ids: tuple[str, ...]
    scores: NDArray[np.float64]
    labels: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    label_kind: LabelKind


@dataclass(frozen=True, eq=False)
class LabelQuality:
    """Quality of every clip's labels."""

    values: NDArray[np.float64]  # (clip,) in [0, 1], 0 is worst
    doubtful: NDArray[np.bool_]  # (clip,) whether confident learning counts the labels as wrong
    order: NDArray[np.int64]  # (clip,) rows, the most doubtful first


def score_folds(experiment: ExperimentParams, models: Sequence[str], layout: Layout) -> ScoredExperiment:
    """Return the test clips of all folds, scored by models that were not trained on them, averaged over seeds.

    Raises ParamsError for a model that the experiment has not, ArtifactError for predictions that are missing.
    """
    by_name = {model.name: model for model in experiment.model_ids}
    if unknown := [name for name in models if name not in by_name]:
        known = f"models of the experiment ({', '.join(by_name)})"
        raise ParamsError(f"labels.models, or --model: expected {known}, found {', '.join(unknown)}")
    scored = {
        (name, fold): average_predictions(
            [open_predictions(layout.prediction(RunId(by_name[name], fold, seed))) for seed in experiment.seeds], "test"
        )
        for name in models
        for fold in experiment.folds
    }
    fold_of: dict[str, str] = {}
    for fold in experiment.folds:
        for clip in scored[models[0], fold].clip_ids:
            fold_of.setdefault(clip, fold)
    return ScoredExperiment(tuple(models), tuple(experiment.folds), scored, fold_of)


def collect_labelled(scores: ScoredExperiment, clips: ClipTable, replacing: TrainingLabelTable) -> Labelled:
    """Return the clips that may be trained on, labelled as they are trained on, with the mean of the models' scores.

    Raises CorpusError when no scored clip may be trained on.
    """
    folds = dict(zip(clips.list("clip_id"), clips.list("fold"), strict=True))
    usable = {clip for clip in scores.fold_of if PUBLISHED_ROLES.get(folds[clip].lower(), "train") == "train"}
    if not usable:
        raise CorpusError(
            f"{clips.path}: expected predictions of clips that are trained on, found those of published test clips alone; "
            f"train inner folds: experiment.folds: [{scores.folds[0]}-1, {scores.folds[0]}-2, ...] up to split.num_folds "
            "(docs/corpora.md)"
        )
    ids, rows = [], []
    for fold in scores.folds:
        members = [scores.scored[model, fold] for model in scores.models]
        places = [{clip: row for row, clip in enumerate(member.clip_ids)} for member in members]
        for clip in members[0].clip_ids:
            if clip in usable and scores.fold_of[clip] == fold:
                ids.append(clip)
                rows.append(np.mean([m.scores[place[clip]] for m, place in zip(members, places, strict=True)], axis=0))
    targets = class_targets(clips, ids)
    own = replacing.columns.filter(pc.is_in(replacing["clip_id"], pa.array(ids, pa.string()))).to_pylist()
    row_of = {clip: row for row, clip in enumerate(ids)}
    for replaced in own:
        row = row_of[replaced["clip_id"]]
        targets[row] = 0
        targets[row, replaced["unknown"]] = np.nan
        targets[row, replaced["labels"]] = 1
    return Labelled(tuple(ids), np.stack(rows), targets == 1, np.isnan(targets), clips.metadata["label_kind"])


def rank_labels(clips: Labelled) -> LabelQuality:
    """Return the quality of all labels. Raises SonolexError where cleanlab is not installed."""
    try:
        from cleanlab import filter as one
        from cleanlab import multilabel_classification as many
        from cleanlab import rank
    except ModuleNotFoundError as error:
        raise SonolexError(
            f"sonolex doubtful: expected the package cleanlab, found no {error.name}; install the extra `labels`: "
            "`pip install cleanlab`"
        ) from None
    if clips.label_kind == "one":
        given = clips.labels.argmax(axis=1)
        values = rank.get_label_quality_scores(given, clips.scores, adjust_pred_probs=True)
        doubtful = one.find_label_issues(given, clips.scores, n_jobs=1)
    else:
        scores = np.where(clips.unknown, 0, clips.scores)  # agrees with what counts as absent
        lists = [np.flatnonzero(row).tolist() for row in clips.labels]
        values = many.get_label_quality_scores(lists, scores)
        doubtful = many.filter.find_label_issues(lists, scores, n_jobs=1)
    values, doubtful = np.asarray(values, np.float64), np.asarray(doubtful, bool)
    order = sorted(range(len(values)), key=lambda row: (values[row], clips.clip_ids[row]))
    return LabelQuality(values, doubtful, np.array(order, np.int64))

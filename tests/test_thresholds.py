"""Thresholds of decisions: what is fitted, on which clips, and where they are used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from pydantic import TypeAdapter
from sklearn.metrics import f1_score

from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import PREDICTIONS, open_predictions
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.thresholds import THRESHOLDS
from pipeline.check_params import load_experiment
from pipeline.errors import ArtifactError, ParamsError
from pipeline.evaluation.experiment_predictions import open_decided_predictions
from pipeline.evaluation.metric_functions import decide
from pipeline.evaluation.metrics import evaluate_clips, evaluate_scores
from pipeline.evaluation.thresholds import ThresholdParams, best_f1_threshold, fit_thresholds
from pipeline.grid import EnsembleParams, ExperimentParams
from stages.thresholds import run
from tools.compose import compose, dump

NAN = float("nan")
CLASSES = ("common", "rare", "rarer")
GRID: dict[str, list[Any]] = {
    "token_models": [],
    "pretrained_models": [],
    "vocabularies": [],
    "supervised_vocabularies": [],
    "learned_vocabularies": [],
}
EXPERIMENT = ExperimentParams(
    frame_models=["ast", "cnn"],
    folds=["1"],
    seeds=[0, 1],
    ensembles=[EnsembleParams(name="both", models=["ast", "cnn"])],
    **GRID,
)


def params(**values: object) -> ThresholdParams:
    adapter: TypeAdapter[ThresholdParams] = TypeAdapter(ThresholdParams)
    return adapter.validate_python(values)


PER_CLASS = params(kind="per_class", min_positives=3)
GLOBAL = params(kind="global", metric="macro_f1")
FIXED = params(kind="fixed", value=0.5)


def unbalanced(num_clips: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and targets (clip, class) of a model that is right, and too unsure of rare classes."""
    targets = generator.random((num_clips, 3)) < [0.5, 0.1, 0.05]
    logits = 2 * targets + generator.normal(scale=0.7, size=targets.shape) - [1, 2.5, 3.5]
    return logits.astype(np.float32), targets.astype(np.float32)


def write_predictions(
    root: Path, fold: str, roles: dict[str, int], label_kind: str = "many", experiment: ExperimentParams = EXPERIMENT
) -> None:
    """Write predictions of every run for so many clips of each role; a role has the same clips in every fold."""
    generator, clips = np.random.default_rng(len(fold)), sum(roles.values())
    names = [role for role, count in roles.items() for _ in range(count)]
    _, targets = unbalanced(clips, np.random.default_rng(1))
    if label_kind == "one":
        targets = np.eye(3, dtype=np.float32)[generator.integers(0, 3, clips)]
    for this in experiment.runs():
        if this.fold == fold:
            logits = 2 * targets + generator.normal(scale=0.7, size=targets.shape) - [1, 2.5, 3.5]
            columns = {
                "clip_id": [f"{role}{number}" for number, role in enumerate(names)],
                "role": names,
                "logits": logits.astype(np.float32).tolist(),
                "targets": targets.tolist(),
            }
            metadata = {"model": this.model.name, "fold": fold, "seed": this.seed, "classes": list(CLASSES)}
            metadata |= {"label_kind": label_kind, "weights": f"weights of {this.path}", "num_parameters": 1}
            metadata |= {"reads": "frames", "params": {"kind": "network"}, "clips_seen": 1}
            PREDICTIONS.write(Layout(root).prediction(this), columns, metadata)


def test_the_threshold_of_a_class_by_hand() -> None:
    # Descending: +, +, -, +, -: F1 of the first 1, 2, ... is 2/4, 4/5, 4/6, 6/7, 6/8.
    scores = np.array([0.9, 0.8, 0.6, 0.3, 0.1])
    assert best_f1_threshold(scores, np.array([1, 1, 0, 1, 0], bool)) == pytest.approx(0.2)
    assert best_f1_threshold(scores, np.array([1, 1, 0, 0, 0], bool)) == pytest.approx(0.7)
    assert best_f1_threshold(scores, np.ones(5, bool)) == pytest.approx(0.05)
    equal = np.array([0.5, 0.5, 0.1])
    assert best_f1_threshold(equal, np.array([1, 0, 0], bool)) == pytest.approx(0.3)  # equal scores are decided alike


def test_the_threshold_of_a_class_is_the_best_there_is() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores, targets = np.round(generator.random(30), 1), generator.random(30) < 0.3
        targets[0] = True
        best = max(f1_score(targets, scores >= threshold) for threshold in np.unique(scores))
        assert f1_score(targets, scores >= best_f1_threshold(scores, targets)) == pytest.approx(best)


@pytest.mark.parametrize("metric", ["macro_f1", "micro_f1", "hamming_score"])
def test_one_threshold_is_the_best_of_its_metric(metric: str) -> None:
    logits, targets = unbalanced(400, np.random.default_rng(0))
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    targets[np.random.default_rng(1).random(targets.shape) < 0.2] = NAN
    found = fit_thresholds(params(kind="global", metric=metric), scores, targets)
    assert len(set(found)) == 1
    value = evaluate_scores(scores, targets, "many", found).values[metric]
    tried = [evaluate_scores(scores, targets, "many", float(own)).values[metric] for own in np.linspace(0.02, 0.98, 49)]
    assert value >= max(tried)


def test_a_class_with_few_positives_has_the_threshold_of_all() -> None:
    logits, targets = unbalanced(300, np.random.default_rng(0))
    targets[:, 2] = 0
    targets[:2, 2] = 1
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found, one = fit_thresholds(PER_CLASS, scores, targets), fit_thresholds(GLOBAL, scores, targets)
    assert found[2] == one[0]
    assert found[0] != one[0]
    assert len(set(fit_thresholds(params(kind="per_class", min_positives=2), scores, targets))) == 3


def test_unknown_labels_fit_nothing() -> None:
    logits, targets = unbalanced(300, np.random.default_rng(0))
    scores, unknown = 1 / (1 + np.exp(-logits.astype(np.float64))), np.arange(300) % 3 == 0
    targets[unknown] = NAN
    for settings in (PER_CLASS, GLOBAL):
        expected = fit_thresholds(settings, scores[~unknown], targets[~unknown])
        np.testing.assert_array_equal(fit_thresholds(settings, scores, targets), expected)
    nothing = fit_thresholds(PER_CLASS, scores, np.zeros_like(targets))
    np.testing.assert_allclose(nothing, 0.5, atol=1e-9)


def test_fitted_thresholds_raise_the_macro_f1_of_an_unbalanced_set(tmp_path: Path) -> None:
    write_predictions(tmp_path, "1", {"validation": 600, "test": 600})
    found = {}
    for name, settings in (("fixed", FIXED), ("global", GLOBAL), ("per_class", PER_CLASS)):
        run(settings, EXPERIMENT, Layout(tmp_path))
        predictions = open_decided_predictions(EXPERIMENT, Layout(tmp_path))
        found[name] = evaluate_clips(predictions.scored("ast", "1")).values
    assert found["fixed"]["macro_f1"] + 0.1 < found["global"]["macro_f1"] < found["per_class"]["macro_f1"]
    assert found["fixed"]["mAP"] == found["per_class"]["mAP"]


def test_shuffled_test_labels_leave_thresholds_alone(tmp_path: Path) -> None:
    write_predictions(tmp_path, "1", {"validation": 200, "test": 200})
    layout = Layout(tmp_path)
    run(PER_CLASS, EXPERIMENT, layout)
    before = layout.thresholds.read_bytes()
    reverse_targets(layout, slice(200, 400))
    run(PER_CLASS, EXPERIMENT, layout)
    assert layout.thresholds.read_bytes() == before
    reverse_targets(layout, slice(200))  # those of validation clips are what they follow from
    run(PER_CLASS, EXPERIMENT, layout)
    assert layout.thresholds.read_bytes() != before


def reverse_targets(layout: Layout, rows: slice) -> None:
    """Give the clips of these rows each other's targets, in all predictions."""
    for this in EXPERIMENT.runs():
        table = open_predictions(layout.prediction(this))
        columns = {name: table.list(name) for name in PREDICTIONS.columns}
        columns["targets"][rows] = columns["targets"][rows][::-1]
        PREDICTIONS.write(table.path, columns, table.metadata)


def test_averages_have_thresholds_of_their_own(tmp_path: Path) -> None:
    write_predictions(tmp_path, "1", {"validation": 300, "test": 10})
    run(PER_CLASS, EXPERIMENT, Layout(tmp_path))
    table = THRESHOLDS.open(Layout(tmp_path).thresholds)
    names = [f"{model}/{seed}" for model, seed in zip(table.list("model"), table.list("seed"), strict=True)]
    assert names == ["ast/0", "ast/1", "ast/all", "cnn/0", "cnn/1", "cnn/all", "both/all"]
    assert len({tuple(row) for row in table.list("thresholds")}) == 7
    assert set(table.list("num_clips")) == {300}
    assert set(table.list("source")) == {"validation"}
    clips = open_decided_predictions(EXPERIMENT, Layout(tmp_path)).scored("both", "1")
    assert np.array_equal(clips.thresholds, table.list("thresholds")[-1])
    assert np.array_equal(clips.decisions, decide(clips.scores, "many", clips.thresholds))


def write_split(root: Path, fold: str, roles: dict[str, str]) -> None:
    columns = {"clip_id": list(roles), "role": list(roles.values())}
    SPLIT.write(Layout(root).split(fold), columns, {"fold": fold, "seed": 0, "rule": ""})


def test_without_validation_clips_they_are_fitted_on_what_inner_folds_test(tmp_path: Path) -> None:
    names = ["1", "1-1", "1-2"]
    experiment = EXPERIMENT.model_copy(update={"folds": names, "seeds": [0], "ensembles": []})
    for fold in names:
        write_predictions(tmp_path, fold, {"test": 200}, experiment=experiment)
    layout = Layout(tmp_path)
    for this in experiment.runs():  # each half of the training clips is tested by one inner fold
        table = open_predictions(layout.prediction(this))
        columns = {name: table.list(name) for name in PREDICTIONS.columns}
        columns["clip_id"] = [f"{this.fold}/{clip}" for clip in columns["clip_id"]]
        PREDICTIONS.write(table.path, columns, table.metadata)
        if this.model.entry == "ast" and this.fold != "1":
            others = [f"{other}/test{number}" for other in names[1:] if other != this.fold for number in range(200)]
            write_split(tmp_path, this.fold, dict.fromkeys(columns["clip_id"], "test") | dict.fromkeys(others, "train"))
    run(PER_CLASS, experiment, layout)
    table = THRESHOLDS.open(layout.thresholds)
    by_fold = dict(
        zip(table.list("fold"), zip(table.list("source"), table.list("num_clips"), strict=True), strict=True)
    )
    assert by_fold == {"1": ("inner folds", 400), "1-1": ("params", 0), "1-2": ("params", 0)}


def test_no_clips_to_fit_on_are_named_with_what_to_do(tmp_path: Path) -> None:
    write_predictions(tmp_path, "1", {"test": 20})
    expected = (
        r"thresholds\.kind: expected fixed, since fold 1 has neither validation clips nor inner folds to fit them on, found "
        r"per_class; set split\.validation_fraction above 0, or put all inner folds of fold 1 \(1-1, 1-2, .* or set "
        r"thresholds\.kind=fixed and thresholds\.value=0\.5"
    )
    with pytest.raises(ParamsError, match=expected):
        run(PER_CLASS, EXPERIMENT, Layout(tmp_path))
    run(FIXED, EXPERIMENT, Layout(tmp_path))


def test_one_label_a_clip_has_no_thresholds_to_fit(tmp_path: Path) -> None:
    write_predictions(tmp_path, "1", {"validation": 20, "test": 20}, label_kind="one")
    with pytest.raises(
        ParamsError, match=r"one label a clip, where the likeliest class is decided for, found global; set"
    ):
        run(GLOBAL, EXPERIMENT, Layout(tmp_path))
    run(FIXED, EXPERIMENT, Layout(tmp_path))
    assert open_decided_predictions(EXPERIMENT, Layout(tmp_path)).thresholds is None


@pytest.mark.parametrize(
    ("metadata", "changes", "message"),
    [
        ({"classes": ["a", "b", "c"]}, {}, r"metadata classes: expected the 3 classes of .*, found 3 others"),
        (
            {"classes": ["a"]},
            {},
            r"thresholds of ast/1/0: expected 1 numbers from 0 to 1, found 3: \[0\.5, 0\.5, 0\.5\]",
        ),
        ({}, {"thresholds": [[0.5, 0.5, 1.5]] * 7}, r"thresholds of ast/1/0: expected 3 numbers from 0 to 1"),
        (
            {},
            {"weights": [["other"]] * 7},
            r"weights of ast/1/all: expected \['weights of ast/1/0', .* found \['other'\]",
        ),
        ({}, {"model": ["other"] * 7}, r"model: expected a row of ast/1/all, found none; .*`dvc repro"),
    ],
)
def test_thresholds_of_something_else_are_refused(
    metadata: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_predictions(tmp_path, "1", {"test": 20})
    layout = Layout(tmp_path)
    run(FIXED, EXPERIMENT, layout)
    table = THRESHOLDS.open(layout.thresholds)
    columns = {name: table.list(name) for name in THRESHOLDS.columns} | changes
    THRESHOLDS.write(layout.thresholds, columns, {**table.metadata, **metadata})
    with pytest.raises(ArtifactError, match=message):
        open_decided_predictions(EXPERIMENT, layout).scored("ast", "1")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("thresholds.kind=global", {"kind": "global", "metric": "macro_f1"}),
        ("thresholds.kind=per_class", {"kind": "per_class", "min_positives": 5}),
    ],
)
def test_another_kind_is_one_setting(override: str, expected: dict[str, object]) -> None:
    document, mistakes = compose("demo", [override], REPOSITORY / "recipes")
    assert not mistakes
    assert dict(document["thresholds"]) == expected


def test_a_threshold_of_another_kind_is_named(tmp_path: Path) -> None:
    document, _ = compose("demo", ["thresholds.kind=per_class", "thresholds.min_positives=0"], REPOSITORY / "recipes")
    (tmp_path / "params.yaml").write_text(dump(document))
    with pytest.raises(ParamsError, match=r"thresholds\.min_positives: .*greater than 0"):
        load_experiment(tmp_path / "params.yaml")


@pytest.mark.parametrize("label_kind", ["one", "many"])
def test_the_check_of_params_knows_which_labels_have_thresholds(tmp_path: Path, label_kind: str) -> None:
    settings = ["thresholds.kind=global", f"corpus.root={tmp_path}", f"corpus.label_kind={label_kind}"]
    document, _ = compose("beside", settings, REPOSITORY / "recipes")
    (tmp_path / "params.yaml").write_text(dump(document))
    if label_kind == "many":
        load_experiment(tmp_path / "params.yaml")
        return
    with pytest.raises(ParamsError, match=r"thresholds\.kind: expected fixed for a corpus with one label a clip"):
        load_experiment(tmp_path / "params.yaml")

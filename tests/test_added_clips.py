"""Clips that are added to a corpus rerun what they concern: test clips retrain nothing, others do.

DVC runs, on a small corpus with published folds. Which stages ran is told by their reports, which each run writes anew.
"""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile
from conftest import make_wav_corpus, make_waveform
from test_graph import plan_rows
from workspace import FOLDS, artifacts, change_params, finish, make_workspace, run

from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import open_predictions

pytestmark = pytest.mark.slow

FOLD = FOLDS[0]
CORPUS = {"kind": "esc50", "table": "meta/esc50.csv", "max_bad_fraction": 0.0, "max_duration": 5.0}
NETWORK = "token_transformer"
TRAINED = ("ast", "frame_statistics", f"{NETWORK}-kmeans", "bag_of_tokens-kmeans", f"{NETWORK}-kmeans-pretrained")
LEARNING = {f"vocabulary-kmeans-{FOLD}", f"pretrain-{NETWORK}-kmeans-{FOLD}-0"} | {
    f"train-{model}-{FOLD}-0" for model in TRAINED
}
OTHERS = {"corpus", "spectrogram", "duplicates", "thresholds", "attention-ast", "report"} | {
    *(f"{stage}-{FOLD}" for stage in ("split", "development")),
    *(f"{stage}-kmeans-{FOLD}" for stage in ("tokenize", "ngram_perplexity", "atlas")),
    *(f"evaluate-{model}-{FOLD}-0" for model in TRAINED),
    f"perplexity-{NETWORK}-kmeans-{FOLD}-0",
}
STAGES_THAT_LEARN = {"vocabulary", "pretrain", "train_frames", "train_tokens", "train_pretrained"}
LEARNED = ("data/development", "data/vocabulary", "data/pretrained", "models", "results/train", "results/pretrain")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished workspace with every stage that learns: three classes in two folds, of which the first is tested."""
    workspace = make_workspace(tmp_path_factory.mktemp("grown") / "workspace")
    make_wav_corpus(workspace / "audio" / "sounds", clips_per_class=3)
    changes: dict[str, Any] = {"corpus": CORPUS | {"root": "audio/sounds"}, "pretrain.epochs": 1}
    change_params(workspace, changes | {"experiment.pretrained_models": [NETWORK]})
    return finish(workspace)


@pytest.fixture
def copied(grown: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished workspace, its caches included."""
    return shutil.copytree(grown, tmp_path / "workspace", symlinks=True)


def add_clip(workspace: Path, name: str) -> None:
    """Add a tone to the corpus; its name begins with its fold, as ESC-50's do."""
    corpus = workspace / "audio" / "sounds"
    soundfile.write(corpus / "audio" / f"{name}.wav", make_waveform("tone", frequency=777.0), 16000)
    with (corpus / "meta" / "esc50.csv").open("a", newline="") as file:
        csv.writer(file).writerow([f"{name}.wav", name.partition("-")[0], 0, "tone", True, name, "A"])


def rerun(workspace: Path, *command: str) -> set[str]:
    """Bring everything up to date, and return the names of the reports of the stages that ran."""
    folder = Layout(workspace).stage_reports
    before = {path.stem: path.stat().st_mtime_ns for path in folder.iterdir()}
    run(workspace, *(command or ("dvc", "repro")))
    return {path.stem for path in folder.iterdir() if path.stat().st_mtime_ns != before.get(path.stem)}


def learned(workspace: Path) -> dict[str, str]:
    """Return path -> digest of all that stages learned, and of what they learned it from."""
    return {path: digest for path, digest in artifacts(workspace).items() if path.startswith(LEARNED)}


def test_an_added_test_clip_is_predicted_and_retrains_nothing(copied: Path) -> None:
    before = learned(copied)
    assert {path.partition("/")[0] for path in before} == {"data", "models", "results"}
    add_clip(copied, "1-0-first")  # before all others: it moves each one's place in every table
    planned = plan_rows(copied)
    assert {stage for stage, row in planned.items() if row[0].startswith("0 of")} == STAGES_THAT_LEARN
    assert rerun(copied) == OTHERS
    for path in Layout(copied).found_predictions():
        assert "1-0-first" in open_predictions(path).list("clip_id")
    assert learned(copied) == before
    stages = [name for name in run(copied, "dvc", "stage", "list", "--name-only").stdout.split() if "train" in name]
    stages += [f"vocabulary@kmeans-{FOLD}"]
    for stage in stages:
        run(copied, "dvc", "repro", "--force", "--single-item", stage)
    assert learned(copied) == before  # trained with the clip there, to the byte
    assert rerun(copied) == {"corpus"}


def test_a_training_clip_that_is_altered_or_added_retrains_everything(copied: Path) -> None:
    before = learned(copied)
    clip = min((copied / "audio/sounds/audio").glob("2-*.wav"))
    soundfile.write(clip, make_waveform("chirp"), 16000)
    assert rerun(copied, "sonolex", "repro", "-j", "2") == OTHERS | LEARNING
    altered = learned(copied)
    weights = [path for path in before if path.endswith(".safetensors")]
    assert len(weights) == len(TRAINED) + 1  # with the pretrained ones
    assert not [path for path in weights if altered[path] == before[path]]
    add_clip(copied, "2-0-first")
    planned = plan_rows(copied)
    assert not [stage for stage in STAGES_THAT_LEARN if planned[stage][0].startswith("0 of")]
    assert rerun(copied) == OTHERS | LEARNING


def test_another_label_of_a_training_clip_retrains_classifiers_alone(copied: Path) -> None:
    table = copied / "audio/sounds/meta/esc50.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    row = next(row for row in rows if row["filename"].startswith("2-") and row["category"] == "tone")
    row["target"], row["category"] = "1", "noise"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows(rows)
    assert rerun(copied) & LEARNING == {name for name in LEARNING if name.startswith("train-")}

"""Small experiments whose stages run in this process, for tests that need trained models and the audio behind them."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from conftest import make_wav_corpus

from pipeline.artifacts.layout import Layout, RunId
from pipeline.grid import ExperimentParams
from pipeline.params import load_params
from stages import (
    corpus,
    development,
    duplicates,
    evaluate,
    network,
    pretrain,
    spectrogram,
    split,
    supervision,
    thresholds,
    tokenize,
    train,
    vocabulary,
)
from tools.compose import compose, dump

ROOT = Path(__file__).parent.parent

# A dozen clips of half a second, in three classes and two folds.
SMALL = (
    'experiment.folds=["1"]',
    "experiment.ensembles=[]",
    "report.attention=[]",
    "spectrogram.front_end.n_mels=24",
    "vocabularies.kmeans.num_tokens=8",
    "train.epochs=1",
    "execution.workers=1",
)


def run_experiment(folder: Path, overrides: Sequence[str], recipe: str = "esc50", small: Sequence[str] = SMALL) -> Path:
    """Run all stages up to `thresholds` in a new folder, on generated clips, and return it."""
    folder.mkdir(parents=True)
    audio = make_wav_corpus(folder / "corpus")
    settings = [f"corpus.root={audio}", "corpus.table=meta/esc50.csv", *small, *overrides]
    document, mistakes = compose(recipe, settings, ROOT / "recipes")
    assert not mistakes, mistakes
    (folder / "params.yaml").write_text(dump(document))
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()):
        experiment = load_params(ExperimentParams, "experiment")
        corpus.main()
        spectrogram.main()
        duplicates.main()
        for fold in experiment.folds:
            split.main(fold)
            development.main(fold)
        learned = [entry.vocabulary for entry in experiment.learned_vocabularies]
        for name in ["", *experiment.vocabularies]:  # first the models that read frames, then those of each vocabulary
            for fold in experiment.folds if name else ():
                if name in experiment.supervised_vocabularies:
                    supervision.main(name, fold)
                if name in learned:
                    network.main(name, fold)
                vocabulary.main(name, fold)
                tokenize.main(name, fold)
            for run in experiment.runs():
                if run.model.vocabulary == name:
                    _train_and_evaluate(run)
        thresholds.main()
    return folder


def _train_and_evaluate(run: RunId) -> None:
    model = run.model
    if model.pretrained:
        pretrain.main(model.entry, model.vocabulary, run.fold, run.seed)
    for stage in (train, evaluate):
        stage.main(model.entry, run.fold, run.seed, vocabulary=model.vocabulary, pretrained=model.pretrained)


def runs_of(folder: Path) -> Iterator[tuple[RunId, Path]]:
    """Yield every run of an experiment, and its predictions."""
    for run in load_params(ExperimentParams, "experiment", folder / "params.yaml").runs():
        yield run, Layout(folder).prediction(run)

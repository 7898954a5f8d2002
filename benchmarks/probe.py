"""Logistic probe of texture statistics: accuracy on an experiment's folds, of frames and of frames decoded from tokens.

    sonolex compose esc50+leaderboard corpus.root=~/ESC-10 corpus.table=meta/esc10.csv
    dvc repro --single-item spectrogram ...      # frames, splits and the tokens of one additive vocabulary
    python -m benchmarks.probe . --vocabulary bands

The statistics are those of `sonolex embed --textures`, standardised, and mean and deviation of each mel band beside them. A
classifier (scikit-learn's logistic regression with its own settings) is fitted on the training clips of each fold.
"""

import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.measuring import report
from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.errors import SonolexError
from pipeline.grid import ExperimentParams
from pipeline.inference.embedding import TextureEmbedder
from pipeline.models.baselines.base import Setting
from pipeline.models.baselines.texture_inputs import DecodedTokens
from pipeline.params import load_params
from pipeline.training.inputs import Inputs, open_inputs


def main(
    experiment: Annotated[Path, typer.Argument(help="folder of an experiment with one label a clip")],
    vocabulary: Annotated[str | None, typer.Option(help="whose tokens are decoded; by default none")] = None,
) -> None:
    """Print the accuracies."""
    report("probe", "logistic probe, accuracy in %", run(Layout(experiment), vocabulary))


def run(layout: Layout, vocabulary: str | None) -> list[dict[str, str | float]]:
    """Return a row for each kind of features: the accuracy in % of every fold, and their mean."""
    labels, frames = _labels(layout), open_inputs("frames", layout.spectrogram, None)
    if frames.front_end["units"] != "ln(power)":
        raise SonolexError(f"{layout.spectrogram}: expected frames in ln(power), found {frames.front_end['units']}")
    folds = load_params(ExperimentParams, "experiment", layout.root / "params.yaml").folds
    found: dict[str, dict[str, float]] = {}
    for fold in folds:
        split = open_split(layout.split(fold))
        clips = frames.usable(clips_of(split, "train", "validation", "test"))
        known = np.isin(clips, clips_of(split, "train", "validation"))
        targets = np.array([labels[clip] for clip in clips])
        for name, vectors in _features(layout, frames, vocabulary, fold, clips).items():
            found.setdefault(name, {})[f"fold {fold}"] = _accuracy(vectors, targets, known)
    return [{"features": name, "mean": sum(by.values()) / len(by), **by} for name, by in found.items()]


def _features(
    layout: Layout, frames: Inputs, vocabulary: str | None, fold: str, clips: list[str]
) -> dict[str, np.ndarray]:
    """Return features (clip, feature) by name."""
    sources = {"frames": frames.arrays(clips)}
    if vocabulary is not None:
        sources[f"tokens of {vocabulary}"] = _decoded(layout, vocabulary, fold, clips)
    textures = TextureEmbedder()
    means = [np.concatenate([clip.mean(axis=0), clip.std(axis=0)]) for clip in sources["frames"]]
    statistics = {
        f"texture statistics, {source}": np.stack([textures.statistics(clip) for clip in arrays])
        for source, arrays in sources.items()
    }
    return {"mean and deviation of bands": np.stack(means), **statistics}


def _labels(layout: Layout) -> dict[str, int]:
    clips = open_clips(layout.clips)
    return {clip: labels[0] for clip, labels in zip(clips.list("clip_id"), clips.list("labels"), strict=True)}


def _decoded(layout: Layout, name: str, fold: str, clips: list[str]) -> list[np.ndarray]:
    """Return frames (frame, mel) decoded from the tokens of clips, by a fold's vocabulary."""
    vocabulary = open_vocabulary(layout.vocabulary(name, fold))
    tokens = open_inputs("tokens", layout.tokens(name, fold), vocabulary)
    decoder = DecodedTokens()
    weights = decoder.fit(Setting(tokens.metadata, tokens.front_end, "one", 0, vocabulary))
    return list(decoder.frames(weights, tokens.arrays(clips)))


def _accuracy(vectors: np.ndarray, targets: np.ndarray, known: np.ndarray) -> float:
    """Return the accuracy in % on rows that are not known, by a classifier of those that are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations that did not converge to the last digit
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(vectors[known], targets[known])
    return 100 * float((model.predict(vectors[~known]) == targets[~known]).mean())


if __name__ == "__main__":
    typer.run(main)

"""Run a stage on paths of one's own, as its program does on those of the layout; see test_reliability.py.

python tests/probe_paths.py spectrogram data/clips.parquet elsewhere/spectrogram
"""

from pathlib import Path

from pipeline.corpora.base import AudioParams
from pipeline.execution.executors import ExecutionParams
from pipeline.execution.stage import stage_main
from pipeline.params import load_params
from pipeline.spectrogram.settings import SpectrogramParams


def main(stage: str, paths: list[Path]) -> None:
    if stage == "spectrogram":
        from stages.spectrogram import run as run_spectrogram

        params, corpus = load_params(SpectrogramParams, "spectrogram"), load_params(AudioParams, "corpus")
        run_spectrogram(params, corpus, load_params(ExecutionParams, "execution"), *paths)
    elif stage == "vocabulary":
        from pipeline.vocabulary.registry import load_vocabulary_params
        from stages.vocabulary import run as run_vocabulary

        run_vocabulary(load_vocabulary_params("kmeans"), *paths, fold="1")
    elif stage == "tokenize":
        from stages.tokenize import run as run_tokenize

        run_tokenize(load_params(ExecutionParams, "execution"), *paths, fold="1")
    else:
        from pipeline.models.registry import load_model_params
        from stages.train import Paths
        from stages.train import run as run_train

        development, targets, source, model, curves = paths
        where = Paths(development, targets, source, None, model, curves)
        run_train(load_model_params("frame_statistics"), where, model="frame_statistics", fold="1", seed=0)


if __name__ == "__main__":
    stage_main(main)

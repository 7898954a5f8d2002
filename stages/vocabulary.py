"""Stage `vocabulary`: fit a fold's vocabulary on the frames of its training clips.

development set + its frames in the spectrogram -> data/vocabulary/<name>/<fold>.zarr

External tokens are read from their table instead, and counted. With `features.lda` it also reads the labels of these clips,
which the stage `supervision` collects; with `features.hidden_states` the network of which the stage `network` hands over.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.development import DEVELOPMENT, open_development, open_training_targets, require_frames
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import require_current
from pipeline.artifacts.spectrogram import INDEX, Spectrogram, open_spectrogram
from pipeline.artifacts.splits import clips_of
from pipeline.evaluation.tokenizing import open_state_reader
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import read_params
from pipeline.spectrogram.reader import FrameReader
from pipeline.training.targets import targets_by_clip
from pipeline.vocabulary.external_artifact import write_external_vocabulary
from pipeline.vocabulary.fitting import write_vocabulary
from pipeline.vocabulary.learning import describe_network, learn
from pipeline.vocabulary.merging import fit_merges
from pipeline.vocabulary.registry import VocabularyParams, load_vocabulary_params

log = logging.getLogger(__name__)


def run(
    params: VocabularyParams,
    spectrogram_path: Path,
    development_path: Path,
    vocabulary_path: Path,
    *,
    fold: str,
    targets_path: Path | None = None,
    network_path: Path | None = None,
) -> StageReport:
    """Fit and write.

    `targets_path` are the labels of the training clips, read with `features.lda` alone, `network_path` is the folder of the
    network, read with `features.hidden_states`.
    """
    name = vocabulary_path.parent.name
    report = StageReport("vocabulary", f"{name}-{fold}")
    spectrogram, development = open_spectrogram(spectrogram_path), open_development(development_path, fold=fold)
    require_frames(development, spectrogram.index)
    training_clips = clips_of(development, "train")
    if not params.computable:
        return _read(params, spectrogram, training_clips, vocabulary_path, report, fold=fold)
    reader = FrameReader(spectrogram)
    targets = {}
    if params.features.lda:
        assert targets_path is not None
        targets = targets_by_clip(open_training_targets(targets_path, development), training_clips)
    states = open_state_reader(params.hidden_states, reader, network_path)
    sample, fit = learn(params, states or reader, training_clips, targets)
    merges = fit_merges(params, fit, states or reader, training_clips)
    network = describe_network(fit, states, list(sample.counts)) if states else None
    metadata = write_vocabulary(
        vocabulary_path, fit, sample, merges, params, name=name, fold=fold, spectrogram=spectrogram, network=network
    )
    log.info(
        "%s, fold %s: %d x %d tokens from %d of %d frames of %d clips; perplexity %.0f, %d dead",
        name,
        fold,
        *fit.codebooks.codes.shape[:2],
        *(sample.metadata[key] for key in ("frames", "available", "clips")),
        metadata["perplexity"],
        metadata["dead_codes"],
    )
    if merges.metadata:
        log.info(
            "fold %s: merged to %d tokens, on %d clips; token sequences are %.2f times shorter",
            fold, *(merges.metadata[key] for key in ("num_tokens", "clips", "compression")),
        )  # fmt: skip
    report.clips = int(sample.metadata["clips"])
    report.bytes_written = _size(vocabulary_path)
    return report


def _read(
    params: VocabularyParams,
    spectrogram: Spectrogram,
    clips: Sequence[str],
    path: Path,
    report: StageReport,
    *,
    fold: str,
) -> StageReport:
    """Write the vocabulary of tokens that are read from a table."""
    name = path.parent.name
    metadata = write_external_vocabulary(path, params, spectrogram, clips, name=name, fold=fold)
    log.info(
        "%s, fold %s: %d x %d tokens of %s; perplexity %.0f, %d dead",
        name, fold, params.codebooks, params.num_tokens, params.table,
        *(metadata["fit"][key] for key in ("perplexity", "dead_codes")),
    )  # fmt: skip
    report.clips, report.bytes_written = int(metadata["sample"]["clips"]), _size(path)
    return report


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(
    name: Annotated[str, typer.Argument(help="entry of `vocabularies`")],
    fold: Annotated[str, typer.Option(help="fold whose training clips it is fitted on")],
) -> None:
    layout = Layout()
    development = layout.development(fold)
    require_current(read_params(), (INDEX, layout.spectrogram_index), (DEVELOPMENT, development))
    params = load_vocabulary_params(name)
    report = run(
        params,
        layout.spectrogram,
        development,
        layout.vocabulary(name, fold),
        fold=fold,
        targets_path=layout.training_targets(name, fold),
        network_path=layout.network(name, fold),
    )
    report.write()


if __name__ == "__main__":
    stage_main(main)

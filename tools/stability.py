"""Stability of a fold's vocabulary: agreement between fits with different seeds, on test clips.

    python -m tools.stability kmeans [--fold 1] [--seed 0 --seed 1 --seed 2]

The seed determines the sampled frames and the initial centroids of k-means. Nothing is written. The vocabulary is that of
params.yaml, before merging; frames are sampled evenly from the fold's test clips. docs/vocabularies.md defines `lost` and
`agreement`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table as Grid

from pipeline.artifacts.development import TARGETS, TargetTable
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.errors import CorpusError, ParamsError
from pipeline.evaluation.tokenizing import open_state_reader
from pipeline.execution.stage import stage_main
from pipeline.spectrogram.reader import FrameReader
from pipeline.training.targets import targets_by_clip
from pipeline.vocabulary.assignment import base_tokens
from pipeline.vocabulary.features import normalise_frames
from pipeline.vocabulary.fitting import Fit
from pipeline.vocabulary.learning import learn
from pipeline.vocabulary.rebuilding import decode_frames
from pipeline.vocabulary.registry import VocabularyParams, load_vocabulary_params
from pipeline.vocabulary.sampling import choose_clips
from pipeline.vocabulary.statistics import agreement, distortion, perplexity

_FRAMES_READ = 200_000
_TOKENS_COMPARED = 20_000  # scikit-learn takes seconds for this number with 4,096 tokens


@dataclass(frozen=True)
class SeedRow:
    """Quality of one seed's vocabulary on the frames."""

    seed: int
    lost: float  # fraction of variance unexplained, of the normalised frames
    perplexity: float  # mean over codebooks
    agreement: float  # mean, with the tokens of other seeds


def measure(
    params: VocabularyParams,
    spectrogram_path: Path,
    split_path: Path,
    seeds: Sequence[int],
    console: Console,
    targets: TargetTable | None = None,
    network_path: Path | None = None,
) -> list[SeedRow]:
    """Fit with each seed and compare.

    `targets` are the labels of the training clips, where the vocabulary reads them, `network_path` is the folder of the
    network whose hidden states it quantises.
    Raises CorpusError without test clips. Raises ParamsError with fewer than two seeds, and for external tokens.
    """
    if len(set(seeds)) < 2:
        raise ParamsError(f"--seed: expected at least two different ones, found {', '.join(map(str, seeds)) or 'none'}")
    if not params.computable:
        raise ParamsError(
            f"vocabularies: expected a kind that is fitted, found {params.kind}, whose tokens are the same with every "
            "seed; choose another vocabulary"
        )
    frame_reader, split = FrameReader(open_spectrogram(spectrogram_path)), open_split(split_path)
    reader = open_state_reader(params.hidden_states, frame_reader, network_path) or frame_reader
    lengths = {clip: reader.num_frames(clip) for clip in reader.ok(clips_of(split, "test"))}
    if not any(lengths.values()):
        raise CorpusError(
            f"{split_path}: expected test clips with frames, found {len(lengths)} without; choose another --fold"
        )
    training_clips = reader.ok(clips_of(split, "train"))
    labels = targets_by_clip(targets, training_clips) if targets else {}
    frames = reader.read(choose_clips(lengths, most=_FRAMES_READ, seed=0))
    lost, perplexities, seed_tokens = [], [], []
    with console.status("") as status:
        for number, seed in enumerate(seeds, start=1):
            status.update(f"fitting seed {seed}, {number} of {len(seeds)}")
            _, fit = learn(params.model_copy(update={"seed": seed}), reader, training_clips, labels)
            tokens = _tokens(fit, frames, spectrogram_path)
            lost.append(_lost(fit, frames, tokens))
            seed_tokens.append(np.concatenate(tokens, axis=1))
            perplexities.append(float(np.mean([perplexity(np.bincount(book)) for book in seed_tokens[-1]])))
        status.update("comparing")
        agreements = _agreements(seed_tokens)
    return [SeedRow(*row) for row in zip(seeds, lost, perplexities, agreements, strict=True)]


def _agreements(tokens: Sequence[np.ndarray]) -> list[float]:
    """Return the mean agreement of each vocabulary's tokens (codebook, token) with those of the others."""
    step = -(-tokens[0].shape[1] // _TOKENS_COMPARED)
    pairs = np.zeros((len(tokens), len(tokens)))
    for one, other in combinations(range(len(tokens)), 2):
        pairs[one, other] = pairs[other, one] = agreement(tokens[one][:, ::step], tokens[other][:, ::step])
    means: list[float] = (pairs.sum(axis=1) / (len(tokens) - 1)).tolist()
    return means


def _tokens(fit: Fit, frames: Sequence[np.ndarray], path: Path) -> list[np.ndarray]:
    return base_tokens(fit.space, fit.kind, fit.codebooks, frames, what=f"frames of {path}")


def _lost(fit: Fit, frames: Sequence[np.ndarray], tokens: Sequence[np.ndarray]) -> float:
    """Return the distortion of clips (frame, mel) by their tokens, without the padding of the last stack."""
    space = fit.space
    z = [normalise_frames(clip, space.mean, space.scale, space.normalisation) for clip in frames]
    decoded = (
        decode_frames(space, fit.kind, fit.codebooks, row)[: len(clip)] for row, clip in zip(tokens, z, strict=True)
    )
    return distortion(np.concatenate(z), np.concatenate(list(decoded)))


def run(rows: Sequence[SeedRow], title: str, console: Console) -> None:
    """Print a row per seed, and their mean and standard deviation."""
    table = Grid(title=title, title_style="bold")
    for column in ("seed", "lost", "perplexity", "agreement with the others"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(str(row.seed), f"{row.lost:.2%}", f"{row.perplexity:.1f}", f"{row.agreement:.3f}")
    values = np.array([[row.lost, row.perplexity, row.agreement] for row in rows])
    (lost, used, agreed), (lost_sd, used_sd, agreed_sd) = values.mean(axis=0), values.std(axis=0, ddof=1)
    table.add_section()
    table.add_row(
        "mean", f"{lost:.2%} ± {lost_sd:.2%}", f"{used:.1f} ± {used_sd:.1f}", f"{agreed:.3f} ± {agreed_sd:.3f}"
    )
    console.print(table)


def main(
    vocabulary: Annotated[str, typer.Argument(help="entry of `vocabularies` in params.yaml")] = "kmeans",
    fold: Annotated[str, typer.Option(help="fold whose training clips it is fitted on")] = "1",
    seed: Annotated[list[int], typer.Option(help="seed of a fit; may be repeated")] = [0, 1, 2],  # noqa: B006 - typer's way
) -> None:
    params, layout = load_vocabulary_params(vocabulary), Layout()
    console = Console()
    targets = TARGETS.open(layout.training_targets(vocabulary, fold)) if params.supervised else None
    network = layout.network(vocabulary, fold)
    rows = measure(params, layout.spectrogram, layout.split(fold), seed, console, targets, network)
    run(rows, f"{vocabulary}, fold {fold}: {len(seed)} seeds, on test clips", console)


if __name__ == "__main__":
    stage_main(main)

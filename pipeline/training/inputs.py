"""Inputs of models: frames or tokens of clips by id, behind one interface. Imports no torch.

Conventions: `arrays(ids)` returns one array per clip, without padding: frames (frame, mel) float32 in the front end's units,
or tokens (codebook, frame) uint16.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.artifacts.development import DevelopmentTable, require_frames
from pipeline.artifacts.layout import Layout, ModelId
from pipeline.artifacts.model import InputMetadata, Reads, TrainedModel
from pipeline.artifacts.settings import Schema
from pipeline.artifacts.spectrogram import INDEX, Spectrogram, SpectrogramMetadata, count_channels, open_spectrogram
from pipeline.artifacts.tokens import TOKENS, load_sequences
from pipeline.artifacts.vocabulary import VOCABULARY, Vocabulary
from pipeline.errors import ArtifactError, CorpusError, SonolexError
from pipeline.spectrogram.normalisation import channel_statistics, corpus_statistics
from pipeline.spectrogram.reader import FrameReader

if TYPE_CHECKING:
    from pipeline.models.network import Network

log = logging.getLogger(__name__)

# Of a batch that a network trains on or predicts, padding included: 64 clips of 20 s at 100 frames/s. A default model of
# the recipes takes up to about 3 GB for it.
FRAMES_PER_BATCH = 1 << 17
# Token sequences of a run that are kept in memory: 130,000 clips of 10 s with eight tokens a frame.
TOKEN_BYTES = 2 << 30
_NAMED = 3  # clips in a message


class Inputs(Protocol):
    """Interface to the clips of one artifact, for training and prediction."""

    metadata: InputMetadata  # of the data that a model is built for; stored with it
    front_end: SpectrogramMetadata
    frame_rate: float  # Hz, along an array's time axis
    source: str  # digest of the vocabulary behind tokens, or of what made a copy; empty for frames of the clips
    time_axis: int  # of an array

    def usable(self, clip_ids: Sequence[str]) -> list[str]:
        """Return the clips that the artifact holds, in order."""

    def arrays(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        """Return one array per clip."""

    def stored(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        """Return one array per clip as it is stored: frames with `dtype`, `scale` and `offset` of `front_end`."""

    def num_frames(self, clip_id: str) -> int:
        """Return a clip's length along the time axis: frames, or tokens per codebook."""

    def statistics(self, clip_ids: Sequence[str]) -> list[tuple[float, float]]:
        """Return mean and standard deviation over all values of these clips, of each channel; (0, 1) for tokens."""


class FrameInputs:
    """Log-mel frames from a spectrogram."""

    source = ""
    time_axis = 0

    def __init__(self, spectrogram: Spectrogram) -> None:
        self._spectrogram = spectrogram
        self._reader = FrameReader(spectrogram)
        self.front_end = spectrogram.metadata
        self.frame_rate = spectrogram.frame_rate
        self.metadata = InputMetadata(n_mels=spectrogram.n_mels, log_floor=spectrogram.metadata["log_floor"])
        if count_channels(spectrogram.metadata) > 1:
            self.metadata["channels"] = count_channels(spectrogram.metadata)

    def usable(self, clip_ids: Sequence[str]) -> list[str]:
        return self._reader.ok(clip_ids)

    def arrays(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        return self._reader.read(clip_ids)

    def stored(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        return self._reader.read_stored(clip_ids)

    def num_frames(self, clip_id: str) -> int:
        return self._reader.num_frames(clip_id)

    def statistics(self, clip_ids: Sequence[str]) -> list[tuple[float, float]]:
        if "channels" in self.metadata:
            return channel_statistics(self._reader, clip_ids, self.metadata["channels"])
        return [corpus_statistics(self._spectrogram, clip_ids)]

    def require_development(self, development: DevelopmentTable) -> None:
        """Raise ArtifactError unless the frames are those that a development set was written for."""
        require_frames(development, self._spectrogram.index)


class TokenInputs:
    """Token sequences of one fold's vocabulary: 2 bytes per token, up to `TOKEN_BYTES` in memory, more in a mapped file."""

    time_axis = 1

    def __init__(self, path: Path, front_end: SpectrogramMetadata, bands: list[list[int]]) -> None:
        self._path, self._sequences = path, load_sequences(path, TOKEN_BYTES)
        self.front_end = front_end
        metadata = self._sequences.metadata
        self.frame_rate = float(metadata["frame_rate"])
        self.source = str(metadata["vocabulary"])
        self.metadata = InputMetadata(
            vocabulary_size=metadata["vocabulary_size"], num_codebooks=metadata["num_codebooks"], bands=bands
        )

    def usable(self, clip_ids: Sequence[str]) -> list[str]:
        return [clip for clip in clip_ids if clip in self._sequences]

    def arrays(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        return [self._sequences[clip] for clip in clip_ids]

    def stored(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        return self.arrays(clip_ids)

    def num_frames(self, clip_id: str) -> int:
        return self._sequences.num_tokens(clip_id)

    def statistics(self, clip_ids: Sequence[str]) -> list[tuple[float, float]]:
        return [(0.0, 1.0)]

    def require_development(self, development: DevelopmentTable) -> None:
        """Raise ArtifactError unless every clip of a development set has a token sequence."""
        ids = development.list("clip_id")
        missing = len(ids) - len(self.usable(ids))
        if missing:
            expected = f"all {len(ids)} of {development.path}"
            raise TOKENS.error(self._path, "clips", expected=expected, found=f"{missing} missing")

    def require_vocabulary(self, digest: str) -> None:
        """Raise ArtifactError unless the token sequences were made with the vocabulary of this digest."""
        if self.source != digest:
            raise TOKENS.error(self._path, "metadata vocabulary", expected=digest, found=self.source)


def input_artifacts(
    layout: Layout, model: ModelId, fold: str, source: Path, copies: Sequence[Path] = (), frames: Path | None = None
) -> list[tuple[Schema, Path]]:
    """Return the artifacts that a model reads, for `require_current`.

    `source` is its input, `copies` those of its clips, and `frames` the spectrogram where it reads that beside tokens.
    """
    tokens: list[tuple[Schema, Path]] = []
    if model.vocabulary:
        tokens = [(VOCABULARY, layout.vocabulary(model.vocabulary, fold)), (TOKENS, source)]
    spectrograms = [frames or source, *copies] if frames or not model.vocabulary else []
    return [*tokens, *((INDEX, path / "index.parquet") for path in spectrograms)]


def open_inputs(reads: Reads, source: Path, vocabulary: Vocabulary | None) -> FrameInputs | TokenInputs:
    """Open the inputs of a model that reads "frames" or "tokens"."""
    if reads == "frames":
        return FrameInputs(open_spectrogram(source))
    if vocabulary is None:
        raise SonolexError(f"{source}: expected the fold's vocabulary beside the tokens, found none; pass --vocabulary")
    return open_sequences(source, vocabulary)


def open_sequences(path: Path, vocabulary: Vocabulary) -> TokenInputs:
    """Open the token sequences of a fold. Raises ArtifactError where they are of another vocabulary."""
    tokens = TokenInputs(path, vocabulary.metadata["front_end"], vocabulary.bands)
    tokens.require_vocabulary(vocabulary.digest())
    return tokens


def open_inputs_of(model: TrainedModel, path: Path) -> FrameInputs | TokenInputs:
    """Open the input of a trained model. Raises ArtifactError where it differs from the input of its training."""
    if model.metadata["reads"] == "tokens":
        tokens = TokenInputs(path, model.metadata["front_end"], model.metadata["input"]["bands"])
        tokens.require_vocabulary(model.metadata["source"])
        return tokens
    frames = FrameInputs(open_spectrogram(path))
    for key, expected in model.metadata["front_end"].items():
        if frames.front_end.get(key) != expected:
            found = frames.front_end.get(key)
            raise ArtifactError(path, f"front end {key}", expected=expected, found=found, stage="spectrogram")
    return frames


def warn_of_cut_clips(inputs: Inputs, clip_ids: Sequence[str], network: "Network") -> None:
    """Log a warning when clips are longer than a network reads."""
    limit = network.max_frames
    longer = 0 if limit is None else sum(inputs.num_frames(clip) > limit for clip in clip_ids)
    if longer:
        log.warning(
            "%d of %d clips have more than %d frames: the model reads the first ones; stem.%s sets their number",
            longer, len(clip_ids), limit, network.stem.max_frames_setting,
        )  # fmt: skip


def require_short_clips(inputs: Inputs, clip_ids: Sequence[str], network: "Network") -> None:
    """Raise CorpusError that names training clips which alone outgrow a batch; a network that cuts them reads any."""
    too_long = [clip for clip in clip_ids if network.frames_read(inputs.num_frames(clip)) > FRAMES_PER_BATCH]
    if not too_long or network.max_frames is not None:
        return
    rate, more = inputs.frame_rate, len(too_long) - _NAMED
    found = ", ".join(f"{clip} of {inputs.num_frames(clip) / rate:.0f} s" for clip in too_long[:_NAMED])
    raise CorpusError(
        f"training clips: expected at most {FRAMES_PER_BATCH / rate:.0f} s ({FRAMES_PER_BATCH:,} frames, the most of a "
        f"batch), found {found}{f' and {more} more' if more > 0 else ''}; set corpus.max_duration to "
        f"{int(FRAMES_PER_BATCH / rate)} or less and corpus.max_bad_fraction to their share or more, which leaves them out, "
        "or list parts of them in a table with start and duration (docs/corpora.md)"
        f"{'; windows that overlap less also have fewer frames' if network.windows else ''}"
    )


def require_windows(inputs: Inputs, clip_ids: Sequence[str], network: "Network") -> None:
    """Raise CorpusError for windows that are longer than every training clip, or than the network's stem reads."""
    windows, rate = network.windows, inputs.frame_rate
    if windows is None:
        return
    longest, limit = max(map(inputs.num_frames, clip_ids)), network.stem.max_frames
    if windows.length > longest:
        raise CorpusError(
            f"window.length: expected at most the {longest / rate:.2f} s of the longest training clip, found "
            f"{windows.seconds:g}; shorten the window, or set the model's window to null"
        )
    if limit is not None and windows.length > limit:
        raise CorpusError(
            f"window.length: expected at most {limit / rate:.2f} s, the {limit} frames of "
            f"stem.{network.stem.max_frames_setting}, found {windows.seconds:g}, {windows.length} frames; shorten the "
            "window, or give the stem more frames"
        )

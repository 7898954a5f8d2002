"""Stack of features as the channels of one image: log-mel, spectral centroid, chroma and onset strength, by librosa.

Conventions: a frame holds one channel after another, each of n_mels values, so that networks read an image of (channel,
frame, band). `log_mel` is that of `pipeline/spectrogram/mel.py`. `centroid` (Hz, of the magnitude spectrum) and `onset`
(mean rise of the log-mel levels from frame to frame, in their units) are one value a frame, repeated in all bands. `chroma`
(energy of the 12 pitch classes from C, the largest of a frame 1; A is at 440 Hz, no tuning is estimated) is resized to the
bands: band k has pitch class 12 k // n_mels. In silence all but the log-mel are 0.

A value that is repeated in all bands counts n_mels times in distances between frames, as in those of vocabularies, where
`normalisation: standardise` makes different units comparable. Networks normalise each channel by itself.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator

from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.spectrogram.mel import MelFrontEnd, MelParams

Channel = Literal["log_mel", "centroid", "chroma", "onset"]

_PITCH_CLASSES = 12


def _log_mel_first(channels: list[Channel]) -> list[Channel]:
    if channels[:1] != ["log_mel"] or len(set(channels)) < len(channels):
        raise ValueError("expected log_mel first, which pages and near-duplicates need, and each channel once")
    return channels


class StackParams(MelParams):
    """Settings of a stack: those of its mel spectrogram, and the channels."""

    kind: Literal["stack"]  # type: ignore[assignment]
    channels: Annotated[list[Channel], AfterValidator(_log_mel_first)]

    @property
    def is_log_mel(self) -> bool:
        return len(self.channels) == 1


class StackFrontEnd(MelFrontEnd):
    """Front end that computes several features of waveforms as channels."""

    Params = StackParams  # type: ignore[assignment]
    params: StackParams

    @property
    def metadata(self) -> FrontEndMetadata:
        """Return the metadata that artifacts of these frames record."""
        metadata, channels = super().metadata, self.params.channels
        metadata["n_mels"] = self.params.n_mels * len(channels)
        return {**metadata, "channels": list(channels)} if len(channels) > 1 else metadata

    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the frames (frame, channel * band) of a waveform (sample,), or (clip, frame, ...) of (clip, sample)."""
        levels = super().log_mel(waveforms)
        if waveforms.ndim > 1 or not len(levels) or len(self.params.channels) == 1:
            return levels if len(levels) else np.tile(levels, len(self.params.channels))
        magnitudes = self.spectra(waveforms) ** np.float32(1 / self.params.exponent)
        values = [_FEATURES[name](self.params, levels, magnitudes) for name in self.params.channels]
        return np.concatenate(values, axis=1, dtype=np.float32)


def _log_mel(params: StackParams, levels: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    return levels


def _centroid(params: StackParams, levels: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    from librosa.feature import spectral_centroid  # here: librosa takes longer to start than a stage that reads frames

    hertz = spectral_centroid(S=magnitudes.T, sr=params.sample_rate, n_fft=params.n_fft)[0]
    return np.broadcast_to(hertz[:, None], levels.shape)


def _chroma(params: StackParams, levels: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    from librosa.feature import chroma_stft

    classes = chroma_stft(
        S=np.square(magnitudes.T), sr=params.sample_rate, n_fft=params.n_fft, n_chroma=_PITCH_CLASSES, tuning=0.0
    )
    return np.asarray(classes[_PITCH_CLASSES * np.arange(params.n_mels) // params.n_mels].T)


def _onset(params: StackParams, levels: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    from librosa.onset import onset_strength

    if len(levels) < 2:  # no frame to rise from
        return np.zeros_like(levels)
    strength = onset_strength(S=levels.T, sr=params.sample_rate, center=False)
    return np.broadcast_to(strength[:, None], levels.shape)


_FEATURES: dict[Channel, Callable[[StackParams, np.ndarray, np.ndarray], np.ndarray]] = {
    "log_mel": _log_mel,
    "centroid": _centroid,
    "chroma": _chroma,
    "onset": _onset,
}

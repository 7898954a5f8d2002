"""Texture statistics of a clip: time-averaged statistics of its mel bands; and augmented copies and mixtures of clips.

McDermott and Simoncelli (2011, "Sound Texture Perception via Statistics of the Auditory Periphery") find that listeners
recognise rain, fire and engines by such statistics of band envelopes: marginal distributions, modulation power by rate, and
correlations between bands. Added here are the slopes of bands, mean and standard deviation of the cepstrum, and the
periodicity of onsets.

`augmented_copies` of a clip are cut, faster or slower, shifted in frequency, louder or softer, or spectrally tilted;
`mixture` adds two clips. Fitting on these makes a classifier invariant to such changes (virtual examples; DeCoste and
Schölkopf, 2002).

Conventions: frames (frame, mel) float32, natural logarithm of power; features (feature,) float32, of the same number for all
clips.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from pipeline.artifacts.spectrogram import CLIP_RANGE, LN_POWER, RANGE, FrontEndMetadata, count_channels
from pipeline.params import Params

# Numbers of groups of mel bands, and of cepstral coefficients; at most the number of bands.
FINE, COARSE, QUARTERS, CEPSTRA = 32, 16, 4, 30
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
RATES = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # Hz, edges of the modulation bands
PERIODS = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0)  # s, edges of the ranges of lags of onsets' autocorrelation

SMALLEST_MODULATION = 0.1  # power added before the logarithm, in squared nats: an inaudible amount
SMALLEST_VARIANCE = 0.05  # added to the variances of bands in correlations
SMALLEST_ONSET = 1e-3

_LOG_UNITS = LN_POWER | {CLIP_RANGE: RANGE * LN_POWER["dB"]}  # one unit of a front end, in ln(power)
_FLOOR_FRAMES = 1 << 16  # sampled evenly from all training clips, to estimate the floor


class CopiesParams(Params):
    """Strengths of augmented copies, in both directions; 0 leaves a kind of copy out."""

    cut: float = Field(ge=0, lt=1)  # fraction cut off a clip: at its end, half at either side, at its start
    speed: float = Field(ge=0, lt=0.5)  # natural logarithm
    bands: NonNegativeInt  # mel bands up and down
    gain: NonNegativeFloat  # natural logarithm of power
    tilt: NonNegativeFloat  # the same, at the highest band; its negative at the lowest

    @property
    def count(self) -> int:
        """Number of copies of a clip, itself included."""
        return 1 + 3 * bool(self.cut) + 2 * sum(map(bool, (self.speed, self.bands, self.gain, self.tilt)))


def log_unit_of(front_end: FrontEndMetadata) -> float | None:
    """Return one unit of a front end in ln(power); None where its frames are not log-mel, or have several channels."""
    return None if count_channels(front_end) > 1 else _LOG_UNITS.get(front_end["units"])


def silence_floor(clips: Sequence[np.ndarray], fraction: float) -> float:
    """Return the value, in the front end's units, below which this fraction of the clips' values lies."""
    step = max(1, sum(map(len, clips)) // _FLOOR_FRAMES)
    return float(np.quantile(np.concatenate([frames[::step].copy() for frames in clips]), fraction))


def count_features(num_bands: int, frame_rate: float) -> int:
    """Return the number of statistics of a clip of so many mel bands; `frame_rate` in Hz."""
    return len(extract_features(np.zeros((2, num_bands), np.float32), floor=0.0, frame_rate=frame_rate))


def extract_features(frames: np.ndarray, *, floor: float, frame_rate: float) -> np.ndarray:
    """Return the statistics of a clip, whose values below `floor` count as the floor; `frame_rate` in Hz."""
    x = np.maximum(frames, np.float32(floor))
    if len(x) < 2:  # no change between frames
        x = np.repeat(x if len(x) else np.full((1, x.shape[1]), floor, np.float32), 2, axis=0)
    fine, coarse, cepstrum = np.split(x @ band_projection(x.shape[1]), projection_ends(x.shape[1]), axis=1)
    change = np.diff(coarse, axis=0)
    ordered = np.sort(fine, axis=0)
    parts = [
        *(ordered[int(share * (len(x) - 1))] for share in QUANTILES),
        *_modulation(coarse, frame_rate),
        change.std(axis=0),
        np.cbrt((change**3).mean(axis=0)),
        np.abs(change).mean(axis=0),
        cepstrum.mean(axis=0),
        cepstrum.std(axis=0),
        _correlations(coarse),
        *_periodicity(_onsets(change), frame_rate),
    ]
    return np.concatenate(parts).astype(np.float32)


def augmented_copies(frames: np.ndarray, params: CopiesParams) -> Iterator[np.ndarray]:
    """Yield the clip itself, and then the copies of `params`, each (frame, mel)."""
    yield frames
    length, num_mels = frames.shape
    if params.cut:
        left = max(1, round(length * (1 - params.cut)))
        yield from (frames[start : start + left] for start in (0, (length - left) // 2, length - left))
    for sign in (-1, 1):
        if params.speed:
            longer = np.exp(sign * params.speed)
            yield frames[(np.arange(round(length * longer)) / longer).astype(int)]
        if params.bands:
            yield frames[:, np.clip(np.arange(num_mels) + sign * params.bands, 0, num_mels - 1)]
        if params.gain:
            yield frames + np.float32(sign * params.gain)
        if params.tilt:
            yield frames + np.linspace(-sign * params.tilt, sign * params.tilt, num_mels, dtype=np.float32)


def mixture(frames: np.ndarray, other: np.ndarray, generator: np.random.Generator, *, gain: float) -> np.ndarray:
    """Return a clip mixed with another one, which starts at a random point and is repeated as needed.

    Their levels differ by up to `gain` nats of power; powers add up, as those of independent waveforms.
    """
    start, level = int(generator.integers(max(len(other), 1))), np.float32(generator.uniform(-gain, gain))
    again = other[(np.arange(len(frames)) + start) % max(len(other), 1)] if len(other) else frames
    mixed: np.ndarray = np.logaddexp(frames + level, again - level) - np.float32(np.log(2))
    return mixed


def projection_ends(num_bands: int) -> tuple[int, int]:
    """Return the columns of `band_projection` at which the fine groups end and the coarse ones end."""
    fine, coarse = min(FINE, num_bands), min(COARSE, num_bands)
    return fine, fine + coarse


@cache
def band_projection(num_bands: int) -> np.ndarray:
    """Return the projection of bands to fine groups, coarse groups and cepstral coefficients: (band, column).

    Groups are means of neighbouring bands, of equal size as far as possible. The cepstrum is the discrete cosine transform
    of type II, orthonormal.
    """
    from scipy.fft import dct

    groups = [band_groups(num_bands, count) for count in (FINE, COARSE)]
    cosines = dct(np.eye(num_bands, dtype=np.float32), axis=1, norm="ortho")[:, :CEPSTRA]
    return np.concatenate([*groups, cosines], axis=1)


@cache
def band_groups(num_bands: int, count: int) -> np.ndarray:
    """Return the projection of bands to the means of `count` groups, at most one per band: (band, group)."""
    starts = np.linspace(0, num_bands, min(count, num_bands) + 1).astype(int)
    sizes = np.diff(starts)
    members: np.ndarray = np.repeat(np.eye(len(sizes), dtype=np.float32) / sizes.astype(np.float32), sizes, axis=0)
    return members


def _modulation(groups: np.ndarray, frame_rate: float) -> list[np.ndarray]:
    """Return the log mean modulation power of each group in each range of rates below half the frame rate."""
    from scipy.fft import next_fast_len, rfft

    length = len(groups)
    longest = int(np.ceil(2 * frame_rate / RATES[0]))  # so that each range has a bin
    size = next_fast_len(max(length, longest), real=True)
    power = np.square(np.abs(rfft(groups - groups.mean(axis=0), size, axis=0))) / length
    rates = np.fft.rfftfreq(size, 1 / frame_rate)
    ranges = [(low, high) for low, high in pairwise(RATES) if low < frame_rate / 2]
    return [np.log(power[(rates >= low) & (rates < high)].mean(axis=0) + SMALLEST_MODULATION) for low, high in ranges]


def _correlations(groups: np.ndarray) -> np.ndarray:
    """Return the correlations of all pairs of groups, (pair,)."""
    centred = groups - groups.mean(axis=0)
    covariance = centred.T @ centred / len(groups)
    std = np.sqrt(np.diag(covariance) + SMALLEST_VARIANCE)
    pairs: np.ndarray = (covariance / np.outer(std, std))[np.triu_indices(len(covariance), 1)]
    return pairs


def _onsets(change: np.ndarray) -> np.ndarray:
    """Return onset strength (rectified change), over all groups and in each quarter of them: (frame, 1 + quarter)."""
    rising = np.maximum(change, 0)
    num_groups = change.shape[1]
    onsets: np.ndarray = rising @ np.concatenate(
        [band_groups(num_groups, 1), band_groups(num_groups, QUARTERS)], axis=1
    )
    return onsets


def _periodicity(onsets: np.ndarray, frame_rate: float) -> list[np.ndarray]:
    """Return the highest autocorrelation of onsets (frame, band) in each range of lags; 0 where a clip is too short."""
    from scipy.fft import irfft, next_fast_len, rfft

    size = next_fast_len(2 * len(onsets), real=True)
    power = np.square(np.abs(rfft(onsets - onsets.mean(axis=0), size, axis=0)))
    correlation = irfft(power, size, axis=0)[: len(onsets)]
    correlation /= correlation[0] + SMALLEST_ONSET
    borders = [round(period * frame_rate) for period in PERIODS]
    return [correlation[low : max(high, low + 1)].max(axis=0, initial=0) for low, high in pairwise(borders)]

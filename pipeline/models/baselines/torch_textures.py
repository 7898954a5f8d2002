"""Texture statistics as torch modules, for networks and for exported graphs.

They are those of `pipeline/models/baselines/texture_statistics.py`.

Conventions: frames (batch, frame, mel) float32, natural logarithm of power, of clips of one length; features (copy, batch,
feature) float32. In exported graphs the number of frames is a symbol, and so are the lengths of augmented copies: they are
computed in whole numbers. Fourier transforms are matrix products there, whose matrices the graph computes for the clip's
length: time and memory are quadratic in it.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn

from pipeline.models.baselines.base import Weights
from pipeline.models.baselines.texture_statistics import (
    COARSE,
    PERIODS,
    QUANTILES,
    QUARTERS,
    RATES,
    SMALLEST_MODULATION,
    SMALLEST_ONSET,
    SMALLEST_VARIANCE,
    CopiesParams,
    band_groups,
    band_projection,
    projection_ends,
)

MIN_FRAMES = 4  # of a clip, so that all its copies have two
_MOST_FRAMES = 1 << 20  # of a clip, three hours at 100 Hz
_LARGEST_DENOMINATOR = 1 << 20  # of factors on lengths
_SIMPLE = 1 << 16  # largest denominator of factors that are fractions


def register(module: nn.Module, weights: Weights, names: tuple[str, ...]) -> None:
    """Register arrays of stored weights as the module's buffers of these names."""
    for name in names:
        module.register_buffer(name, torch.from_numpy(np.array(weights[name])))


class DecodedFrames(nn.Module):
    """Frames (batch, frame, mel) decoded from tokens (batch, codebook, token), as sums over a table of frames."""

    tokens: Tensor  # (codebook, token, frame, mel)
    silence: Tensor  # (frame, mel)

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        register(self, weights, ("tokens", "silence"))

    def forward(self, tokens: Tensor) -> Tensor:
        frames = torch.stack([table[tokens[:, book]] for book, table in enumerate(self.tokens)]).sum(dim=0)
        return (frames + self.silence).flatten(1, 2)


class TextureFeatures(nn.Module):
    """Texture statistics of a clip and its augmented copies: (copy, batch, feature) of frames in the front end's units."""

    def __init__(self, copies: CopiesParams, weights: Weights, num_bands: int) -> None:
        super().__init__()
        self._copies, self._log_unit = copies, float(weights["log_unit"][0])
        self.statistics = ClipStatistics(float(weights["floor"][0]), float(weights["frame_rate"][0]), num_bands)

    def forward(self, frames: Tensor) -> Tensor:
        groups = [torch.stack(group) for group in augmented_copies(frames * self._log_unit, self._copies)]
        features = [self.statistics(group.flatten(0, 1)).unflatten(0, group.shape[:2]) for group in groups]
        return torch.cat(features)


def augmented_copies(frames: Tensor, params: CopiesParams) -> Iterator[list[Tensor]]:
    """Yield the copies of `augmented_copies` in `texture_statistics.py` in groups of one length, the clip itself first."""
    length = frames.shape[1]
    yield [frames, *(copy for sign in (-1, 1) for copy in _other_spectra(frames, params, sign))]
    if params.cut:
        left = scaled_length(length, 1 - params.cut)
        yield [span(frames, start, left) for start in (0, (length - left) // 2, length - left)]
    for sign in (-1, 1) if params.speed else ():
        longer = float(np.exp(sign * params.speed))
        places = torch.arange(scaled_length(length, longer)).double() / longer
        yield [frames[:, places.to(torch.int64)]]


def _other_spectra(frames: Tensor, params: CopiesParams, sign: int) -> Iterator[Tensor]:
    """Yield the copies shifted in frequency, louder or softer, and tilted."""
    num_bands = frames.shape[2]
    if params.bands:
        yield frames[:, :, (torch.arange(num_bands) + sign * params.bands).clamp(0, num_bands - 1)]
    if params.gain:
        yield frames + sign * params.gain
    if params.tilt:
        yield frames + torch.from_numpy(
            np.linspace(-sign * params.tilt, sign * params.tilt, num_bands, dtype=np.float32)
        )


def scaled_length(length: int, factor: float) -> int:
    """Return round(length * factor), halves to the even number, in whole numbers: `length` may be a symbol."""
    ratio = Fraction(factor).limit_denominator(_LARGEST_DENOMINATOR)
    doubled, divisor = 2 * ratio.numerator * length + ratio.denominator, 2 * ratio.denominator
    rounded: int = doubled // divisor
    if ratio.denominator % 2 or ratio.denominator > _SIMPLE:  # of an irrational factor there are no halves
        return rounded
    is_half: int = 1 - torch.sym_min(doubled % divisor, 1)  # type: ignore[no-untyped-call]
    return rounded - is_half * (rounded % 2)


class ClipStatistics(nn.Module):
    """Statistics (clip, feature) of frames (clip, frame, mel): `extract_features` in `texture_statistics.py`."""

    projection: Tensor  # (mel, column)

    def __init__(self, floor: float, frame_rate: float, num_bands: int) -> None:
        super().__init__()
        self._floor = float(np.float32(floor))
        self._ends = projection_ends(num_bands)
        self.register_buffer("projection", torch.from_numpy(band_projection(num_bands)), persistent=False)
        num_coarse = min(COARSE, num_bands)
        self.modulation = Modulation(frame_rate)
        self.correlations = Correlations(num_coarse)
        self.periodicity = Periodicity(frame_rate, num_coarse)

    def forward(self, frames: Tensor) -> Tensor:
        return self.summarise(self.project(frames))

    def project(self, frames: Tensor) -> Tensor:
        """Return fine groups, coarse groups and cepstral coefficients of each frame, (clip, frame, column)."""
        return frames.clamp(min=self._floor) @ self.projection

    def summarise(self, columns: Tensor) -> Tensor:
        """Return the statistics (clip, feature) of projected frames (clip, frame, column), two or more of each clip."""
        fine, coarse, cepstrum = columns.tensor_split(self._ends, dim=2)
        last = coarse.shape[1] - 1
        change = span(coarse, 1, last) - span(coarse, 0, last)
        cubes = change.pow(3).mean(dim=1)
        parts = [
            _quantiles(fine),
            self.modulation(coarse),
            _deviation(change),
            cubes.sign() * cubes.abs().pow(1 / 3),
            change.abs().mean(dim=1),
            cepstrum.mean(dim=1),
            _deviation(cepstrum),
            self.correlations(coarse),
            self.periodicity(change),
        ]
        return torch.cat(parts, dim=1)


def span(frames: Tensor, start: int, length: int) -> Tensor:
    """Return `length` frames of (clip, frame, band) from `start` on; exporters lose the length of a slice, not of places."""
    if not torch.compiler.is_exporting():
        return frames[:, start : start + length]
    return frames[:, start + torch.arange(length, device=frames.device)]


def _deviation(columns: Tensor) -> Tensor:
    """Return the standard deviation over time of (clip, frame, column); `Tensor.std` takes eight times as long."""
    return (columns - columns.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt()


def _power(spectrum: Tensor) -> Tensor:
    """Return the squared magnitude of complex numbers, without the root that `abs` takes."""
    return spectrum.real.square() + spectrum.imag.square()


def _quantiles(groups: Tensor) -> Tensor:
    """Return the quantiles of each group over time, (clip, quantile * group)."""
    ordered, last = _sort_time(groups), groups.shape[1] - 1
    shares = [Fraction(str(share)) for share in QUANTILES]
    return torch.cat([ordered[:, share.numerator * last // share.denominator] for share in shares], dim=1)


def _sort_time(groups: Tensor) -> Tensor:
    """Return (clip, frame, group) sorted over time; on a CPU by NumPy, in a tenth of torch's time."""
    if groups.is_cpu and not torch.compiler.is_compiling():
        by_group = np.ascontiguousarray(groups.detach().mT.numpy())
        by_group.sort(axis=2)
        return torch.from_numpy(by_group).mT
    return groups.sort(dim=1).values


class Modulation(nn.Module):
    """Log mean modulation power of each group (clip, frame, group) in each range of rates: (clip, range * group)."""

    sizes: Tensor  # (size,) int64: sizes that `scipy.fft.next_fast_len` returns
    ranges: Tensor  # (range, 2) float64, Hz

    def __init__(self, frame_rate: float) -> None:
        super().__init__()
        self._frame_rate = frame_rate
        self._shortest = int(np.ceil(2 * frame_rate / RATES[0]))  # so that each range has a bin
        sizes = [next_fast_len(self._shortest, real=True)]
        while sizes[-1] < _MOST_FRAMES:
            sizes.append(next_fast_len(sizes[-1] + 1, real=True))
        # The graph makes room for the bins of the largest size that may follow a length.
        room = max(after / (before + 1) for before, after in pairwise([self._shortest - 1, *sizes]))
        self._room = int(np.ceil(16 * room))  # sixteenths of the length
        ranges = [(low, high) for low, high in pairwise(RATES) if low < frame_rate / 2]
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)
        self.register_buffer("ranges", torch.tensor(ranges, dtype=torch.float64), persistent=False)

    def forward(self, groups: Tensor) -> Tensor:
        centred = groups - groups.mean(dim=1, keepdim=True)
        squares, size = self._squares(centred) if torch.compiler.is_exporting() else self._squares_by_fft(centred)
        bins = torch.arange(squares.shape[1], device=groups.device)
        means = self._averaging(bins, size) @ (squares / groups.shape[1])
        return (means + SMALLEST_MODULATION).log().flatten(1)

    def _squares_by_fft(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared spectrum (clip, bin, group) over time, and the size of the transform."""
        size = next_fast_len(max(centred.shape[1], self._shortest), real=True)
        return _power(torch.fft.rfft(centred, size, dim=1)), torch.tensor(size, device=centred.device)

    def _squares(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same by matrix products, for a number of frames that is a symbol; later bins are not used."""
        length: int = torch.sym_max(centred.shape[1], self._shortest)  # type: ignore[no-untyped-call]
        size = torch.where(self.sizes >= length, self.sizes, _MOST_FRAMES * 2).amin(dim=0)
        bins = torch.arange(length * self._room // 32 + 2)
        phases = (bins[:, None] * torch.arange(centred.shape[1]) % size) / size * (2 * torch.pi)
        return (phases.cos() @ centred).square() + (phases.sin() @ centred).square(), size

    def _averaging(self, bins: Tensor, size: Tensor) -> Tensor:
        """Return the weights (range, bin) of the mean over the bins of each range."""
        rates = bins * (1 / (size * (1 / torch.tensor(self._frame_rate, dtype=torch.float64))))
        inside = (rates >= self.ranges[:, :1]) & (rates < self.ranges[:, 1:]) & (bins <= size // 2)
        return inside.float() / inside.sum(dim=1, keepdim=True)


class Correlations(nn.Module):
    """Correlations of all pairs of groups (clip, frame, group): (clip, pair)."""

    pairs: Tensor  # (pair,) int64, in a flattened matrix

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        rows, columns = np.triu_indices(num_groups, 1)
        self.register_buffer("pairs", torch.from_numpy(rows * num_groups + columns), persistent=False)

    def forward(self, groups: Tensor) -> Tensor:
        centred = groups - groups.mean(dim=1, keepdim=True)
        covariance = centred.mT @ centred / groups.shape[1]
        std = (centred.square().mean(dim=1) + SMALLEST_VARIANCE).sqrt()
        return (covariance / (std[:, :, None] * std[:, None])).flatten(1)[:, self.pairs]


class Periodicity(nn.Module):
    """Highest autocorrelation of onsets in each range of lags (clip, range * band), from the change (clip, frame, group)."""

    bands: Tensor  # (group, band)

    def __init__(self, frame_rate: float, num_groups: int) -> None:
        super().__init__()
        bands = np.concatenate([band_groups(num_groups, 1), band_groups(num_groups, QUARTERS)], axis=1)
        self.register_buffer("bands", torch.from_numpy(bands), persistent=False)
        borders = [round(period * frame_rate) for period in PERIODS]
        self._lags = [(low, max(high, low + 1)) for low, high in pairwise(borders)]

    def forward(self, change: Tensor) -> Tensor:
        onsets = change.clamp(min=0) @ self.bands
        correlation = autocorrelation(onsets - onsets.mean(dim=1, keepdim=True), self._lags[-1][1])
        correlation = correlation / (correlation[:, :1] + SMALLEST_ONSET)
        return torch.cat([correlation[:, low:high].amax(dim=1).clamp(min=0) for low, high in self._lags], dim=1)


def autocorrelation(series: Tensor, num_lags: int) -> Tensor:
    """Return the autocorrelation (clip, lag, band) of series (clip, frame, band), as sums, at lags below `num_lags`."""
    if not torch.compiler.is_exporting():
        size = next_fast_len(2 * series.shape[1], real=True)
        lags = torch.fft.irfft(_power(torch.fft.rfft(series, size, dim=1)), size, dim=1)[:, : series.shape[1]]
        return nn.functional.pad(lags, (0, 0, 0, max(0, num_lags - lags.shape[1])))[:, :num_lags]
    rows = series.mT.flatten(0, 1)  # (clip * band, frame)
    later = nn.functional.pad(rows, (0, num_lags - 1))
    places = torch.arange(rows.shape[1])[:, None] + torch.arange(num_lags)
    sums = rows[:, None] @ later[:, places]  # (clip * band, 1, lag)
    return sums.reshape(series.shape[0], series.shape[2], num_lags).mT

"""Concatenative synthesis: waveforms joined from pieces of other recordings, one piece per frame.

Conventions: frames (frame, mel) float32, scaled so that distances weigh bands equally; a *unit* is one frame of a recording,
with one hop before and one after its centre; waveforms (sample,) float32.
"""

from collections.abc import Sequence

import numpy as np

# Largest squared distance, relative to the nearest unit's, at which the successor of the last unit is preferred: consecutive
# units of a recording join without a cross-fade.
_PATIENCE = 1.5
_LARGEST_GAIN = 10.0  # 20 dB; more would raise hiss to the level of music
_UNITS_PER_BLOCK = 1 << 24  # distances in memory at once: 64 MiB


def choose_units(targets: np.ndarray, units: np.ndarray, follows: np.ndarray) -> np.ndarray:
    """Return the index into `units` (unit, mel) for each target (frame, mel): (frame,) int64.

    The unit is the nearest one, or the successor of the last choice where that is nearly as near (compare unit selection in
    speech synthesis; Hunt and Black, 1996). `follows` (unit,) bool: unit u follows u - 1 in the same recording.
    """
    offsets = 0.5 * np.einsum("um,um->u", units, units)
    nearest = np.empty(len(targets), dtype=np.int64)
    block = max(1, _UNITS_PER_BLOCK // len(units))
    for first in range(0, len(targets), block):
        nearest[first : first + block] = (targets[first : first + block] @ units.T - offsets).argmax(axis=1)
    best = np.square(targets - units[nearest]).sum(axis=1)
    chosen = nearest.copy()
    for frame in range(1, len(targets)):
        after = chosen[frame - 1] + 1
        if after < len(units) and follows[after]:
            distance = float(np.square(targets[frame] - units[after]).sum())
            if distance <= _PATIENCE * best[frame]:
                chosen[frame] = after
    return chosen


def match_gains(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the gains (frame,) that give units of powers `found` (frame,) the powers `wanted` (frame,), within 20 dB."""
    gains = np.sqrt(wanted / np.maximum(found, np.finfo(np.float32).tiny))
    return np.asarray(np.clip(gains, 1 / _LARGEST_GAIN, _LARGEST_GAIN))


def join_units(
    recordings: Sequence[np.ndarray], middles: Sequence[int], gains: np.ndarray, *, hop_length: int, before: int
) -> np.ndarray:
    """Return units one hop apart, cross-faded into each other: (sample,).

    Unit t is the stretch of `recordings[t]` around sample `middles[t]`, times `gains[t]`. The centre of the first unit is at
    sample `before`, as in the front end.
    """
    fade = 0.5 - 0.5 * np.cos(
        np.pi * np.arange(2 * hop_length) / hop_length
    )  # shifted by a hop, two of them add up to 1
    pieces = np.stack(
        [_around(recording, middle, hop_length) for recording, middle in zip(recordings, middles, strict=True)]
    )
    pieces = pieces * fade * gains[:, None]
    joined = np.zeros((len(pieces) + 1) * hop_length)
    for first in (0, 1):  # every other piece, which do not overlap
        row = pieces[first::2].ravel()
        joined[first * hop_length : first * hop_length + len(row)] += row
    silence = np.zeros(max(0, before - hop_length))
    return np.concatenate([silence, joined[max(0, hop_length - before) :]]).astype(np.float32)


def _around(waveform: np.ndarray, middle: int, reach: int) -> np.ndarray:
    """Return the 2 `reach` samples around a centre, padded with silence beyond the ends."""
    piece = np.zeros(2 * reach, dtype=np.float32)
    first, last = max(0, middle - reach), min(len(waveform), middle + reach)
    if last > first:
        piece[first - middle + reach : last - middle + reach] = waveform[first:last]
    return piece

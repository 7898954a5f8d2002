"""Log-mel part of frames, which pages draw, near-duplicates are found by, and waveforms are made of.

Frames of most front ends are log-mel values alone; of several channels these are the first, and MFCCs give smoothed ones.
Of frames of samples it is a spectrum in dB, of each frame by itself, with a bin as a band.

Conventions: frames (..., mel) float32 as a front end computes them; their log-mel part (..., band).
"""

import numpy as np

from pipeline.artifacts.spectrogram import HIDDEN_STATE, SAMPLES, FrontEndMetadata, count_channels


def log_mel_part(frames: np.ndarray, metadata: FrontEndMetadata) -> np.ndarray:
    """Return the log-mel part of frames; `metadata` is their front end's."""
    if metadata["units"] == "MFCC":
        part: np.ndarray = frames @ cosine_transform(count_bands(metadata), metadata["n_mels"]).T
        return part
    if metadata["units"] == SAMPLES:
        return _spectrum(frames)
    return frames[..., : count_bands(metadata)]


def over_bands(weights: np.ndarray, metadata: FrontEndMetadata) -> np.ndarray:
    """Return weights over a frame's values (frame, mel), such as attention, as weights over bands: of MFCCs their mean."""
    if metadata["units"] != "MFCC":
        return weights
    return np.repeat(np.nanmean(weights, axis=1, keepdims=True), count_bands(metadata), axis=1)


def count_bands(metadata: FrontEndMetadata) -> int:
    """Return the number of mel bands of the log-mel part."""
    if metadata["units"] == "MFCC":
        return int(metadata["params"]["n_mels"])
    if metadata["units"] == SAMPLES:
        return metadata["n_mels"] // 2 + 1
    return metadata["n_mels"] // count_channels(metadata)


def describe_frame(metadata: FrontEndMetadata) -> str:
    """Return what a frame holds, for people: "64 mel bands", and what else there is that pages do not draw."""
    if metadata["units"] == SAMPLES:
        return f"{metadata['n_mels']} samples (drawn is their spectrum)"
    if metadata["units"] == HIDDEN_STATE:
        return f"{metadata['n_mels']} dimensions of hidden states"
    bands = f"{count_bands(metadata)} mel bands"
    if metadata["units"] == "MFCC":
        return f"{metadata['n_mels']} MFCCs of {bands} (drawn are the bands that they give back)"
    if count_channels(metadata) == 1:
        return bands
    return f"{bands} in each of the channels {', '.join(metadata['channels'])} (drawn is {metadata['channels'][0]})"


def _spectrum(frames: np.ndarray) -> np.ndarray:
    """Return the power spectrum in dB (..., bin) of frames of samples (..., sample), at least -100."""
    window = np.hanning(frames.shape[-1] + 2)[1:-1]
    powers = np.square(np.abs(np.fft.rfft(frames * window))) / np.square(window.sum())
    return np.asarray(10 * np.log10(np.maximum(powers, 1e-10)), dtype=np.float32)


def cosine_transform(n_mels: int, n_mfcc: int) -> np.ndarray:
    """Return the first n_mfcc basis vectors of the orthonormal DCT-II (n_mels, n_mfcc) float32."""
    angles = np.pi / n_mels * (np.arange(n_mels)[:, None] + 0.5) * np.arange(n_mfcc)
    vectors = np.cos(angles) * np.sqrt(2 / n_mels)
    vectors[:, 0] /= np.sqrt(2)
    return np.asarray(vectors, dtype=np.float32)

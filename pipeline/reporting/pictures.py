"""Pictures and sounds of clips for the page, as `data:` addresses, so that the page is one file.

Conventions: frames are (frame, mel); pictures run left to right in time and upward in frequency. Tokens are coloured by what
their code holds: the hue follows the rank of its centre of gravity over the mel bands (violet low, yellow high), the
lightness the rank of its level, so that alike sounds look alike in every clip of a fold.
"""

import base64
import io
import wave

import numpy as np

from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.reporting.figures import centres
from pipeline.spectrogram.log_mel import log_mel_part
from pipeline.vocabulary.rebuilding import token_spectra

AUDIO_SECONDS = 12.0  # embedded of a clip at most: 16 kHz, 16 bits take 43 KB a second as text
_MP3_COMPRESSION = 0.2  # of 0 (largest) to 1
_PALETTE = 256  # colours that a PNG's palette holds
_WAVE_POINTS = 240  # of the waveform's outline


def token_colours(vocabulary: Vocabulary) -> np.ndarray:
    """Return a colour for every token, (codebook, code, 3) in [0, 1]; see the module's conventions."""
    import matplotlib as mpl

    colours = []
    for codebook in range(vocabulary.num_codebooks):
        codes = log_mel_part(token_spectra(vocabulary, codebook), vocabulary.metadata["front_end"])
        hues = mpl.colormaps["plasma"](0.05 + 0.9 * _ranks(centres(codes)))[:, :3]
        strength = (0.45 + 0.55 * _ranks(codes.mean(axis=1)))[:, None]
        colours.append(hues * strength)
    return np.stack(colours)


def mel_picture(frames: np.ndarray, low: float, high: float) -> str:
    """Return frames (frame, mel) as a picture, black at `low` and white at `high`."""
    import matplotlib as mpl

    levels = np.clip((frames - low) / max(high - low, 1e-6), 0, 1)
    return picture(mpl.colormaps["magma"](levels.T[::-1])[:, :, :3])


def map_picture(frames: np.ndarray, values: np.ndarray, low: float, high: float) -> str:
    """Return a map (frame, mel) over a grey picture of frames; the brightest is this clip's largest value."""
    grey = np.clip((frames - low) / max(high - low, 1e-6), 0, 1).T[::-1, :, None].repeat(3, axis=2)
    over = overlay(np.nan_to_num(values.T[::-1]) / max(float(np.nanmax(values)), 1e-6))
    return picture(grey * (1 - over[:, :, 3:]) + over[:, :, :3] * over[:, :, 3:])


def overlay(strength: np.ndarray) -> np.ndarray:
    """Return colours (..., 4) with their opacity for strengths in [0, 1], to lie over a grey picture.

    Clear at 0, and never so dense that the picture below is lost: it is half of what is seen at 1.
    """
    import matplotlib as mpl

    colours: np.ndarray = mpl.colormaps["autumn"](1 - strength)  # yellow to red
    colours[..., 3] = 0.55 * strength**0.9
    return colours


def picture(colours: np.ndarray) -> str:
    """Return an RGB picture (row, column, 3) in [0, 1], top row first, as the `data:` address of a PNG.

    With at most 256 colours it has a palette: the same picture, and that of frames in a third of the bytes.
    """
    from PIL import Image

    levels = np.round(np.asarray(colours) * 255).astype(np.uint8)
    codes, places = np.unique(levels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32), return_inverse=True)
    image = Image.fromarray(levels)
    if len(codes) <= _PALETTE:
        image = Image.fromarray(places.reshape(levels.shape[:2]).astype(np.uint8), "P")
        image.putpalette(np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return _address("image/png", buffer.getvalue())


def wav_address(waveform: np.ndarray, sample_rate: int) -> str:
    """Return a waveform (sample,) in [-1, 1] as the `data:` address of a 16-bit WAV file, at most 12 seconds of it."""
    samples = np.clip(waveform[: round(AUDIO_SECONDS * sample_rate)], -1, 1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return _address("audio/wav", buffer.getvalue())


def sound_address(waveform: np.ndarray, sample_rate: int) -> str:
    """Return a waveform (sample,) in [-1, 1] as the `data:` address of an MP3 file, a fifth of `wav_address`'s length.

    The same waveform gives the same bytes, which Ogg's random serial numbers would not. WAV where libsndfile writes no MP3,
    or none at this rate.
    """
    import soundfile

    buffer = io.BytesIO()
    try:
        soundfile.write(
            buffer, np.clip(waveform, -1, 1), sample_rate, format="MP3", subtype="MPEG_LAYER_III",
            compression_level=_MP3_COMPRESSION, bitrate_mode="VARIABLE",
        )  # fmt: skip
    except (soundfile.SoundFileError, ValueError, RuntimeError):
        return wav_address(waveform, sample_rate)
    return _address("audio/mpeg", buffer.getvalue())


def wave_outline(waveform: np.ndarray) -> str:
    """Return the SVG path of a waveform's outline, scaled to its own peak, in a box of 240 by 40."""
    points = min(_WAVE_POINTS, len(waveform))
    pieces = np.array_split(waveform / max(float(np.abs(waveform).max()), 1e-9), points)
    scale = _WAVE_POINTS / points
    upper = [f"{scale * i:.0f} {20 - 19 * float(piece.max()):.1f}" for i, piece in enumerate(pieces)]
    lower = [f"{scale * i:.0f} {20 - 19 * float(piece.min()):.1f}" for i, piece in enumerate(pieces)]
    return f"M{'L'.join(upper)}L{'L'.join(reversed(lower))}Z"


def peaks(waveform: np.ndarray, count: int) -> str:
    """Return `count` peaks along a waveform (sample,) as digits of base 36, "z" at its highest."""
    heights = np.array([float(np.abs(piece).max(initial=0)) for piece in np.array_split(waveform, count)])
    return "".join(np.base_repr(round(35 * h), 36).lower() for h in heights / max(float(heights.max()), 1e-9))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks in [0, 1], the smallest value first."""
    order = np.empty(len(values))
    order[np.argsort(values, kind="stable")] = np.arange(len(values))
    return order / max(len(values) - 1, 1)


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

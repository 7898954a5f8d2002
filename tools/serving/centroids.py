"""Sound of one token: its centroid, held for half a second and resynthesised.

Conventions: frames (frame, mel) float32 in the front end's units; waveforms (sample,) float32 at the front end's rate.
"""

import io

import numpy as np
import soundfile

from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.spectrogram.front_end import FrontEnd
from pipeline.spectrogram.inversion import Inverter
from pipeline.spectrogram.log_mel import log_mel_part
from pipeline.vocabulary.rebuilding import rebuild, token_spectra

_SECONDS = 0.5
_FADE = 0.02  # seconds, at both ends, so that it does not click
_PEAK = 0.5  # of every sound: most centroids are so quiet that nothing would be heard
_SEED = 0  # of the first phases of Griffin and Lim's method


def centroid_wav(vocabulary: Vocabulary, front_end: FrontEnd, codebook: int, token: int) -> bytes:
    """Return a token's centroid as a WAV file of 16 bits, at one loudness for all tokens."""
    inverter = Inverter(front_end)
    count = round(_SECONDS * inverter.sample_rate / inverter.hop_length)
    frames = centroid_frames(vocabulary, front_end, codebook, token, count)
    waveform = inverter.waveform(log_mel_part(frames, front_end.metadata), seed=_SEED)
    waveform = _faded(waveform, round(_FADE * inverter.sample_rate))
    waveform *= _PEAK / max(float(np.abs(waveform).max()), 1e-9)
    file = io.BytesIO()
    soundfile.write(file, waveform, inverter.sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def centroid_frames(vocabulary: Vocabulary, front_end: FrontEnd, codebook: int, token: int, count: int) -> np.ndarray:
    """Return `count` frames (frame, mel) that hold what a token stands for.

    Of a single codebook the token's own frames, over and over. Of several, and of hidden states, the mean spectrum of the
    token, in the bands of its codebook, over silence.
    """
    if vocabulary.num_codebooks == 1 and vocabulary.decodable and not vocabulary.merged:
        tokens = np.full((1, -(-count // vocabulary.space.stack)), token, dtype=np.uint16)
        return rebuild(vocabulary, tokens)[:count]
    spectrum = token_spectra(vocabulary, codebook)[token]
    frame = np.full(front_end.metadata["n_mels"], front_end.metadata["log_floor"], dtype=np.float32)
    first = _first_band(vocabulary, codebook) if len(spectrum) < len(frame) else 0
    frame[first : first + len(spectrum)] = spectrum
    return np.tile(frame, (count, 1))


def _first_band(vocabulary: Vocabulary, codebook: int) -> int:
    """Return the first mel band of the group that a codebook covers."""
    space = vocabulary.space
    group = vocabulary.bands[codebook][0] * space.groups // space.num_features
    return group * len(space.mean) // space.groups


def _faded(waveform: np.ndarray, length: int) -> np.ndarray:
    ramp = np.minimum(1, (np.arange(len(waveform)) + 1) / length).astype(np.float32)
    return np.asarray(waveform * ramp * ramp[::-1])

"""Banks of sounds that augmentation adds: a folder of background noise, and coloured noise of the front end.

Coloured noise is Gaussian noise whose power falls with frequency: white not at all, pink by 3 dB, brown by 6 dB per octave,
blue and violet rise likewise. It is made as a waveform and goes through the front end, so that its frames vary as those of
sounds do.
"""

import numpy as np
import torch

from pipeline.spectrogram.registry import recorded_front_end
from pipeline.training.augmentation.noise import NoiseBank
from pipeline.training.augmentation.noise_folder import find_sounds, sound_frames
from pipeline.training.augmentation.power import PowerScale
from pipeline.training.augmentation.settings import BackgroundParams, ColouredNoiseParams, NoiseColour

_EXPONENTS: dict[NoiseColour, float] = {"white": 0, "pink": 1, "brown": 2, "blue": -1, "violet": -2}  # of 1 / frequency

_SECONDS = 30  # of noise of each colour, of which excerpts are drawn
_LEVEL = 0.1  # root mean square of the waveforms


def open_background(params: BackgroundParams, scale: PowerScale | None) -> NoiseBank | None:
    """Return the bank of the folder's sounds; None where none are added. Raises SonolexError as `sound_frames` does."""
    if params.probability == 0 or params.folder is None or scale is None:
        return None
    sounds = find_sounds(params.folder)
    frames = sound_frames(sounds, scale.front_end)
    return NoiseBank([scale.normalise(torch.from_numpy(sound)) for sound in frames], sounds.digest)


def open_coloured_noise(params: ColouredNoiseParams, scale: PowerScale | None) -> NoiseBank | None:
    """Return the bank of noise of the colours; None where none is added."""
    if params.probability == 0 or scale is None:
        return None
    front_end = recorded_front_end(scale.front_end)
    rate = scale.front_end["sample_rate"]
    frames = [front_end.log_mel(coloured_noise(colour, _SECONDS * rate)) for colour in params.colours]
    return NoiseBank([scale.normalise(torch.from_numpy(sound)) for sound in frames])


def coloured_noise(colour: NoiseColour, num_samples: int) -> np.ndarray:
    """Return a waveform (sample,) float32 of noise of a colour, always the same."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(num_samples))
    spectrum[0] = 0
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-_EXPONENTS[colour] / 2)
    waveform = np.fft.irfft(spectrum, num_samples)
    return np.asarray(_LEVEL * waveform / waveform.std(), dtype=np.float32)

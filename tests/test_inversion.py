"""From log-mel back to a waveform: what went in comes out, as far as log-mel holds it."""

import numpy as np
import pytest
from conftest import make_waveform

from pipeline.spectrogram.front_end import Inversion
from pipeline.spectrogram.inversion import Inverter
from pipeline.spectrogram.kaldi import KaldiParams
from pipeline.spectrogram.mel import MelParams
from pipeline.spectrogram.registry import FrontEndParams, build_front_end

KALDI = KaldiParams(
    kind="kaldi", sample_rate=16000, win_length=400, hop_length=160, n_fft=512, n_mels=64, f_min=20.0, f_max=8000.0,
    pre_emphasis=0.97,
)  # fmt: skip
MEL = MelParams(
    kind="mel", sample_rate=16000, n_fft=512, win_length=480, hop_length=128, n_mels=64, f_min=0.0, f_max=8000.0,
    mel_scale="slaney", norm="slaney", log_floor=-100.0, **MelParams.unrecorded,
)  # fmt: skip


@pytest.fixture(params=[KALDI, MEL], ids=["kaldi", "mel"])
def params(request: pytest.FixtureRequest) -> FrontEndParams:
    return request.param


@pytest.mark.parametrize("frequency", [440.0, 3000.0])
def test_a_tone_comes_back_at_its_pitch_and_its_level(params: FrontEndParams, frequency: float) -> None:
    tone = make_waveform("tone", 0.5, frequency=frequency)
    again = Inverter(build_front_end(params)).waveform(build_front_end(params).log_mel(tone), seed=0)
    spectrum = np.abs(np.fft.rfft(again[1600:6400] * np.hanning(4800)))
    # No nearer than the band is broad: 64 bands tell 440 from 480 Hz.
    assert np.argmax(spectrum) * 16000 / 4800 == pytest.approx(frequency, rel=0.05)
    assert np.sqrt((again[1600:6400] ** 2).mean()) == pytest.approx(np.sqrt((tone**2).mean()), rel=0.15)


def test_frames_come_back_where_they_were(params: FrontEndParams) -> None:
    """A burst of noise between silence: frame by frame the same, so nothing is shifted in time."""
    front_end, waveform = build_front_end(params), np.zeros(8000, dtype=np.float32)
    waveform[2500:5000] = make_waveform("noise", 2500 / 16000)
    frames = front_end.log_mel(waveform)
    again = front_end.log_mel(Inverter(build_front_end(params)).waveform(frames, seed=0))
    assert again.shape == frames.shape
    loud = frames > frames.max() - (40 if params.kind == "mel" else 40 / 4.34)
    decibels = (again - frames)[loud] * (1 if params.kind == "mel" else 4.34)
    assert np.sqrt((decibels**2).mean()) < 3
    assert abs(decibels.mean()) < 1


def test_bins_hold_the_power_of_their_bands_and_are_never_negative(params: FrontEndParams) -> None:
    inverter = Inverter(build_front_end(params))
    frames = build_front_end(params).log_mel(make_waveform("noise", 0.2))
    bins = inverter.bin_powers(frames)
    assert bins.shape == (len(frames), 257)
    assert (bins >= 0).all()
    bands = bins @ inverter.filters.T
    held = inverter.filters.any(axis=1)
    np.testing.assert_allclose(bands[:, held], inverter.band_powers(frames)[:, held], rtol=0.2)


def test_silence_stays_silent(params: FrontEndParams) -> None:
    frames = np.full((40, 64), build_front_end(params).metadata["log_floor"], dtype=np.float32)
    again = Inverter(build_front_end(params)).waveform(frames, seed=0)
    assert np.isfinite(again).all()
    assert np.abs(again).max() < 1e-3


def test_the_same_seed_gives_the_same_samples(params: FrontEndParams) -> None:
    frames = build_front_end(params).log_mel(make_waveform("noise", 0.1))
    first, second, other = (Inverter(build_front_end(params)).waveform(frames, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_front_end_says_itself_how_it_is_inverted(params: FrontEndParams) -> None:
    front_end = build_front_end(params)
    inversion = front_end.inversion
    assert inversion.filters.shape == (params.n_mels, params.n_fft // 2 + 1)
    assert inversion.window.shape == (params.win_length,)

    class Decimal(type(front_end)):
        @property
        def inversion(self) -> Inversion:
            return super().inversion._replace(log_base=10.0, before=7)

    inverter = Inverter(Decimal(params))
    np.testing.assert_allclose(inverter.band_powers(np.full((1, 2), 2.0, np.float32)), 100.0, rtol=1e-6)
    assert inverter.middle(3) == 7 + 3 * params.hop_length

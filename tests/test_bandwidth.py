"""Bandwidth of waveforms that are known by construction."""

import numpy as np
import pytest
import soxr
from conftest import make_waveform

from pipeline.spectrogram.bandwidth import measure_bandwidth


@pytest.mark.parametrize("frequency", [500.0, 3000.0, 7000.0])
def test_a_tone_ends_at_its_frequency(frequency: float) -> None:
    waveform = make_waveform("tone", 1.0, frequency=frequency)
    assert measure_bandwidth(waveform, 16000) == pytest.approx(frequency, abs=50)


def test_noise_reaches_to_half_the_rate_and_a_telephones_to_four_kilohertz() -> None:
    noise = make_waveform("noise", 3.0)
    assert measure_bandwidth(noise, 16000) == 8000
    telephone = soxr.resample(make_waveform("noise", 3.0, 8000), 8000, 16000)
    sixteen_bits = np.round(telephone * 32767) / 32767
    assert measure_bandwidth(sixteen_bits.astype(np.float32), 16000) == pytest.approx(4000, abs=200)


def test_silence_and_a_constant_have_none_and_short_clips_have_one() -> None:
    assert measure_bandwidth(np.zeros(5000, np.float32), 16000) == 0
    assert measure_bandwidth(np.full(5000, 0.5, np.float32), 16000) == 0
    assert measure_bandwidth(make_waveform("tone", 0.01, frequency=1000.0), 16000) > 900


def test_a_long_clip_is_measured_on_frames_spread_over_it() -> None:
    waveform = np.concatenate([make_waveform("tone", 400.0, frequency=500.0), make_waveform("noise", 30.0)])
    assert measure_bandwidth(waveform, 16000) == 8000

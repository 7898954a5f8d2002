"""Token sequences in the voice of other clips: pieces of recordings, chosen and cross-faded."""

import numpy as np
from conftest import make_waveform

from pipeline.spectrogram.concatenation import choose_units, join_units, match_gains

HOP = 160


def test_a_recording_joined_from_its_own_units_is_itself() -> None:
    waveform = make_waveform("noise", 0.3)
    middles = [200 + HOP * frame for frame in range(20)]
    joined = join_units([waveform] * 20, middles, np.ones(20), hop_length=HOP, before=200)
    inside = slice(200, 200 + 19 * HOP)  # between the first middle and the last
    np.testing.assert_allclose(joined[inside], waveform[inside], atol=1e-6)
    assert not joined[:40].any()


def test_units_beyond_a_recordings_ends_are_silent_and_gains_multiply() -> None:
    waveform = np.ones(400, dtype=np.float32)
    joined = join_units(
        [waveform, waveform, waveform], [0, 200, 5000], np.array([1.0, 2.0, 1.0]), hop_length=HOP, before=0
    )
    assert joined[HOP] == 2
    assert not joined[2 * HOP :].any()


def test_the_nearest_unit_is_taken_and_its_successor_kept_while_it_is_near() -> None:
    units = np.array([[0.0], [1.0], [2.0], [0.05]])
    follows = np.array([False, True, True, False])
    # 1.1 is nearest to unit 1, which follows; 0.06 would be nearest to unit 3, far from unit 2.
    assert choose_units(np.array([[0.01], [1.1], [0.06]]), units, follows).tolist() == [0, 1, 3]
    # Unit 1 is as near to 1.0 as can be: no matter that unit 0, which comes to mind first, does not follow anything.
    near = np.array([[0.0], [1.2], [1.0]])
    assert choose_units(np.array([[0.0], [1.09]]), near, np.array([False, True, False])).tolist() == [0, 1]
    assert choose_units(np.array([[0.0], [1.09]]), near, np.array([False, False, False])).tolist() == [0, 2]


def test_gains_match_powers_within_bounds() -> None:
    np.testing.assert_allclose(match_gains(np.array([4.0, 1.0, 0.0]), np.array([1.0, 0.0, 1.0])), [2.0, 10.0, 0.1])

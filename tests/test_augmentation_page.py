"""The page of what augmentation does to a clip."""

from pathlib import Path

import numpy as np
import pytest
from test_spectral_augmentation import METADATA
from workspace import ROOT

from pipeline.params import read_params, validate_params
from pipeline.reporting.augmentation_page import Case, find_cases, show, write_augmentation_page
from pipeline.training.augmentation.power import PowerScale
from pipeline.training.augmentation.settings import AugmentationParams

OPTIONS = read_params(ROOT / "params.yaml")["train"]["augmentation"]
PARAMS = validate_params(AugmentationParams, OPTIONS, "train.augmentation")
SCALE = PowerScale(METADATA, 1.0)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(-5, 3, (length, 64)).astype(np.float32) for length in (40, 50)]


def test_every_setting_of_frames_is_shown_and_changes_the_clip(clips: list[np.ndarray]) -> None:
    cases = dict(find_cases(PARAMS))
    kept = {"mixup_probability", "mixup_alpha", "mixup_partners", "token_noise", "retokenize"}
    kept |= {"background", "copies"}  # which need a folder, and copies
    assert set(cases) == set(OPTIONS) - kept
    for name, shown in cases.items():
        changed = [show(case, clips, SCALE, PARAMS, seed) for seed, case in enumerate(shown)]
        assert all(np.isfinite(frames).all() for frames in changed), name
        assert any(frames.shape != clips[0].shape or np.abs(frames - clips[0]).max() > 0.1 for frames in changed), name
    np.testing.assert_allclose(show(Case("", {}), clips, SCALE, PARAMS, 0), clips[0], atol=1e-5)


def test_the_page_names_settings_and_values(clips: list[np.ndarray], tmp_path: Path) -> None:
    copies = [("speed_0.8", clips[1])]
    write_augmentation_page(tmp_path / "page.html", "dog: <bark>", clips, SCALE, PARAMS, copies)
    page = (tmp_path / "page.html").read_text()
    assert "dog: &lt;bark&gt;" in page
    for text in ("<code>pitch</code>", "-2 semitones", "2 clips, -6 dB", "6 dB", "0.02 of the clip", "speed_0.8"):
        assert text in page
    assert page.count("<img") > 40

"""Which clips an epoch visits: all once, or balanced by class, and the same again for the same seed."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.params import validate_params
from pipeline.training.sampling import clip_weights, draw_rows
from pipeline.training.settings import TrainParams


def _skewed(counts: list[int]) -> Tensor:
    """Return targets with so many clips of each class, one label a clip."""
    classes = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return torch.nn.functional.one_hot(classes, len(counts)).float()


def _frequencies(targets: Tensor, epochs: int = 40) -> Tensor:
    """Return how often each class is drawn, over the mean class."""
    torch.manual_seed(0)
    drawn = sum(targets[draw_rows(targets, "balanced")].sum(0) for _ in range(epochs))
    assert isinstance(drawn, Tensor)
    return drawn / drawn.mean()


def test_an_epoch_shuffled_holds_each_clip_once_and_is_the_permutation_of_old() -> None:
    targets = _skewed([5, 3])
    torch.manual_seed(7)
    rows = draw_rows(targets, "shuffled")
    torch.manual_seed(7)
    assert rows.tolist() == torch.randperm(8).tolist()


def test_balanced_classes_come_equally_often() -> None:
    targets = _skewed([600, 60, 30, 6, 1])
    frequencies = _frequencies(targets)
    assert frequencies.min() > 0.95
    assert frequencies.max() < 1.05
    assert len(draw_rows(targets, "balanced")) == 697


def test_balanced_classes_of_many_labels_come_nearly_equally_often() -> None:
    """Eight classes, the first with 60 times the clips of the last; three clips in ten have a second label."""
    generator = np.random.default_rng(0)
    shares = np.geomspace(60, 1, 8) / np.geomspace(60, 1, 8).sum()
    targets = _skewed((shares * 3000).astype(int).tolist())
    for row in np.flatnonzero(generator.random(len(targets)) < 0.3):
        targets[row, generator.choice(8, p=shares)] = 1
    before = targets.sum(0) / targets.sum(0).mean()
    frequencies = _frequencies(targets)
    assert before.max() / before.min() > 40
    assert frequencies.max() / frequencies.min() < 2.5  # second labels are skewed, and come along


def test_masked_labels_take_no_clip_out_and_make_no_class_more_frequent() -> None:
    """A class that is known in 6 of 300 clips comes more often than in the corpus, and every clip may come."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(300, 4, generator=generator) < torch.tensor([0.6, 0.3, 0.1, 0.0])).float()
    targets[:6, 3] = 1
    hidden = torch.rand(targets.shape, generator=generator) < 0.3
    hidden[:6, 3] = False
    masked = targets.masked_fill(hidden, torch.nan)
    masked[10] = torch.nan  # nothing is known of this clip
    weights = clip_weights(masked)
    assert weights.isfinite().all()
    assert weights.min() > 0
    known = masked.nan_to_num(0)
    before = known.mean(0)
    after = (weights[:, None] * known).sum(0) / weights.sum()
    assert after[3] > 5 * before[3]
    assert after.max() / after.min() < before.max() / before.min()


def test_weights_are_summed_over_labels_and_unlabelled_clips_are_a_class() -> None:
    """Peer bug: a weight of 0 for a clip without labels, which is then never seen."""
    targets = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])  # the third class has no clip
    assert clip_weights(targets).tolist() == [0.5, 1.5, 0.5, 0.5]
    assert clip_weights(targets[:3]).tolist() == [0.5, 1.5, 1]  # one clip alone


def test_every_clip_of_a_class_is_as_likely() -> None:
    targets = _skewed([40, 4])
    torch.manual_seed(0)
    drawn = torch.bincount(torch.cat([draw_rows(targets, "balanced") for _ in range(500)]), minlength=44)
    for rows in (drawn[:40], drawn[40:]):
        assert rows.min() > 0.75 * rows.double().mean()
        assert rows.max() < 1.25 * rows.double().mean()


def test_the_seed_decides() -> None:
    targets = _skewed([30, 3])
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(draw_rows(targets, "balanced").tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_sampling_that_is_unknown_is_named() -> None:
    with pytest.raises(ParamsError, match=r"train\.sampling: .*'shuffled' or 'balanced'"):
        validate_params(TrainParams, {"sampling": "bal"}, "train")

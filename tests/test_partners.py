"""Mixtures of several clips: which partners they have, what is added or joined, and their labels."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import build
from test_spectral_augmentation import METADATA
from test_training import MODEL, NOT_NORMALISED, PLAIN, SETTINGS, Memory, make_examples
from torch import Tensor

from pipeline.errors import SonolexError
from pipeline.models.network import Network
from pipeline.training.augmentation.applying import Augmentation
from pipeline.training.augmentation.mixing import concatenate_clips, mix, mix_labels, sum_clips
from pipeline.training.augmentation.noise import NoiseBank, NoiseBanks
from pipeline.training.augmentation.partners import Partners, PartnerSampler, Use, expected_positives
from pipeline.training.augmentation.power import NEPERS, PowerScale
from pipeline.training.augmentation.settings import AugmentationParams
from pipeline.training.batches import Batch, Batches
from pipeline.training.classification import Classification
from pipeline.training.loop import train
from pipeline.training.losses import loss_of
from pipeline.training.settings import TrainParams
from pipeline.training.validation import Examples

SCALE = PowerScale({"log_floor": -16.0}, 1.0, size=2.0)  # type: ignore[typeddict-item]


def settings(name: str, **changes: Any) -> AugmentationParams:
    """Return settings of one kind of mixture, which every clip becomes unless changed."""
    part = PLAIN[name] | {"probability": 1.0, "gain": [0.0, 0.0], "random_start": False} | changes
    return AugmentationParams.model_validate(PLAIN | {name: part})


def partners(*owners: int, use: Use = Use.SUM) -> Partners:
    """Return partners of these clips, whose rows follow those of the batch."""
    count = len(owners)
    return Partners(torch.arange(count), torch.tensor(owners), torch.full((count,), use), torch.zeros(count))


def drawn(params: AugmentationParams, targets: Tensor, rows: Sequence[int], **how: Any) -> Partners | None:
    return PartnerSampler(params, targets, **how).draw(rows, torch.Generator().manual_seed(0))


def test_n_clips_means_n_in_all() -> None:
    found = drawn(settings("sum_clips", num_clips=[3, 3]), torch.eye(50), range(20))
    assert found is not None
    assert Counter(found.owners.tolist()) == dict.fromkeys(range(20), 2)
    for owner in range(20):
        rows = found.rows[found.owners == owner].tolist()
        assert len({owner, *rows}) == 3
    found = drawn(settings("concatenate_clips", num_clips=[2, 4]), torch.eye(50), [0] * 300)
    assert found is not None
    assert set(Counter(found.owners.tolist()).values()) == {1, 2, 3}
    assert (found.uses == Use.CONCATENATE).all()


def test_a_clip_is_summed_or_concatenated_or_neither_as_often_as_asked_for() -> None:
    both = PLAIN | {
        "sum_clips": PLAIN["sum_clips"] | {"probability": 0.3},
        "concatenate_clips": PLAIN["concatenate_clips"] | {"probability": 0.2},
    }
    found = drawn(AugmentationParams.model_validate(both), torch.eye(50), [0] * 2000)
    assert found is not None
    owners = [set(found.owners[found.uses == use].tolist()) for use in (Use.SUM, Use.CONCATENATE)]
    assert not owners[0] & owners[1]
    assert [len(found) / 2000 for found in owners] == pytest.approx([0.3, 0.2], abs=0.03)


def test_partners_without_a_label_that_is_there_already() -> None:
    targets = torch.eye(4).repeat(10, 1)
    found = drawn(settings("sum_clips", num_clips=[3, 3], absent_labels=True), targets, range(40))
    assert found is not None
    for owner in range(40):
        rows = [owner, *found.rows[found.owners == owner].tolist()]
        assert targets[rows].sum(0).max() == 1


def test_mixtures_have_the_most_labels_at_most() -> None:
    targets = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1], [math.nan, 1, 0, 0]]).repeat(5, 1)
    found = drawn(settings("sum_clips", num_clips=[4, 4], most_labels=3), targets, range(20))
    assert found is not None
    for owner in range(20):
        rows = [owner, *found.rows[found.owners == owner].tolist()]
        assert targets[rows].nan_to_num(0).amax(0).sum() <= 3
    assert drawn(settings("sum_clips", most_labels=1), targets[:1].repeat(9, 1), range(9)) is None


def test_partners_of_the_same_group() -> None:
    groups = ["a", "b", "a", "alone", "b", "a"]
    found = drawn(settings("sum_clips", same_group=True), torch.eye(6), range(6), groups=groups)
    assert found is not None
    assert found.owners.tolist() == [0, 1, 2, 4, 5]
    assert all(groups[row] == groups[owner] for row, owner in zip(found.rows, found.owners, strict=True))
    with pytest.raises(SonolexError, match=r"sum_clips\.same_group: expected groups of at least two .*found 6 groups"):
        PartnerSampler(settings("sum_clips", same_group=True), torch.eye(6), list("abcdef"))


def test_mixup_partners_of_all_clips_are_uniform_where_sampling_is_balanced() -> None:
    params = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 0.5, "mixup_partners": "all"})
    common = torch.tensor([[1.0, 0]]).repeat(9, 1)
    targets = torch.cat([common, torch.tensor([[0.0, 1]])])
    found = drawn(params, targets, [9] * 4000)  # the rare clip alone, as balanced sampling might have it
    assert found is not None
    assert len(found.owners) / 4000 == pytest.approx(0.5, abs=0.03)
    assert (found.rows == 9).float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_nothing_is_drawn_without_mixtures_and_none_of_sums_without_powers() -> None:
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    sampler = PartnerSampler(AugmentationParams.model_validate(PLAIN | {"mixup_probability": 1.0}), torch.eye(3))
    assert not sampler.draws_any
    assert sampler.draw([0, 1], generator) is None
    assert torch.equal(generator.get_state(), state)
    summing = PartnerSampler(settings("sum_clips"), torch.eye(3), sums=False)
    assert not summing.draws_any
    assert summing.draw([0, 1], generator) is None


def test_the_sum_of_clips_is_the_logarithm_of_the_sum_of_their_powers() -> None:
    torch.manual_seed(0)
    clips = torch.randn(4, 5, 3)
    mask = torch.arange(5) < torch.tensor([[5], [3], [4], [5]])
    clips = clips.masked_fill(~mask[:, :, None], 0.0)
    params = settings("sum_clips", gain=[6.0, 6.0]).sum_clips
    features, real = sum_clips(clips, mask, partners(1, 1), params, SCALE)  # clips 2 and 3 are added to clip 1
    powers = (clips * 2).exp() * mask[:, :, None]
    expected = (powers[1] + math.exp(6 * NEPERS) * (powers[2] + powers[3])).log() / 2
    torch.testing.assert_close(features[1], expected)
    assert torch.equal(features[0], clips[0])
    assert real is not None
    assert real.sum(1)[:2].tolist() == [5, 5]


def test_a_shorter_clip_begins_anywhere_in_a_sum() -> None:
    torch.manual_seed(0)
    clips = torch.full((201, 6, 1), -8.0)
    clips[1:, :2] = 5.0  # the others sound for two frames of two
    mask = torch.ones(201, 6, dtype=torch.bool)
    mask[1:, 2:] = False
    begun = set()
    for _ in range(40):
        features, _ = sum_clips(
            clips[[0, 1]], mask[[0, 1]], partners(0), settings("sum_clips", random_start=True).sum_clips, SCALE
        )
        loud = (features[0, :, 0] > 0).nonzero()[:, 0].tolist()
        assert loud == [loud[0], loud[0] + 1]
        begun.add(loud[0])
    assert begun == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("scale", [SCALE, None])
def test_whole_clips_follow_one_another(scale: PowerScale | None) -> None:
    torch.manual_seed(0)
    mask = torch.arange(4) < torch.tensor([[3], [4], [2], [4]])
    clips = (torch.arange(1.0, 5)[:, None] + torch.arange(4) / 10)[:, :, None] * mask[:, :, None]
    params = settings("concatenate_clips", whole=True).concatenate_clips
    orders = set()
    for _ in range(40):
        features, real = concatenate_clips(clips, mask, partners(0, 0, use=Use.CONCATENATE), params, scale)
        assert real is not None
        assert real.sum(1).tolist() == [3 + 2 + 4, 4, 2, 4]
        joined = features[0, real[0], 0].tolist()
        parts = [joined[i] for i in range(9) if joined[i] == round(joined[i])]
        orders.add(tuple(parts))
        expected = [value for first in parts for value in clips[int(first) - 1, :, 0].tolist() if value]
        assert joined == expected
        assert torch.equal(features[1, :4], clips[1])
        assert not features[~real].any()
    assert len(orders) == 6


def test_excerpts_are_together_as_long_as_the_clip() -> None:
    torch.manual_seed(0)
    clips = torch.arange(3.0)[:, None, None].expand(3, 10, 2) * 100 + torch.arange(10.0)[:, None]
    params = settings("concatenate_clips", random_start=True).concatenate_clips
    begun = set()
    for _ in range(60):
        features, real = concatenate_clips(clips, None, partners(0, 0, use=Use.CONCATENATE), params, SCALE)
        assert real is None
        values = features[0, :, 0]
        owners = Counter((values // 100).int().tolist())
        assert sorted(owners.values()) == [3, 3, 4]
        for owner in range(3):
            own = values[values // 100 == owner] % 100
            assert (own.diff() == 1).all()
            begun.add(int(own[0]))
    assert begun == set(range(8))


def test_an_excerpt_of_a_short_clip_is_all_of_it() -> None:
    mask = torch.arange(10) < torch.tensor([[10], [2]])
    features = torch.ones(2, 10, 1).masked_fill(~mask[:, :, None], 0.0)
    params = settings("concatenate_clips").concatenate_clips
    _, real = concatenate_clips(features, mask, partners(0, use=Use.CONCATENATE), params, SCALE)
    assert real is not None
    assert real.sum(1).tolist() == [7, 2]


def test_the_labels_of_a_mixture_are_the_union_or_equal_shares() -> None:
    nan = math.nan
    targets = torch.tensor([[1.0, 0, 0], [1, 0, nan], [0, 1, nan], [nan, 0, 1]])
    union = mix_labels(targets, partners(1, 1), union=True)
    torch.testing.assert_close(union[:2], torch.tensor([[1.0, 0, 0], [1, 1, 1]]))
    union = mix_labels(targets, partners(0, 0), union=True)
    torch.testing.assert_close(union[:2], torch.tensor([[1.0, 1, 1], [1, 0, nan]]), equal_nan=True)
    unknown = mix_labels(torch.tensor([[0.0, 0.3], [nan, 0.6]]), partners(0), union=True)
    torch.testing.assert_close(unknown[0], torch.tensor([nan, 0.6]), equal_nan=True)
    shares = mix_labels(torch.eye(3), partners(0, 0), union=False)
    torch.testing.assert_close(shares[0], torch.full((3,), 1 / 3))
    mixup = partners(0, 0, use=Use.MIXUP)
    assert mix_labels(targets, mixup, union=True) is targets


def test_mixup_with_partners_of_all_clips() -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 1.0, "mixup_partners": "all"})
    features, targets = torch.randn(5, 4, 2), torch.eye(5)
    mixed = mix(features, None, targets, params, None, partners(2, 0, use=Use.MIXUP))
    assert torch.equal(mixed.targets[1], targets[1])
    assert torch.equal(mixed.features[1], features[1])
    assert mixed.targets[2, 3] > 0
    assert mixed.targets[0, 4] > 0
    torch.testing.assert_close(mixed.features, torch.einsum("ab,btf->atf", mixed.targets, features))


def test_partners_are_read_behind_the_batch_and_cut_to_its_longest_clip() -> None:
    inputs = Memory(12)
    batches = Batches(inputs, list(inputs.clips), NOT_NORMALISED)
    lengths = [len(frames) for frames in inputs.clips.values()]
    short, long = int(np.argmin(lengths)), int(np.argmax(lengths))
    found = partners(0)._replace(rows=torch.tensor([long]), starts=torch.tensor([0.999]))
    batch = batches.take([short], found)
    assert batch.rows.tolist() == [short, long]
    assert batch.num_clips == 1
    assert batch.mask is None
    np.testing.assert_array_equal(batch.inputs[1].numpy(), inputs.clips[f"clip-{long}"][-lengths[short] :])
    whole = batches.take([long], found._replace(rows=torch.tensor([short])))
    np.testing.assert_array_equal(whole.inputs[1, : lengths[short]].numpy(), inputs.clips[f"clip-{short}"])


@pytest.mark.parametrize(
    "part",
    [
        {"sum_clips": {"probability": 0.6, "num_clips": [2, 3]}},
        {"concatenate_clips": {"probability": 0.6, "num_clips": [2, 3], "whole": True}},
        {"mixup_partners": "all", "mixup_probability": 0.5, "mixup_domain": "power"},
        {"sum_clips": {"probability": 0.5}, "concatenate_clips": {"probability": 0.5}, "mixup_partners": "all"},
    ],
    ids=lambda part: "+".join(part),
)
@pytest.mark.parametrize("label_kind", ["one", "many"])
def test_training_with_partners_is_the_same_twice(part: dict[str, Any], label_kind: Any, tmp_path: Path) -> None:
    options = {name: PLAIN[name] | value if isinstance(value, dict) else value for name, value in part.items()}
    params = TrainParams.model_validate(
        SETTINGS | {"epochs": 2, "accumulate": 2, "augmentation": PLAIN | {"mixup_probability": 0.3} | options}
    )

    def run() -> tuple[list[dict[str, float]], Network]:
        model = build(MODEL, {"n_mels": 6}, 3, seed=5)
        examples = with_partners(make_examples(24), params)
        task = Classification(params, loss_of(label_kind), 1, SCALE)
        found = train(
            model, params, task, examples, None, seed=3, on_epoch=lambda row, pace: None, checkpoint=tmp_path / "c"
        )
        return found.history, model

    (first, model), (second, other) = run(), run()
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(math.isfinite(row["loss"]) for row in first)


def with_partners(examples: Examples, params: TrainParams) -> Examples:
    return examples._replace(partners=PartnerSampler(params.augmentation, examples.targets))


def test_micro_batches_of_whole_concatenations_stay_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.batches.FRAMES_PER_BATCH", 400)
    joined = PLAIN["concatenate_clips"] | {"probability": 1.0, "num_clips": [3, 3], "whole": True}
    params = TrainParams.model_validate(SETTINGS | {"epochs": 1, "augmentation": PLAIN | {"concatenate_clips": joined}})
    model = build(MODEL, {"n_mels": 6}, 3, seed=5)
    sizes = []
    classify = model.classify
    model.classify = lambda features, mask: sizes.append(features.shape[:2].numel()) or classify(features, mask)  # type: ignore[method-assign, assignment, func-returns-value]
    examples = with_partners(make_examples(24), params)
    train(
        model, params, Classification(params, loss_of("many"), 1, SCALE), examples, None,
        seed=3, on_epoch=lambda row, pace: None, checkpoint=tmp_path / "c",
    )  # fmt: skip
    assert len(sizes) > 3
    assert max(sizes) <= 400


@pytest.mark.parametrize("kind", ["sum_clips", "concatenate_clips"])
def test_positives_are_as_frequent_as_expected(kind: str) -> None:
    torch.manual_seed(0)
    targets = (torch.rand(400, 3) < torch.tensor([0.1, 0.3, 0.6])).float()
    params = settings(kind, probability=0.5, num_clips=[2, 4])
    rows = list(range(400)) * 10
    found = drawn(params, targets, rows)
    assert found is not None
    mixed = mix_labels(torch.cat([targets.repeat(10, 1), targets[found.rows]]), found, union=True)[: len(rows)]
    expected = expected_positives(targets.mean(0), params)
    torch.testing.assert_close(mixed.mean(0), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(expected_positives(targets.mean(0), params, union=False), targets.mean(0))
    torch.testing.assert_close(
        expected_positives(torch.ones(1), params, others=torch.zeros(1), union=False),
        torch.tensor([0.5 + 0.5 * (1 / 2 + 1 / 3 + 1 / 4) / 3]),
    )
    mixup = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 0.5, "mixup_partners": "all"})
    assert expected_positives(torch.tensor([0.5]), mixup, others=torch.tensor([0.1])).item() == pytest.approx(0.4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_augmentation_on_a_gpu_is_that_on_a_cpu() -> None:
    """Numbers are drawn on the CPU."""
    options = {name: value | {"probability": 0.5} for name, value in PLAIN.items() if "probability" in str(value)}
    options |= {"background": PLAIN["background"], "mixup_probability": 0.5, "mixup_partners": "all", "reversal": 0.5}
    options["concatenate_clips"] |= {"whole": True}
    params = AugmentationParams.model_validate(PLAIN | options)
    frames, mask, targets = torch.randn(12, 40, 64), torch.arange(40) < torch.arange(29, 41)[:, None], torch.eye(12)
    scale = PowerScale(METADATA, 1.0, mean=-5.0, size=4.0)
    augmentation = Augmentation(params, 1, scale, NoiseBanks(None, NoiseBank([torch.randn(100, 64)])))
    found = partners(0, 1, 1, 3, 5)._replace(uses=torch.tensor([0, 1, 1, 2, 2]))
    batch = Batch(frames.masked_fill(~mask[:, :, None], 0.0), mask, torch.arange(12), found)

    def apply(device: str) -> list[Tensor]:
        torch.manual_seed(0)
        moved = Batch(batch.inputs.to(device), mask.to(device), batch.rows, found)
        model = build(MODEL, {"n_mels": 64}, 3).to(device)
        mixed = augmentation.apply(model, moved, targets.to(device), lambda labels: labels, union=True)
        return [values.cpu() for values in mixed if values is not None]

    for expected, other in zip(apply("cpu"), apply("cuda"), strict=True):
        torch.testing.assert_close(other, expected, atol=1e-4, rtol=1e-4)

"""Training: soft labels, masks, schedules, averages, and a killed run that ends as an undisturbed one."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import SonolexError
from pipeline.models.registry import model_module, validate_model_params
from pipeline.training import augmentation, loop
from pipeline.training.augmentation import AugmentationParams, MasksParams
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batches, normalise
from pipeline.training.checkpoints import run_key
from pipeline.training.loop import Examples, TrainParams, predict_logits, train
from pipeline.training.losses import classification_loss, smooth_labels
from pipeline.training.schedules import warmup_cosine

NO_MASKS = {"count": 0, "width": 0}
PLAIN = {
    "time_shift": 0.0,
    "time_stretch": 0.0,
    "word_noise": 0.0,
    "mixup_probability": 0.0,
    "mixup_alpha": 0.5,
    "frame_masks": NO_MASKS,
    "band_masks": NO_MASKS,
}
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "sampling": "shuffled",
    "batch_size": 8,
    "learning_rate": 3e-3,
    "weight_decay": 0.05,
    "betas": [0.9, 0.98],
    "warmup": 0.1,
    "gradient_clip": 1.0,
    "label_smoothing": 0.1,
    "average_decay": 0.9,
    "early_stop_patience": 0,
    "augmentation": PLAIN
    | {"time_shift": 1.0, "time_stretch": 0.1, "mixup_probability": 0.7, "band_masks": {"count": 1, "width": 3}},
}
MODEL = {
    "kind": "ast",
    "start": None,
    "normalisation": "none",
    "deviations": 1.0,
    "stem": {"kind": "convolution", "channels": [8], "strides": [[2, 2]], "kernel": 3},
    "pooling": "mean",
    "width": 16,
    "depth": 2,
    "heads": 2,
    "mlp_ratio": 2.0,
    "drop_path": 0.2,
}


class Memory:
    """Inputs that are held in memory: class k has its energy in band k, clips differ in length."""

    source, time_axis = "", 0
    facts: dict[str, Any] = {"n_mels": 6}  # noqa: RUF012
    front_end: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, num_clips: int) -> None:
        generator = np.random.default_rng(0)
        self.clips = {}
        for i in range(num_clips):
            frames = generator.standard_normal((generator.integers(20, 40), 6)).astype(np.float32)
            frames[:, i % 3] += 2
            self.clips[f"clip-{i}"] = frames

    def arrays(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        return [self.clips[clip] for clip in clip_ids]

    def num_frames(self, clip_id: str) -> int:
        return len(self.clips[clip_id])

    def usable(self, clip_ids: Sequence[str]) -> list[str]:
        return list(clip_ids)

    def statistics(self, clip_ids: Sequence[str]) -> tuple[float, float]:
        return 0.0, 1.0


def _examples(num_clips: int) -> Examples:
    inputs = Memory(num_clips)
    ids = list(inputs.clips)
    targets = torch.nn.functional.one_hot(torch.arange(num_clips) % 3, 3).float()
    none = {"kind": "none", "deviations": 1.0, "mean": 0.0, "deviation": 1.0}
    return Examples(Batches(inputs, ids, none), targets, ids)


def _train(
    checkpoint: Path, on_epoch: Any = lambda row: None, validation: Examples | None = None, **changes: Any
) -> Any:
    torch.manual_seed(5)
    model = model_module("ast").build(validate_model_params("m", MODEL), {"n_mels": 6}, 3)
    settings = TrainParams.model_validate(SETTINGS | changes)
    trained = train(
        model, settings, _examples(24), validation,
        label_kind="one", time_axis=1, seed=3, on_epoch=on_epoch, checkpoint=checkpoint,
    )  # fmt: skip
    return model, trained


def test_training_learns_and_is_the_same_twice(tmp_path: Path) -> None:
    first, trained = _train(tmp_path / "c", epochs=15)
    second, _ = _train(tmp_path / "c", epochs=15)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    examples = _examples(24)
    accuracy = (predict_logits(first, examples.batches, 8).argmax(1) == examples.targets.argmax(1)).float().mean()
    assert accuracy > 0.9
    assert trained.clips_seen == 15 * 24
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # after every epoch
    straight, expected = _train(tmp_path / "straight")
    epochs = []

    def die_in_the_third(row: dict[str, float]) -> None:
        epochs.append(row)
        if len(epochs) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "killed", die_in_the_third)
    assert (tmp_path / "killed").exists()
    resumed, trained = _train(tmp_path / "killed")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    losses = [[row["loss"] for row in history] for history in (expected.history, trained.history)]
    assert losses[0] == losses[1]
    assert not (tmp_path / "killed").exists()  # nothing stays behind a finished run


def test_moments_of_a_channels_last_weight_survive_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second convolution has several input channels: its moments came back in another order than its weights."""
    monkeypatch.setitem(MODEL, "stem", MODEL["stem"] | {"channels": [8, 8], "strides": [[2, 2], [2, 2]]})  # type: ignore[operator]
    test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch)


def test_an_unreadable_checkpoint_costs_the_run_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"not a checkpoint")
    _, trained = _train(tmp_path / "c")
    assert len(trained.history) == 4


def test_runs_of_other_settings_have_other_checkpoints() -> None:
    assert run_key({"seed": 0}) != run_key({"seed": 1})
    assert run_key({"a": 1, "b": 2}) == run_key({"b": 2, "a": 1})


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    worse = _examples(9)
    wrong = Examples(worse.batches, worse.targets.roll(1, dims=1), worse.clip_ids)  # the more it learns, the worse
    _, trained = _train(tmp_path / "c", validation=wrong, epochs=40, early_stop_patience=2)
    losses = [row["validation_loss"] for row in trained.history]
    assert len(losses) < 40
    assert losses.index(min(losses)) == len(losses) - 3


def test_early_stopping_without_validation_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SonolexError, match=r"train\.early_stop_patience: expected 0 without validation clips, found 2"):
        _train(tmp_path / "c", early_stop_patience=2)


def test_a_loss_that_is_no_number_stops_with_step_and_clips(tmp_path: Path) -> None:
    examples = _examples(6)
    examples.batches._cache[2][:] = np.nan  # type: ignore[index]
    model = model_module("ast").build(validate_model_params("m", MODEL), {"n_mels": 6}, 3)
    with pytest.raises(SonolexError, match=r"step 0 \(epoch 1\): expected a finite loss, found nan; .*clip-2"):
        train(
            model, TrainParams.model_validate(SETTINGS), examples, None,
            label_kind="one", time_axis=1, seed=0, on_epoch=lambda row: None, checkpoint=tmp_path / "c",
        )  # fmt: skip


def test_soft_labels_train_towards_both_classes() -> None:
    """Peer bug 1.3.3: targets cut to integers made every mixture the first class."""
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = classification_loss(logits, torch.tensor([[0.0, 0.4, 0.6]]), "one")
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.detach(), torch.tensor(math.log(3)))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[1 / 3, 1 / 3 - 0.4, 1 / 3 - 0.6]]))


def test_the_loss_follows_the_label_kind() -> None:
    logits, targets = torch.zeros(2, 4), torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0]])
    torch.testing.assert_close(classification_loss(logits, targets, "many"), torch.tensor(math.log(2)))
    torch.testing.assert_close(smooth_labels(targets, 0.2, "many")[0], torch.tensor([0.9, 0.1, 0.1, 0.9]))
    torch.testing.assert_close(smooth_labels(targets[:1], 0.2, "one")[0], torch.tensor([0.85, 0.05, 0.05, 0.85]))


def test_mixing_weights_pictures_and_targets_alike() -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 1.0})
    targets = torch.eye(6)
    picture = targets[:, None, :].expand(6, 4, 6).clone()  # a clip looks like its own target
    mixed = augmentation.mix(picture, None, targets, params)
    torch.testing.assert_close(mixed.picture[:, 0], mixed.targets)
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(6))
    assert (mixed.targets.amax(1) < 1).any()


def test_a_mixture_is_as_long_as_its_longer_clip() -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 1.0})
    mask = torch.tensor([[True, True, True], [True, False, False]])
    mixed = augmentation.mix(torch.zeros(2, 3, 1), mask, torch.eye(2), params)
    weights = mixed.targets.amax(1)
    assert mixed.mask is not None
    assert mixed.mask[1].all() or weights[1] == 1


@pytest.mark.parametrize("time_axis", [1, 2])
def test_time_shift_turns_a_clip_around_its_own_end(time_axis: int) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([10, 6])
    mask = torch.arange(10) < lengths[:, None]
    ramp = torch.where(mask, torch.arange(10).expand(2, -1), -1)
    inputs = ramp[:, :, None] if time_axis == 1 else ramp[:, None, :]
    params = AugmentationParams.model_validate(PLAIN | {"time_shift": 1.0})
    warped = augmentation.warp_time(inputs, mask, params, time_axis).reshape(2, 10)
    assert (warped[1, 6:] == -1).all()
    for row, length in zip(warped, lengths.tolist(), strict=True):
        values = row[:length]
        assert sorted(values.tolist()) == list(range(length))
        assert ((values.roll(-1) - values) % length == 1).all()
    assert not torch.equal(warped, ramp)


def test_word_noise_stays_near_and_leaves_special_tokens_alone() -> None:
    torch.manual_seed(0)
    neighbours = torch.tensor([[[1], [0], [2], [3]], [[2], [2], [1], [3]]])  # words 0-2, padding 3
    tokens = torch.randint(0, 4, (30, 2, 40))
    noisy = augmentation.replace_words(tokens, neighbours, 0.3)
    near = torch.stack([neighbours[book, tokens[:, book], 0] for book in range(2)], dim=1)
    assert ((noisy == tokens) | (noisy == near)).all()
    assert (noisy[tokens == 3] == 3).all()
    changed = (noisy != tokens)[near != tokens].float().mean()
    assert 0.25 < changed < 0.35
    assert torch.equal(augmentation.replace_words(tokens, neighbours, 0.0), tokens)


def test_masked_tokens_become_the_mask_token_and_never_padding() -> None:
    torch.manual_seed(0)
    tokens = torch.zeros(50, 2, 20, dtype=torch.int64)
    mask = (torch.arange(20) < 15).expand(50, -1)
    hidden = augmentation.mask_tokens(tokens, mask, 99, MasksParams(count=2, width=6)) == 99
    assert hidden.any()
    assert (hidden[:, 0] == hidden[:, 1]).all()  # a frame is hidden in all codebooks
    assert not hidden[:, :, 15:].any()
    assert hidden.sum(2).max() <= 12


def test_picture_masks_cover_whole_frames_and_bands() -> None:
    torch.manual_seed(0)
    picture = augmentation.mask_picture(
        torch.ones(40, 12, 8), MasksParams(count=1, width=4), MasksParams(count=1, width=3)
    )
    for clip in picture:
        frames, bands = (clip == 0).all(1), (clip == 0).all(0)
        assert ((clip == 0) == (frames[:, None] | bands[None, :])).all()
        assert frames.sum() <= 4
        assert bands.sum() <= 3


def test_the_schedule_rises_and_falls() -> None:
    rates = [warmup_cosine(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.001


def test_the_average_is_of_the_weights_and_swaps_back() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        for value in (1.0, 2.0, 3.0, 4.0):
            model.weight.fill_(value)
            average.update()
    expected = 0.0
    model_start = average  # the first decays are smaller than 0.5: (1/10, 2/11, 3/12, 4/13)
    assert model_start.step == 4
    average.swap()
    assert 3 < model.weight.item() < 4
    expected = model.weight.item()
    average.swap()
    assert model.weight.item() == 4
    assert average.values["weight"].item() == pytest.approx(expected)


def test_batches_pad_behind_and_mask_by_length() -> None:
    batches = _examples(5).batches
    batch = batches.take([3, 0])
    lengths = [len(batches._cache[row]) for row in (3, 0)]  # type: ignore[index]
    assert batch.mask is not None
    assert batch.mask.sum(1).tolist() == lengths
    assert batch.inputs.shape == (2, max(lengths), 6)
    assert not batch.inputs[~batch.mask].any()
    assert batches.take([1]).mask is None


def test_batches_read_the_same_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = _examples(5).batches.take([4, 1])
    monkeypatch.setattr("pipeline.training.batches.CACHE_BYTES", 0)
    torch.testing.assert_close(_examples(5).batches.take([4, 1]).inputs, kept.inputs)


def test_normalisation_by_corpus_and_by_clip() -> None:
    frames = np.array([[1.0, 3.0], [5.0, 7.0]], dtype=np.float32)
    facts = {"kind": "corpus", "deviations": 2.0, "mean": 4.0, "deviation": 0.5}
    np.testing.assert_allclose(normalise(frames, facts), frames - 4)
    by_clip = normalise(frames, facts | {"kind": "clip", "deviations": 1.0})
    np.testing.assert_allclose([by_clip.mean(), by_clip.std()], [0, 1], atol=1e-6)
    assert np.isfinite(normalise(np.ones((3, 2), np.float32), facts | {"kind": "clip"})).all()

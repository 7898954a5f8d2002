"""Training: soft labels, masks, schedules, averages, and a killed run that ends as an undisturbed one."""

import math
import platform
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import build, changed, network
from workspace import ROOT

from pipeline.errors import CorpusError, SonolexError
from pipeline.models.base import NOT_NORMALISED
from pipeline.models.network import Network
from pipeline.params import read_params
from pipeline.spectrogram.storing import restore, store
from pipeline.training.batches import READ_AHEAD, Batches, StoredBatch, normalise
from pipeline.training.classification import Classification, smooth_labels
from pipeline.training.inputs import require_short_clips
from pipeline.training.logits import predict_logits
from pipeline.training.loop import train
from pipeline.training.losses import loss_of
from pipeline.training.settings import TrainParams
from pipeline.training.validation import Examples, Validation

CPU = torch.device("cpu")
NO_MASKS = {"count": 0, "width": 0}
BASE = read_params(ROOT / "recipes" / "base.yaml")["train"]["augmentation"]  # where what is not named here is off
PLAIN = BASE | {
    "time_shift": 0.0,
    "time_stretch": 0.0,
    "copies": 0.0,
    "token_noise": 0.0,
    "mixup_probability": 0.0,
    "mixup_alpha": 0.5,
    "mixup_domain": "log",
    "frame_masks": NO_MASKS,
    "band_masks": NO_MASKS,
    "noise": 0.0,
}
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "sampling": "shuffled",
    "batch_size": 8,
    "accumulate": 1,
    "learning_rate": 3e-3,
    "schedule": {"kind": "cosine", "warmup": 0.1},
    "optimiser": {"kind": "adamw", "betas": [0.9, 0.98], "weight_decay": 0.05},
    "gradient_clip": 1.0,
    "loss": {"kind": "auto"},
    "label_smoothing": 0.1,
    "average": {"kind": "ema", "decay": 0.9},
    "checkpoint_ensemble": [],
    "early_stop_patience": 0,
    "num_threads": 1,
    "precision": "float32",
    "compile": False,
    "activation_checkpointing": False,
    "patchout": 0.0,
    "augmentation": PLAIN
    | {"time_shift": 1.0, "time_stretch": 0.1, "mixup_probability": 0.7, "band_masks": {"count": 1, "width": 3}},
    "gradient_flow": False,
    "epoch_metric": "loss",
    "keep_best": False,
    "freeze": {"stages": [], "batch_norm": "frozen"},
    "rates": {"input": 1.0, "stem": 1.0, "encoder": 1.0, "head": 1.0, "layer_decay": 1.0},
    "lora": None,
}
MODEL = network(
    stem="convolution",
    input__normalisation="none",
    stem__channels=[8],
    stem__strides=[[2, 2]],
    stem__kernel=3,
    encoder__width=16,
    encoder__heads=2,
    encoder__drop_path=0.2,
)


class Memory:
    """Inputs that are held in memory: class k has its energy in band k, clips differ in length."""

    source, time_axis, frame_rate = "", 0, 100.0
    metadata: dict[str, Any] = {"n_mels": 6}  # noqa: RUF012
    front_end: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, num_clips: int) -> None:
        generator = np.random.default_rng(0)
        self.clips = {}
        for i in range(num_clips):
            frames = generator.standard_normal((generator.integers(20, 40), 6)).astype(np.float32)
            frames[:, i % 3] += 2
            self.clips[f"clip-{i}"] = frames

    def stored(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        return [self.clips[clip] for clip in clip_ids]

    def num_frames(self, clip_id: str) -> int:
        return len(self.clips[clip_id])

    def usable(self, clip_ids: Sequence[str]) -> list[str]:
        return list(clip_ids)

    def statistics(self, clip_ids: Sequence[str]) -> list[tuple[float, float]]:
        return [(0.0, 1.0)]


def make_examples(num_clips: int) -> Examples:
    """Return the first clips of three classes that are easily told apart."""
    inputs = Memory(num_clips)
    ids = list(inputs.clips)
    targets = torch.nn.functional.one_hot(torch.arange(num_clips) % 3, 3).float()
    return Examples(Batches(inputs, ids, NOT_NORMALISED), targets, ids)


def make_model(changes: dict[str, Any] | None = None) -> Any:
    """Return the small network that every test trains, with the same weights each time; changes are by dotted key."""
    return build(changed(MODEL, changes or {}), {"n_mels": 6}, 3, seed=5)


def train_small(
    checkpoint: Path,
    on_epoch: Any = lambda row, timing: None,
    validation: Examples | None = None,
    *,
    model: Network | None = None,
    examples: Examples | None = None,
    score: Any = None,
    **changes: Any,
) -> Any:
    """Train on 24 clips with the settings, changed, and return the model and what the run left."""
    model = model or make_model()
    settings = TrainParams.model_validate(SETTINGS | changes)
    trained = train(
        model, settings, Classification(settings, loss_of("one"), 1, None), examples or make_examples(24),
        Validation(validation, loss_of("one"), score, settings.batch_size) if validation else None,
        seed=3, on_epoch=on_epoch, checkpoint=checkpoint,
    )  # fmt: skip
    return model, trained


def test_training_learns_and_is_the_same_twice(tmp_path: Path) -> None:
    first, trained = train_small(tmp_path / "c", epochs=15)
    second, _ = train_small(tmp_path / "c", epochs=15)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    examples = make_examples(24)
    accuracy = (predict_logits(first, examples.batches, 8).argmax(1) == examples.targets.argmax(1)).float().mean()
    assert accuracy > 0.9
    assert trained.clips_seen == 15 * 24
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    worse = make_examples(9)
    wrong = Examples(worse.batches, worse.targets.roll(1, dims=1), worse.clip_ids)  # the more it learns, the worse
    _, trained = train_small(tmp_path / "c", validation=wrong, epochs=40, early_stop_patience=2)
    losses = [row["validation_loss"] for row in trained.history]
    assert len(losses) < 40
    assert losses.index(min(losses)) == len(losses) - 3


def test_early_stopping_without_validation_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SonolexError, match=r"train\.early_stop_patience: expected 0 without validation clips, found 2"):
        train_small(tmp_path / "c", early_stop_patience=2)


@pytest.mark.parametrize("average", ["none", "ema"])
def test_a_kept_epoch_is_what_a_run_that_ends_there_stores(tmp_path: Path, average: str) -> None:
    """With a schedule that does not know the end; the last epoch's are the weights that the model is left with."""
    changes: dict[str, Any] = {"schedule": {"kind": "constant", "warmup_steps": 0}, "average": {"kind": average}}
    if average == "ema":
        changes["average"]["decay"] = 0.9
    model, trained = train_small(tmp_path / "c", checkpoint_ensemble=[2, 4], **changes)
    shorter, _ = train_small(tmp_path / "c", epochs=2, **changes)
    for epoch, states in {2: shorter.state_dict(), 4: model.state_dict()}.items():
        assert trained.kept[epoch].keys() == states.keys()
        assert all(torch.equal(value, states[name]) for name, value in trained.kept[epoch].items()), epoch
    assert train_small(tmp_path / "c")[1].kept == {}


def test_soft_labels_train_towards_both_classes() -> None:
    """Peer bug 1.3.3: targets cut to integers made every mixture the first class."""
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = loss_of("one")(logits, torch.tensor([[0.0, 0.4, 0.6]]))
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.detach(), torch.tensor(math.log(3)))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[1 / 3, 1 / 3 - 0.4, 1 / 3 - 0.6]]))


def test_the_loss_follows_the_label_kind() -> None:
    logits, targets = torch.zeros(2, 4), torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0]])
    torch.testing.assert_close(loss_of("many")(logits, targets), torch.tensor(math.log(2)))
    torch.testing.assert_close(smooth_labels(targets, 0.2, "sigmoid")[0], torch.tensor([0.9, 0.1, 0.1, 0.9]))
    torch.testing.assert_close(smooth_labels(targets[:1], 0.2, "softmax")[0], torch.tensor([0.85, 0.05, 0.05, 0.85]))


def test_batches_pad_behind_and_mask_by_length() -> None:
    batches = make_examples(5).batches
    batch = batches.take([3, 0]).to(CPU)
    lengths = [len(batches._cache[row]) for row in (3, 0)]  # type: ignore[index]
    assert batch.mask is not None
    assert batch.mask.sum(1).tolist() == lengths
    assert batch.inputs.shape == (2, max(lengths), 6)
    assert not batch.inputs[~batch.mask].any()
    assert batches.take([1]).mask is None


def test_batches_read_the_same_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = make_examples(5).batches.take([4, 1])
    monkeypatch.setattr("pipeline.training.batches.CACHE_BYTES", 0)
    torch.testing.assert_close(make_examples(5).batches.take([4, 1]).inputs, kept.inputs)


def test_batches_are_bounded_in_frames_with_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = make_examples(9).batches
    whole = predict_logits(make_model(), batches, 9)
    assert list(batches.bounded([4, 1, 2])) == [[4, 1, 2]]
    monkeypatch.setattr("pipeline.training.batches.FRAMES_PER_BATCH", 80)  # clips have 20 to 39
    divided = list(batches.bounded(range(9)))
    lengths = [[len(batches._cache[row]) for row in rows] for rows in divided]  # type: ignore[index]
    assert [row for rows in divided for row in rows] == list(range(9))
    assert all(len(of_batch) * max(of_batch) <= 80 for of_batch in lengths)
    assert 1 < len(divided) < 9
    assert [batch.rows.tolist() for batch in batches.in_order(9)] == divided
    assert [batch.rows.tolist() for batch in batches.in_order(9, 1, 2)] == divided[1::2]
    torch.testing.assert_close(predict_logits(make_model(), batches, 9), whole)
    monkeypatch.setattr("pipeline.training.batches.FRAMES_PER_BATCH", 1)
    assert list(batches.bounded([4, 1])) == [[4], [1]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_long_clips_divide_a_batch_and_change_no_step(
    tmp_path: Path, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for rounding, without batch norm and augmentation."""
    changes: dict[str, Any] = {"augmentation": PLAIN, "epochs": 1, "accumulate": accumulate}
    patches = {"kind": "patches", "frames": 8, "bands": 3, "stride_frames": 4, "stride_bands": 3}
    plain = {"encoder.drop_path": 0.0, "stem": patches | {"positions": {"kind": "sinusoidal"}}}
    _, trained = train_small(tmp_path / "c", model=make_model(plain), **changes)
    monkeypatch.setattr("pipeline.training.batches.FRAMES_PER_BATCH", 80)
    examples = make_examples(24)
    sizes: list[int] = []
    take = examples.batches.take
    examples.batches.take = lambda rows: sizes.append(len(rows)) or take(rows)  # type: ignore[func-returns-value, method-assign]
    _, other = train_small(tmp_path / "c", model=make_model(plain), examples=examples, **changes)
    assert max(sizes) <= 4
    assert sum(sizes) == 24
    assert other.history[0]["loss"] == pytest.approx(trained.history[0]["loss"], rel=1e-4)
    assert other.history[0]["gradient_norm"] == pytest.approx(trained.history[0]["gradient_norm"], rel=1e-3)


def test_clips_that_outgrow_a_batch_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, network = Memory(9), make_model()
    inputs.frame_rate = 10.0
    require_short_clips(inputs, list(inputs.clips), network)
    monkeypatch.setattr("pipeline.training.inputs.FRAMES_PER_BATCH", 30)
    long = [clip for clip, frames in inputs.clips.items() if len(frames) > 30]
    first = f"{long[0]} of {len(inputs.clips[long[0]]) / 10:.0f} s"
    expected = (
        rf"at most 3 s \(30 frames, .*found {first}, .* and {len(long) - 3} more; set corpus.max_duration to 3 or"
    )
    with pytest.raises(CorpusError, match=expected):
        require_short_clips(inputs, list(inputs.clips), network)
    network.stem.max_frames = 20  # reads the first frames of any clip
    require_short_clips(inputs, list(inputs.clips), network)


def test_normalisation_by_corpus_and_by_clip() -> None:
    frames = torch.tensor([[[1.0, 3.0], [5.0, 7.0], [99.0, 99.0]]])
    mask = torch.tensor([[True, True, False]])
    metadata = {"kind": "corpus", "std_scale": 2.0, "mean": 4.0, "std": 0.5}
    torch.testing.assert_close(normalise(frames, mask, {}, metadata)[0, :2], frames[0, :2] - 4)
    by_clip = normalise(frames, mask, {}, metadata | {"kind": "clip", "std_scale": 1.0})[0, :2]
    np.testing.assert_allclose([by_clip.mean(), by_clip.std(correction=0)], [0, 1], atol=1e-6)
    assert normalise(torch.ones(1, 3, 2), None, {}, metadata | {"kind": "clip"}).isfinite().all()
    assert frames[0, 0, 0] == 1  # the caller's own


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_a_batch_as_stored_becomes_what_the_reader_gives(dtype: str) -> None:
    front_end = {
        "dtype": dtype,
        "scale": 0.1 if dtype == "uint8" else 1.0,
        "offset": -16.0 if dtype == "uint8" else 0.0,
    }
    frames = np.random.default_rng(0).normal(-5, 3, (7, 4)).astype(np.float32)
    stored, _ = store(frames, front_end)
    metadata = {"kind": "corpus", "std_scale": 2.0, "mean": -4.5, "std": 3.0}
    batch = StoredBatch(torch.from_numpy(stored)[None], None, torch.arange(1), front_end, metadata).to(CPU)
    expected = (restore(stored, front_end) - np.float32(-4.5)) / np.float32(6.0)
    np.testing.assert_array_equal(batch.inputs[0].numpy(), expected)


@pytest.mark.parametrize(
    ("units", "kind", "expected"),
    [
        ("ln(power)", "corpus", 6.0),
        ("dB", "corpus", 6 * math.log(10) / 10),
        ("ln(power)", "none", 1.0),
        ("ln(power)", "clip", None),
        ("", "corpus", None),
    ],
)
def test_batches_know_what_a_unit_is_in_logarithms_of_power(units: str, kind: str, expected: float | None) -> None:
    inputs = Memory(2)
    inputs.front_end = {"units": units}
    normalisation = {"kind": kind, "std_scale": 2.0, "mean": -5.0, "std": 3.0}
    scale = Batches(inputs, ["clip-0"], normalisation).power_scale
    assert (scale and scale.log_unit) == (expected and pytest.approx(expected))


def test_batches_read_ahead_come_in_turn_and_a_few_at_a_time() -> None:
    batches = make_examples(9).batches
    taken: list[int] = []
    take = batches.take
    batches.take = lambda rows: taken.append(rows[0]) or take(rows)  # type: ignore[func-returns-value, method-assign]
    parts = [[4, 1], [2], [0, 3], [5], [6], [7], [8]]
    for position, batch in enumerate(batches.ahead(parts)):
        assert batch.rows.tolist() == parts[position]
        assert len(taken) <= position + 1 + READ_AHEAD
    assert sorted(taken) == [0, 2, 4, 5, 6, 7, 8]


def test_an_error_in_reading_ahead_is_met_where_the_batch_is_needed() -> None:
    ahead = make_examples(2).batches.ahead([[0], [99]])
    next(ahead)
    with pytest.raises(IndexError):
        next(ahead)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory as they will")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    """In a process of its own, which stays as it is set. Blocks of 48 MB are more than glibc ever keeps unasked."""
    program = textwrap.dedent("""
        import resource, torch
        from pipeline.training.step import keep_freed_memory
        def count_faults():
            faults = []
            for _ in range(30):  # free blocks take some turns to join
                block = torch.ones(12 << 20)
                del block
                faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            return faults[-1] - faults[-3]
        plain = count_faults()
        assert keep_freed_memory()
        print(plain, count_faults())
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    plain, kept = map(int, done.stdout.split())
    assert kept < 10 < plain

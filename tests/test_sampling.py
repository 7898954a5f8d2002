"""The frame sample is a metadata of clips and seed alone, and reading stays proportional to it."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.errors import CorpusError
from pipeline.vocabulary import sampling
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.sampling import choose_frames, draw_sample


class Clips:
    """Frames in memory; frame t of a clip holds [number of the clip, t]. Counts the frames read."""

    def __init__(self, lengths: dict[str, int]) -> None:
        self.lengths, self.frames_read = lengths, 0

    def ok(self, clip_ids: Sequence[str]) -> list[str]:
        return [clip for clip in clip_ids if clip in self.lengths]

    def num_frames(self, clip_id: str) -> int:
        return self.lengths[clip_id]

    def read(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        self.frames_read += sum(self.lengths[clip] for clip in clip_ids)
        return [
            np.stack([np.full(self.lengths[c], float(c[1:])), np.arange(self.lengths[c])], axis=1).astype(np.float32)
            for c in clip_ids
        ]


def clips(count: int, length: int = 50) -> Clips:
    return Clips({f"c{number}": length for number in range(count)})


def test_all_frames_are_used_when_they_fit() -> None:
    sample = draw_sample(clips(4), ["c0", "c1", "c2", "missing"], sample_frames=150, seed=0)
    assert sample.frames.tolist() == [[c, t] for c in range(3) for t in range(50)]
    assert {k: sample.metadata[k] for k in ("clips", "frames", "available")} == {
        "clips": 3,
        "frames": 150,
        "available": 150,
    }


def test_a_sample_has_the_size_asked_for_and_no_frame_twice() -> None:
    sample = draw_sample(clips(20), [f"c{n}" for n in range(20)], sample_frames=333, seed=0)
    assert sample.frames.shape == (333, 2)
    assert len(np.unique(sample.frames, axis=0)) == 333
    assert sample.metadata["available"] == 1000


def test_the_order_of_clips_does_not_matter_and_the_seed_does() -> None:
    ids = [f"c{n}" for n in range(20)]
    first = draw_sample(clips(20), ids, sample_frames=100, seed=0)
    turned = draw_sample(clips(20), ids[::-1], sample_frames=100, seed=0)
    other = draw_sample(clips(20), ids, sample_frames=100, seed=1)
    assert np.array_equal(first.frames, turned.frames)
    assert first.metadata == turned.metadata
    assert first.metadata["digest"] != other.metadata["digest"]


def test_batches_do_not_change_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"c{n}" for n in range(20)]
    whole = draw_sample(clips(20), ids, sample_frames=100, seed=0)
    monkeypatch.setattr(sampling, "FRAMES_PER_BATCH", 60)
    assert np.array_equal(whole.frames, draw_sample(clips(20), ids, sample_frames=100, seed=0).frames)


def test_reading_is_proportional_to_the_sample_not_to_the_corpus() -> None:
    reader = clips(5000, length=100)
    sample = draw_sample(reader, list(reader.lengths), sample_frames=500, seed=0)
    assert len(sample.frames) == 500
    assert reader.frames_read <= sampling.FRAMES_READ_PER_FRAME_KEPT * 500 + 100


def test_every_frame_is_equally_likely() -> None:
    lengths = {"short": 1000, "long": 9000}
    chosen = choose_frames(lengths, sample_frames=2000, seed=3)
    assert len(chosen["long"]) == pytest.approx(1800, abs=4 * np.sqrt(2000 * 0.9 * 0.1))
    early = (chosen["long"] < 4500).mean()
    assert early == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(1800))


def test_a_sample_of_all_frames_but_one() -> None:
    ids = [f"c{n}" for n in range(4)]
    assert draw_sample(clips(4), ids, sample_frames=200, seed=0).frames.shape == (200, 2)
    frames = draw_sample(clips(4), ids, sample_frames=199, seed=0).frames.tolist()
    assert len(frames) == 199
    assert frames == sorted(frames)  # by clip, then by time


def test_keys_of_frames_are_those_of_splitmix64() -> None:
    """The first numbers of its reference implementation (Vigna, 2015) from the seed 0."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert sampling._frame_keys(0, 3).tolist() == expected


def test_the_digest_of_a_sample_follows_from_clips_and_positions() -> None:
    chosen = {"a": np.array([0, 3]), "b": np.array([1])}
    others = [{"a": np.array([0, 4]), "b": np.array([1])}, {"a": np.array([0, 3]), "c": np.array([1])}]
    others += [{"a": np.array([0]), "b": np.array([3, 1])}, {"a": np.array([0, 3])}]
    digests = [sampling._digest(sample) for sample in (chosen, *others)]
    assert len(set(digests)) == 5
    assert all(len(digest) == 32 for digest in digests)
    assert sampling._digest({name: places.astype(np.int32) for name, places in chosen.items()}) == digests[0]


def test_whole_clips_are_chosen_up_to_what_they_may_hold() -> None:
    lengths = {f"c{n}": 10 for n in range(6)} | {"empty": 0}
    chosen = {most: sampling.choose_clips(lengths, most=most, seed=0) for most in (1, 10, 29, 30, 31, 60, 100)}
    assert [len(clips) for clips in chosen.values()] == [1, 1, 2, 3, 3, 6, 6]  # the first in any case
    assert all(clips == sorted(clips) for clips in chosen.values())
    assert set(chosen[10]) < set(chosen[29]) < set(chosen[30]) < set(chosen[60]) == set(lengths) - {"empty"}
    assert chosen[30] == sampling.choose_clips(dict(reversed(lengths.items())), most=30, seed=0)
    assert {tuple(sampling.choose_clips(lengths, most=30, seed=seed)) for seed in range(9)} != {tuple(chosen[30])}


def test_no_usable_clip_is_an_error() -> None:
    with pytest.raises(CorpusError, match="2 clips without a usable frame"):
        draw_sample(clips(1), ["gone", "lost"], sample_frames=10, seed=0)


def test_batches_hold_whole_clips_in_order() -> None:
    lengths = {"a": 5, "b": 5, "c": 30, "d": 1}
    assert list(clip_batches(list("abcd"), lengths.__getitem__, frames_per_batch=10)) == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize("sample_frames", [60, 10_000])
def test_tokens_of_several_frames_come_with_the_frames_beside_them(sample_frames: int) -> None:
    sample = draw_sample(
        clips(5, length=31), [f"c{n}" for n in range(5)], sample_frames=sample_frames, seed=0, stack=4, margin=2
    )
    assert sample.windows.shape == (min(sample_frames // 4, 5 * 8), 8, 2)
    assert sample.metadata["frames"] == 4 * len(sample.windows)
    assert sample.frames.shape == (sample.metadata["frames"], 2)
    for window in sample.windows:
        clip, first = window[0, 0], window[2, 1]  # after the two frames before it
        assert first % 4 == 0
        assert (window[:, 0] == clip).all()
        assert window[:, 1].tolist() == np.clip(np.arange(first - 2, first + 6), 0, 30).tolist()


def test_reading_for_stacks_is_proportional_to_the_sample() -> None:
    reader = clips(5000, length=100)
    draw_sample(reader, list(reader.lengths), sample_frames=500, seed=0, stack=5, margin=3)
    assert reader.frames_read <= sampling.FRAMES_READ_PER_FRAME_KEPT * 500 + 100

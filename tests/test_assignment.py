"""Tokens are the nearest codes, whatever the batch, the block, and (with l2) the level."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_features import make_space

from pipeline.artifacts.vocabulary import Codebooks, Vocabulary
from pipeline.errors import CorpusError
from pipeline.vocabulary import assignment, device, nearest, residual
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.features import clip_features

GENERATOR = np.random.default_rng(0)


def make_vocabulary(
    size: int = 50, n_mels: int = 16, *, bands: int = 1, normalisation: str = "standardise", stack: int = 1
) -> Vocabulary:
    scale = np.ones(n_mels, np.float32) if normalisation == "l2" else GENERATOR.uniform(1, 3, n_mels).astype(np.float32)
    mean = GENERATOR.normal(-6, 1, n_mels).astype(np.float32)
    space = make_space(n_mels, normalisation=normalisation, stack=stack, groups=bands, mean=mean, scale=scale)
    width = space.num_features // bands
    metadata: dict[str, Any] = {
        "kind": "bands",
        "num_tokens": size,
        "num_codebooks": bands,
        "bands": [[start, start + width] for start in range(0, space.num_features, width)],
    }
    codebooks = GENERATOR.normal(size=(bands, size, width)).astype(np.float32)
    return Vocabulary(Path("v.zarr"), space, codebooks, np.empty(0), np.ones((bands, size), np.int64), metadata)


@pytest.mark.parametrize("bands", [1, 4])
def test_codes_tokenize_to_themselves(bands: int) -> None:
    vocabulary = make_vocabulary(bands=bands)
    frames = np.concatenate(list(vocabulary.codebooks), axis=1) * vocabulary.space.scale + vocabulary.space.mean
    (tokens,) = assign(vocabulary, [frames])
    assert tokens.dtype == np.uint16
    assert np.array_equal(tokens, np.tile(np.arange(50), (bands, 1)))


def test_tokens_are_nearest_and_never_special() -> None:
    vocabulary = make_vocabulary()
    frames = GENERATOR.normal(-6, 4, (3000, 16)).astype(np.float32)
    z = (frames.astype(np.float64) - vocabulary.space.mean) / vocabulary.space.scale
    distances = ((z[:, None] - vocabulary.codebooks[0]) ** 2).sum(axis=2)
    tokens = assign(vocabulary, [frames])[0][0]
    assert np.allclose(distances[np.arange(3000), tokens], distances.min(axis=1), atol=1e-4)
    assert tokens.max() < vocabulary.num_tokens


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, frames = make_vocabulary(), GENERATOR.normal(-6, 4, (1000, 16)).astype(np.float32)
    clips = np.split(frames, 4)
    whole = assign(vocabulary, clips)
    monkeypatch.setattr(nearest, "_SCORES_PER_BLOCK", 1)
    monkeypatch.setattr(assignment, "_FRAMES_PER_BLOCK", 300)
    assert np.array_equal(assign(vocabulary, clips), whole)


def test_a_clips_tokens_follow_from_its_frames_to_the_bit() -> None:
    """Rounding chooses between two codes for every frame, whose halves are equal: one code is the other, halves swapped."""
    vocabulary = make_vocabulary(64, 32, normalisation="none")
    halves = GENERATOR.normal(size=(2, 32, 16)).astype(np.float32)
    codes = np.concatenate([np.concatenate(halves, axis=1), np.concatenate(halves[::-1], axis=1)])
    space = replace(vocabulary.space, mean=np.zeros(32, np.float32), scale=np.ones(32, np.float32))
    vocabulary = replace(vocabulary, space=space, codebooks=codes[None])
    clips = [np.tile(GENERATOR.normal(size=(length, 16)), 2).astype(np.float32) for length in (5, 700, 33, 1500)]
    whole = assign(vocabulary, clips)
    for clip, tokens in zip(clips, whole, strict=True):
        assert np.array_equal(assign(vocabulary, [clip])[0], tokens)
    for tokens, again in zip(whole, assign(vocabulary, clips[::-1])[::-1], strict=True):
        assert np.array_equal(tokens, again)


def test_l2_ignores_level_and_standardising_does_not() -> None:
    frames = GENERATOR.normal(-6, 4, (500, 16)).astype(np.float32)
    louder = frames + np.float32(3)  # a gain adds one number to every band of a log-mel frame
    level_free, level_bound = make_vocabulary(normalisation="l2"), make_vocabulary()
    assert np.array_equal(*assign(level_free, [frames, louder]))
    assert not np.array_equal(*assign(level_bound, [frames, louder]))


def test_l2_has_unit_length_and_flat_frames_stay_finite() -> None:
    vocabulary = make_vocabulary(normalisation="l2")
    frames = GENERATOR.normal(-6, 4, (10, 16)).astype(np.float32)
    frames[0] = vocabulary.space.mean
    z = clip_features(vocabulary.space, [frames])
    assert np.allclose(np.linalg.norm(z[1:], axis=1), 1, atol=1e-6)
    assert not z[0].any()


def test_normalising_leaves_its_input_alone() -> None:
    frames = np.zeros((2, 16), np.float32)
    clip_features(make_vocabulary().space, [frames])
    assert not frames.any()


def test_overlapping_codebooks_encode_what_is_left() -> None:
    coarse, fine = np.array([[0.0, 0], [10, 10]]), np.array([[-1.0, 0], [1, 0]])
    z = np.array([[9, 10], [1, 0], [11, 10], [-1, 0]], np.float32)
    tokens = residual.encode(Codebooks(np.stack([coarse, fine]).astype(np.float32), [[0, 2], [0, 2]]), z)
    assert tokens.tolist() == [[1, 0, 1, 0], [0, 1, 1, 0]]
    assert z[0].tolist() == [9, 10]  # not written to


@pytest.mark.parametrize("block", [1 << 27, 50 * 7])
def test_torch_finds_the_same_codes(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """The path that a GPU takes, on the processor; frames between two codes may go either way."""
    vocabulary, frames = make_vocabulary(bands=2), GENERATOR.normal(-6, 4, (1000, 16)).astype(np.float32)
    by_numpy = assign(vocabulary, [frames])
    asked: list[int] = []
    for module in (assignment, nearest):
        monkeypatch.setattr(module, "choose_device", lambda num_scores: asked.append(num_scores) or "cpu")
    monkeypatch.setattr(device, "_SCORES_PER_BLOCK", block)
    assert np.array_equal(assign(vocabulary, [frames]), by_numpy)
    assert asked == [50 * 1000] * 3  # of the batch, and of each codebook


def test_numpy_is_chosen_where_there_is_no_gpu_or_little_to_do() -> None:
    assert device.choose_device(1) is None
    if not Path("/dev/nvidiactl").exists():
        assert device.choose_device(1 << 40) is None


def test_a_clip_without_frames_has_no_tokens() -> None:
    tokens = assign(make_vocabulary(bands=4, stack=2), [np.empty((0, 16), np.float32), np.ones((3, 16), np.float32)])
    assert [clip.shape for clip in tokens] == [(4, 0), (4, 2)]
    assert assign(make_vocabulary(), []) == []


def test_frames_that_are_not_finite_are_refused() -> None:
    frames = np.zeros((5, 16), np.float32)
    frames[3, 2] = np.nan
    with pytest.raises(CorpusError, match=r"v\.zarr: expected finite numbers, found 1 frames of 9 .* rerun the stage"):
        assign(make_vocabulary(), [np.zeros((4, 16), np.float32), frames])

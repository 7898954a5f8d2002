"""Statistics of vocabularies against values worked out by hand."""

import numpy as np
import pytest

from pipeline.vocabulary import statistics


def test_even_use_says_the_most() -> None:
    counts = np.full(8, 5)
    assert statistics.entropy(counts) == pytest.approx(3)
    assert statistics.perplexity(counts) == pytest.approx(8)
    assert statistics.usage(counts) == 1
    assert statistics.dead_codes(counts) == 0


def test_uneven_use_by_hand() -> None:
    counts = np.array([2, 1, 1, 0])  # 1/2 * 1 + 1/4 * 2 + 1/4 * 2 = 1.5 bits
    assert statistics.entropy(counts) == pytest.approx(1.5)
    assert statistics.perplexity(counts) == pytest.approx(2**1.5)
    assert statistics.usage(counts) == 0.75
    assert statistics.dead_codes(counts) == 1


def test_one_token_says_nothing() -> None:
    assert statistics.entropy(np.array([7, 0])) == 0
    assert statistics.perplexity(np.array([0, 0])) == 1


@pytest.mark.parametrize("exponent", [-1.0, -0.5])
def test_zipf_slope_is_the_exponent_of_a_power_law(exponent: float) -> None:
    counts = 1e9 * np.arange(1, 101.0) ** exponent
    assert statistics.zipf_slope(np.random.default_rng(0).permutation(counts)) == pytest.approx(exponent)


def test_zipf_slope_looks_at_the_middle_ranks_alone() -> None:
    counts = 1e9 / np.arange(1, 101.0)
    counts[:9] *= 1000  # ranks 1 to 9 of 100, and 91 to 100, are outside 10-90 %
    counts[90:] /= 1000
    assert statistics.zipf_slope(np.concatenate([counts, np.zeros(50)])) == pytest.approx(-1)
    assert statistics.zipf_slope(np.array([4, 0, 0])) is None


def test_bits_per_second_add_up_over_codebooks() -> None:
    assert statistics.bits_per_second(np.array([[1, 1, 1, 1], [2, 2, 0, 0]]), frame_rate=100) == pytest.approx(300)


def test_distortion_by_hand() -> None:
    z = np.array([[0.0], [2], [10], [12]], np.float32)  # mean 6, total 36 + 16 + 16 + 36 = 104
    assert statistics.distortion(z, np.array([[1.0], [1], [11], [11]])) == pytest.approx(4 / 104)
    assert statistics.distortion(z / 100, np.array([[1.0], [1], [11], [11]]) / 100) == pytest.approx(4 / 104)
    assert statistics.distortion(z, np.full((4, 1), 6.0)) == pytest.approx(1)


def test_information_by_hand() -> None:
    correction = 1 / (2 * 4 * np.log(2))  # one cell more than one occurs in every table, of four tokens
    assert statistics.mutual_information(np.array([[2, 0], [0, 2]])) == pytest.approx(1 + correction)
    assert statistics.mutual_information(np.array([[1, 1], [1, 1]])) == pytest.approx(max(0, (1 + 1 - 3) * correction))
    assert statistics.mutual_information(np.zeros((2, 2))) == 0
    # Three tokens as often, two classes as often, 4, 2, 2 and 4 of twelve together; 2 + 1 - 3 cells more than one.
    together = -(2 * 4 / 12 * np.log2(4 / 12) + 2 * 2 / 12 * np.log2(2 / 12))
    found = statistics.mutual_information(np.array([[4, 0], [2, 2], [0, 4]]))
    assert found == pytest.approx(np.log2(3) + 1 - together)


def test_tokens_by_chance_say_nothing() -> None:
    # 50 tokens of 10 classes, 2,000 drawn: without the correction (49 x 9) / (4000 ln 2) = 0.16 bits.
    joint = np.random.default_rng(0).multinomial(2000, np.full(500, 1 / 500)).reshape(50, 10)
    assert statistics.mutual_information(joint) < 0.05


def test_agreement_is_that_of_partitions() -> None:
    tokens = np.random.default_rng(0).integers(0, 20, (2, 2000))
    assert statistics.agreement(tokens, (tokens * 7) % 20) == pytest.approx(1)  # other names
    assert abs(statistics.agreement(tokens, tokens[:, ::-1])) < 0.05


def test_summary_over_codebooks() -> None:
    summary = statistics.summarise(np.array([[1, 1, 1, 1], [2, 2, 0, 0]]), frame_rate=100)
    assert summary["usage"] == 0.75
    assert summary["dead_codes"] == 2
    assert summary["perplexity"] == pytest.approx(2**1.5, abs=1e-3)
    assert summary["bits_per_second"] == 300
    uneven = statistics.summarise(np.array([[3, 1, 0]]), frame_rate=100)  # 0.8112781 bits
    assert uneven["usage"] == 0.666667
    assert uneven["perplexity"] == 1.755
    assert uneven["bits_per_second"] == 81.1


def test_zipf_slope_counts_the_ranks_at_both_ends_of_the_middle() -> None:
    counts = np.array([90.0, 70, 66, 40, 33, 20, 19, 11, 4, 1])  # of ten ranks those from 1 to 9
    expected = np.polyfit(np.log(np.arange(1, 10)), np.log(counts[:9]), 1)[0]
    assert statistics.zipf_slope(counts) == pytest.approx(expected)


def test_zipf_slope_needs_two_ranks() -> None:
    assert statistics.zipf_slope(np.array([4, 2])) is None  # of two ranks, the first alone is in the middle
    assert statistics.zipf_slope(np.array([4, 2, 1])) == pytest.approx(-1)
    summary = statistics.summarise(np.array([[4, 2, 1], [8, 8, 1], [5, 5, 0]]), frame_rate=100)
    assert summary["zipf_slope"] == pytest.approx((-1 + 0) / 2)  # the third has none
    assert statistics.summarise(np.array([[4, 2, 0]]), frame_rate=100)["zipf_slope"] is None


def test_distortion_goes_through_all_frames_once() -> None:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(70_000, 1)).astype(np.float32)  # more than a block
    z[65_000:] += 3
    decoded = np.where(np.arange(70_000)[:, None] < 65_000, z, 0)
    expected = ((z - decoded).astype(float) ** 2).sum() / ((z - z.mean(dtype=float)).astype(float) ** 2).sum()
    assert statistics.distortion(z, decoded) == pytest.approx(expected, rel=1e-5)
    assert statistics.distortion(np.ones((5, 2)), np.zeros((5, 2))) == 0  # frames that are all alike

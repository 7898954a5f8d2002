"""Statistics of a vocabulary in use: token shares, their entropy, their information, and the variance they lose.

Conventions: counts (code,) or (codebook, code) are occurrences of tokens, never negative.
"""

import numpy as np


def usage(counts: np.ndarray) -> float:
    """Return the share of tokens that occur at all."""
    return float((counts > 0).mean())


def dead_codes(counts: np.ndarray) -> int:
    """Return how many tokens never occur."""
    return int((counts == 0).sum())


def entropy(counts: np.ndarray) -> float:
    """Return the entropy of one codebook's tokens (code,) in bits a token; 0 when there are none."""
    seen = counts[counts > 0].astype(np.float64)
    if not seen.size:
        return 0.0
    share = seen / seen.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))


def perplexity(counts: np.ndarray) -> float:
    """Return 2 ** entropy of one codebook (code,): the number of equally frequent tokens that would say as much."""
    return float(2.0 ** entropy(counts))


def zipf_slope(counts: np.ndarray) -> float | None:
    """Return the slope of log count over log rank for one codebook (code,); natural language lies near -1.

    The n tokens that occur, most frequent first, have ranks r = 1 .. n. The slope is the least-squares line of ln(count)
    on ln(r) over 0.1 n <= r <= 0.9 n, so that neither silence at the head nor rare tokens at the tail decide. None with
    fewer than two such ranks.
    """
    seen = np.sort(counts[counts > 0])[::-1].astype(np.float64)
    ranks = np.arange(1, len(seen) + 1)
    middle = (ranks >= 0.1 * len(seen)) & (ranks <= 0.9 * len(seen))
    if middle.sum() < 2:
        return None
    x, y = np.log(ranks[middle]), np.log(seen[middle])
    x -= x.mean()
    return float((x @ (y - y.mean())) / (x @ x))


def bits_per_second(counts: np.ndarray, *, frame_rate: float) -> float:
    """Return the rate of the token sequences (codebook, code): tokens a second (Hz) times the entropies of the codebooks.

    Tokens count as independent of each other, so this bounds the rate of an ideal coder of single tokens from below, and
    that of the sound from above.
    """
    return frame_rate * sum(entropy(codebook) for codebook in counts)


def distortion(z: np.ndarray, decoded: np.ndarray) -> float:
    """Return |z - decoded|^2 over |z - mean of z|^2, summed over frames: 0 is lossless, 1 says nothing but the mean.

    `z` are normalised frames (frame, mel), `decoded` what their tokens stand for. So kinds and features of vocabularies can
    be compared, as long as their normalisation is the same.
    """
    error = total = 0.0
    mean = z.mean(axis=0, dtype=np.float64)
    for first in range(0, len(z), 1 << 16):  # bounds the float64 copies
        block = z[first : first + (1 << 16)].astype(np.float64)
        total += float(((block - mean) ** 2).sum())
        error += float(((block - decoded[first : first + (1 << 16)]) ** 2).sum())
    return error / total if total > 0 else 0.0


def mutual_information(joint: np.ndarray) -> float:
    """Return what a token says about its clip's class, in bits, from counts (token, class) of tokens in clips of each class.

    I = H(token) + H(class) - H(token, class), each entropy with the correction of Miller (1955) and Madow: plus (cells that
    occur - 1) / (2 n) nats. Without it, rare tokens alone would look telling. n counts tokens as if they were drawn
    independently; those of one clip are not, so of large vocabularies on few clips too much is still left. At least 0.
    """
    total = float(joint.sum())
    if total <= 0:
        return 0.0
    tables = (joint.sum(axis=1), joint.sum(axis=0), joint.ravel())
    tokens, classes, both = (
        entropy(table) + (np.count_nonzero(table) - 1) / (2 * total * np.log(2)) for table in tables
    )
    return float(max(0.0, tokens + classes - both))


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return how far two vocabularies give the same frames alike tokens: 1 if up to their names, about 0 by chance.

    Mutual information over the mean of the entropies, adjusted for chance (Vinh, Epps and Bailey, 2010), by scikit-learn;
    mean over codebooks. `one` and `other` are tokens (codebook, frame) of the same frames.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(np.mean([adjusted_mutual_info_score(*tokens) for tokens in zip(one, other, strict=True)]))


def summarise(counts: np.ndarray, *, frame_rate: float) -> dict[str, float | int | None]:
    """Return the statistics of a vocabulary's counts (codebook, code), rounded for people.

    Usage and dead codes are over all codebooks together; perplexity is the geometric and Zipf's slope the plain mean of
    the codebooks' own (codebooks too small for a slope are left out of it).
    """
    slopes = [slope for codebook in counts if (slope := zipf_slope(codebook)) is not None]
    return {
        "usage": round(usage(counts), 6),
        "dead_codes": dead_codes(counts),
        "perplexity": round(float(2.0 ** np.mean([entropy(codebook) for codebook in counts])), 3),
        "zipf_slope": round(float(np.mean(slopes)), 4) if slopes else None,
        "bits_per_second": round(bits_per_second(counts, frame_rate=frame_rate), 1),
    }

"""From words back to frames: what of the sound a sentence keeps.

Conventions: tokens (codebook, frame) uint16; frames (frame, mel) float32 in the front end's units.
"""

import numpy as np

from pipeline.artifacts.vocabulary import Vocabulary


def rebuild(vocabulary: Vocabulary, tokens: np.ndarray) -> np.ndarray:
    """Return the frames (frame, mel) that tokens (codebook, frame) stand for: the sum of their codes, each in its band.

    With normalisation "l2" frames have the shape of the spectrum alone: how loud they were, no word says.
    """
    z = np.zeros((tokens.shape[1], len(vocabulary.mean)), dtype=np.float32)
    for words, codebook, (start, stop) in zip(tokens, vocabulary.codebooks, vocabulary.facts["bands"], strict=True):
        z[:, start:stop] += codebook[words, : stop - start]
    frames: np.ndarray = z * vocabulary.scale + vocabulary.mean
    return frames

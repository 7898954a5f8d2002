"""A fold's vocabulary of sound: codebooks, the normalisation fitted with them, and the ids behind the words.

Conventions: a frame x (mel) in the front end's units becomes z = (x - mean) / scale; when `normalisation` is "l2", z less
its own mean over the mel bands, at unit length. Codebook b covers the features `bands[b]` = [from, to) of z and holds
`size` codes. Words are 0 .. size - 1 in every codebook. Special tokens follow: padding = size, mask = size + 1,
class = size + 2; so padding is never a real word, whatever a clip holds.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.arrays import ArraySchema, GroupSchema
from pipeline.artifacts.spectrogram import Spectrogram

NUM_SPECIAL_TOKENS = 3  # padding, mask, class: in this order behind the words

VOCABULARY = GroupSchema(
    name="vocabulary",
    version=1,
    stage="vocabulary",
    arrays={
        "codebooks": ArraySchema(("codebook", "code", "feature"), ("float32",), "normalised log-mel"),
        "mean": ArraySchema(("mel",), ("float32",), "as the front end's"),
        "scale": ArraySchema(("mel",), ("float32",), "as the front end's"),
        "counts": ArraySchema(("codebook", "code"), ("int64",), "frames of the sample"),
    },
    facts={
        "kind": str,
        "size": int,
        "num_codebooks": int,
        "normalisation": str,  # standardise, l2 or none
        "bands": list,  # [from, to) of each codebook
        "padding_token": int,
        "mask_token": int,
        "class_token": int,
        "fold": str,
        "role": str,  # always train: a vocabulary never sees other clips
        "front_end": dict,  # facts of the frames it was fitted on
        "seed": int,
        "sample": dict,  # how many clips and frames were drawn, and a digest of which
        "fit": dict,  # objective by iteration, usage, perplexity, dead codes
    },
)


@dataclass(frozen=True)
class Vocabulary:
    """An opened vocabulary."""

    path: Path
    codebooks: np.ndarray  # (codebook, code, feature) float32
    mean: np.ndarray  # (mel,) float32
    scale: np.ndarray  # (mel,) float32
    counts: np.ndarray  # (codebook, code) int64, over the sample
    facts: dict[str, Any]

    @property
    def size(self) -> int:
        return int(self.facts["size"])

    @property
    def num_codebooks(self) -> int:
        return int(self.facts["num_codebooks"])

    @property
    def padding_token(self) -> int:
        return int(self.facts["padding_token"])

    @property
    def mask_token(self) -> int:
        return int(self.facts["mask_token"])

    def word_vectors(self) -> list[np.ndarray]:
        """Return each codebook's words as vectors (word, feature) float32: what an embedding may start from."""
        return [
            codebook[:, : stop - start]
            for codebook, (start, stop) in zip(self.codebooks, self.facts["bands"], strict=True)
        ]

    def digest(self) -> str:
        """Identify the vocabulary by what it holds: anything made with it carries this."""
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode())
        for values in (self.codebooks, self.mean, self.scale):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:32]

    def require_front_end(self, spectrogram: Spectrogram) -> None:
        """Raise ArtifactError unless the spectrogram's front end is the one the vocabulary was fitted on."""
        for key, value in self.facts["front_end"].items():
            if spectrogram.facts.get(key) != value:
                field = f"front_end.{key} (against {spectrogram.path})"
                raise VOCABULARY.error(self.path, field, expected=spectrogram.facts.get(key), found=value)


def special_tokens(size: int) -> dict[str, int]:
    """Return the ids behind `size` words."""
    return {"padding_token": size, "mask_token": size + 1, "class_token": size + 2}


def open_vocabulary(path: Path) -> Vocabulary:
    """Open a vocabulary and check sizes and ids against each other, and that it was fitted on training clips."""
    arrays, facts = VOCABULARY.open(path)
    size, n_mels = facts["size"], facts["front_end"].get("n_mels")
    for name, expected in special_tokens(size).items():
        if facts[name] != expected:
            raise VOCABULARY.error(path, name, expected=f"{expected} for size {size}", found=facts[name])
    if facts["role"] != "train":
        raise VOCABULARY.error(path, "role", expected="train", found=facts["role"])
    shapes = {name: list(values.shape) for name, values in arrays.items()}
    width = max((stop - start for start, stop in facts["bands"]), default=0)
    expected_shapes = {
        "codebooks": [facts["num_codebooks"], size, width],
        "mean": [n_mels],
        "scale": [n_mels],
        "counts": [facts["num_codebooks"], size],
    }
    for name, shape in expected_shapes.items():
        if shapes[name] != shape:
            raise VOCABULARY.error(path, f"shape of {name}", expected=shape, found=shapes[name])
        if not np.isfinite(arrays[name]).all():
            raise VOCABULARY.error(path, name, expected="finite numbers", found="NaN or infinity")
    if (arrays["scale"] <= 0).any():
        raise VOCABULARY.error(path, "scale", expected="above 0", found=float(arrays["scale"].min()))
    return Vocabulary(path, facts=facts, **arrays)

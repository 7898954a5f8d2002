"""Artifact of a fold's vocabulary: codebooks, the features that they quantise, and special tokens.

Conventions, from a clip's frames x (frame, mel) in the front end's units to tokens:
- z = (x - mean) / scale; when `normalisation` is "l2", z less its own mean over the mel bands, at unit length; when it is
  "unit", z at unit length.
- With `deltas` > 0 a frame also has its slopes over time, divided by `delta_scale`. A token covers `stack` consecutive
  frames, without overlap; a clip's last frame is repeated to fill its last stack. A token's features are ordered by group
  (`groups` equal groups of mel bands), within a group by frame, within a frame z before slopes.
- With `context` > 0 a token's features are those of its frames and of as many on either side of them.
- With PCA the features become (features - centre) @ components.T: uncorrelated, at variance 1 over the sample. So they do
  with LDA, each group by itself: uncorrelated, at variance 1 within classes. LDA alone has `context` and `inverse`.
- Codebook b covers the features `bands[b]` = [from, to) and holds `num_tokens` codes, vectors of these features. Where
  `additive`, tokens stand for the sum of their codes. The vocabulary's kind encodes, see `pipeline/vocabulary/base.py`, with
  the arrays of its own that it may need (`own_<name>`).

With `merges` (byte-pair encoding, see `pipeline/artifacts/merges.py`) the codes are base tokens, and a clip is one sequence
of tokens merged from them. Attributes of `Vocabulary` refer to merged tokens, its metadata to the codebooks.

With `hidden_states` in the metadata x are not frames but hidden states of a network, one for every `frames_per_state`
frames: (state, width), as `pipeline/evaluation/hidden_states.py` makes them of a clip's frames. "Frame" above is then a
state, "mel" a unit of the layer, and groups are of units. The network lies in the store itself, in the folder `network/`:
as a model's folder (`pipeline/artifacts/model.py`), with `network/vocabulary.zarr` if it reads tokens.

External tokens are read from a table (metadata `external`): they have the rate that it says, and `codebooks` holds vectors
of no frames, or of no features. They stand for no frames, as tokens of hidden states do not: `own_spectra` holds the mean
frame of each token, for pages.

Tokens are 0 .. n - 1 in every codebook, n = `num_tokens`. Special tokens follow: padding = n, mask = n + 1, class = n + 2;
so padding is never a real token.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from pipeline.artifacts.arrays import ArraySchema, GroupSchema
from pipeline.artifacts.merges import merged_vectors, token_parts
from pipeline.artifacts.model import read_card
from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.spectrogram import Spectrogram, SpectrogramMetadata
from pipeline.artifacts.tables import metadata_digest
from pipeline.errors import ArtifactError

NUM_SPECIAL_TOKENS = 3  # padding, mask, class: in this order after the tokens

SPECTRA = "spectra"  # own array of tokens that stand for no frames: the mean frame of each, (codebook, code, mel)
NETWORK = "network"  # folder in the store, with the network whose hidden states are quantised
TOKENIZER = "vocabulary.zarr"  # folder in that of a network, with the vocabulary of the tokens that it reads

_OWN = "own_"  # before the names of arrays of the kind's own, in the store


class FeatureMetadata(TypedDict):
    """Settings of the features; see the module's conventions."""

    deltas: int
    stack: int
    groups: int
    context: NotRequired[int]  # with LDA alone


class MergeMetadata(TypedDict, total=False):
    """Result of byte-pair encoding; empty without it."""

    num_tokens: int  # after merging
    clips: int  # that merges were learned on
    base_tokens: int  # of these clips
    tokens: int  # of these clips, after merging
    compression: float  # base tokens per token
    lengths: list[list[int]]  # [[n, tokens], ...]: how many tokens stand for n base tokens
    digest: str  # of the clips' ids


class ExternalMetadata(TypedDict):
    """Settings of external tokens, as in params.yaml."""

    kind: str
    num_tokens: int
    table: str
    codebooks: int
    frame_rate: float
    vectors: str | None


class HiddenStateMetadata(TypedDict):
    """Network and layer whose hidden states are quantised."""

    model: str  # its name in tables
    layer: str
    width: int  # of a state
    frames_per_state: int
    network: str  # digest of the metadata of the network's folder, which hold that of its weights
    kinds: list[str]  # of registries, that the network is made of


class VocabularyMetadata(Metadata):
    """Metadata of a vocabulary, but for `own`."""

    kind: str
    additive: bool  # whether tokens stand for the sum of their codes
    num_tokens: int
    num_codebooks: int
    normalisation: str  # standardise, l2, unit or none
    features: FeatureMetadata
    bands: list[list[int]]  # [from, to) of each codebook
    bpe: MergeMetadata
    padding_token: int
    mask_token: int
    class_token: int
    fold: str
    role: str  # always train: a vocabulary never sees other clips
    front_end: SpectrogramMetadata  # of the frames it was fitted on
    seed: int
    sample: dict[str, Any]  # number of clips and frames drawn, and a digest of them
    fit: dict[str, Any]  # objective by iteration, usage, perplexity, dead codes
    external: NotRequired[ExternalMetadata]  # absent = tokens are computed from frames
    hidden_states: NotRequired[HiddenStateMetadata]  # absent = what is quantised are frames


class StoredMetadata(VocabularyMetadata):
    """Metadata of the store."""

    own: dict[str, list[str]]  # name -> axes of each array that the kind alone reads


_INVERSE = {"inverse": ArraySchema(("component", "feature"), ("float32",), "normalised log-mel")}

VOCABULARY = GroupSchema(
    name="vocabulary",
    version=5,
    stage="vocabulary",
    arrays={
        "codebooks": ArraySchema(("codebook", "code", "feature"), ("float32",), "normalised log-mel"),
        "mean": ArraySchema(("mel",), ("float32",), "as the front end's"),
        "scale": ArraySchema(("mel",), ("float32",), "as the front end's"),
        "delta_scale": ArraySchema(("mel",), ("float32",), "normalised log-mel a frame"),
        "centre": ArraySchema(("feature",), ("float32",), "normalised log-mel"),  # empty without a projection
        "components": ArraySchema(
            ("component", "feature"), ("float32",), "1 over normalised log-mel"
        ),  # empty without a projection
        "levels": ArraySchema(("codebook", "code", "level"), ("float32",), "as the front end's"),
        "counts": ArraySchema(("codebook", "code"), ("int64",), "tokens of the sample"),
        "merges": ArraySchema(("merge", "part"), ("int32",), "token"),  # empty without BPE
    },
    metadata=StoredMetadata,
)


class NamedArray(NamedTuple):
    """An array with the names of its axes."""

    dims: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Codebooks:
    """Fitted parameters of a vocabulary: all that encoding and decoding follow from."""

    codes: np.ndarray  # (codebook, code, feature) float32; narrower codebooks are padded
    bands: list[list[int]]  # [from, to) of the features that each codebook covers; together they cover all
    objective: list[float] = field(default_factory=list)  # by iteration of the fit: mean squared distance to the codes
    own: Mapping[str, NamedArray] = field(default_factory=dict)  # float32, read by the kind alone

    @property
    def num_features(self) -> int:
        return max(stop for _, stop in self.bands)

    @property
    def vectors(self) -> list[np.ndarray]:
        """The codes of each codebook in the features that it covers, (code, feature)."""
        return [codes[:, : stop - start] for codes, (start, stop) in zip(self.codes, self.bands, strict=True)]


def no_inverse() -> np.ndarray:
    """Return the inverse of spaces whose projection, if any, is its own."""
    return np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class FeatureSpace:
    """Transform from frames to the features that are quantised; see the module's conventions."""

    normalisation: str
    deltas: int  # frames on either side in a slope; 0 = no slopes
    stack: int  # frames per token
    groups: int
    mean: np.ndarray  # (mel,) float32
    scale: np.ndarray  # (mel,) float32
    delta_scale: np.ndarray  # (mel,) float32
    centre: np.ndarray  # (stacked feature,) float32; empty without a projection
    components: np.ndarray  # (component, stacked feature) float32; empty without a projection
    context: int = 0  # frames on either side of a token's own; with LDA alone
    inverse: np.ndarray = field(default_factory=no_inverse)  # (component, stacked feature) float32; empty without LDA

    @property
    def num_stacked(self) -> int:
        """Number of features per token before any projection."""
        return len(self.mean) * self.span * (2 if self.deltas else 1)

    @property
    def span(self) -> int:
        """Number of frames that a token's features are made of, slopes aside."""
        return self.stack + 2 * self.context

    @property
    def margin(self) -> int:
        """Number of frames on either side of a token's own that its features follow from."""
        return self.deltas + self.context

    @property
    def num_features(self) -> int:
        return len(self.components) or self.num_stacked

    def num_tokens(self, num_frames: int) -> int:
        """Return how many tokens, in each codebook, a clip of `num_frames` has."""
        return -(-num_frames // self.stack)


@dataclass(frozen=True)
class Vocabulary:
    """An opened vocabulary."""

    path: Path
    space: FeatureSpace
    codebooks: np.ndarray  # (codebook, code, feature) float32
    # (codebook, code, 2) float32: with "l2" and "unit", the mean level and length of the frames of a token before they were
    # normalised, which the code itself does not keep; else 0 and 1.
    levels: np.ndarray
    counts: np.ndarray  # (codebook, code) int64, over the sample
    metadata: StoredMetadata
    merges: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int32))  # (merge, 2) int32
    own: Mapping[str, NamedArray] = field(default_factory=dict)  # arrays that the kind alone reads

    @property
    def kind(self) -> str:
        """Entry of `pipeline.vocabulary.registry.KINDS` that encodes and decodes."""
        return str(self.metadata["kind"])

    @property
    def additive(self) -> bool:
        """Whether tokens stand for the sum of their codes."""
        return bool(self.metadata["additive"])

    @cached_property
    def fitted(self) -> Codebooks:
        """The codebooks as the kind fitted them: of base tokens, before any merging."""
        return Codebooks(self.codebooks, self.metadata["bands"], own=self.own)

    @property
    def external(self) -> bool:
        """Whether tokens are read from a table: they are not computed from frames, and stand for none."""
        return "external" in self.metadata

    @property
    def network(self) -> Path | None:
        """Folder of the network whose hidden states are quantised; None where they are frames."""
        return self.path / NETWORK if "hidden_states" in self.metadata else None

    @property
    def decodable(self) -> bool:
        """Whether tokens stand for frames, which can be rebuilt from them."""
        return not self.external and self.network is None

    @property
    def kinds(self) -> set[str]:
        """Entries of registries that compute tokens: the kind, and those of the network whose hidden states it reads."""
        return {self.kind, *self.metadata.get("hidden_states", {}).get("kinds", ())}

    @property
    def frames_per_token(self) -> int:
        """Number of frames that a base token is computed from, without their context; not of external ones."""
        return self.space.stack * frames_per_state(self.metadata)

    @property
    def merged(self) -> bool:
        """Whether tokens are merged (byte-pair encoding), in one sequence whatever the number of codebooks."""
        return len(self.merges) > 0

    @cached_property
    def parts(self) -> list[tuple[int, ...]]:
        """Base tokens of each token; those of codebook b start at b * (size of a codebook)."""
        num_codebooks, size = self.codebooks.shape[:2]
        return token_parts(self.merges, num_codebooks * size)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in each codebook; with merges, in all."""
        return len(self.parts) if self.merged else int(self.metadata["num_tokens"])

    @property
    def num_codebooks(self) -> int:
        return 1 if self.merged else int(self.metadata["num_codebooks"])

    @property
    def bands(self) -> list[list[int]]:
        """Range [from, to) of the features that each codebook covers."""
        bands: list[list[int]] = self.metadata["bands"]
        return [[0, max(stop for _, stop in bands)]] if self.merged else bands

    @property
    def padding_token(self) -> int:
        return int(self.metadata["padding_token"])

    @property
    def mask_token(self) -> int:
        return int(self.metadata["mask_token"])

    @property
    def frame_rate(self) -> float:
        """Tokens per second in each codebook, Hz; for merged tokens the mean over training clips."""
        if "external" in self.metadata:
            return float(self.metadata["external"]["frame_rate"])
        rate = float(self.metadata["front_end"]["frame_rate"]) / self.frames_per_token
        return rate * len(self.codebooks) / self.metadata["bpe"]["compression"] if self.merged else rate

    @property
    def distortion(self) -> float:
        """Share of the variance of what is quantised, over the sample, that the tokens lose; NaN for external ones."""
        return float(self.metadata["fit"].get("distortion", math.nan))

    def token_vectors(self) -> list[np.ndarray]:
        """Return each codebook's tokens as vectors (token, feature) float32, for initialising embeddings.

        The vector of a merged token is the mean over time of its base tokens.
        """
        vectors = self.fitted.vectors
        return [merged_vectors(self.parts, vectors, self.fitted.bands)] if self.merged else vectors

    def in_time(self, tokens: np.ndarray) -> np.ndarray:
        """Return tokens (codebook, token) on the time axis of base tokens: merged tokens repeated once per base token."""
        if not self.merged:
            return tokens
        return np.repeat(tokens, [len(self.parts[token]) for token in tokens[0]], axis=1)

    def digest(self) -> str:
        """Digest of the content; every artifact made with the vocabulary records it."""
        digest = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode())
        space = self.space
        fitted = (space.mean, space.scale, space.delta_scale, space.centre, space.components, space.inverse)
        own = (values for _, (_, values) in sorted(self.own.items()))
        for values in (self.codebooks, *fitted, self.merges, *own):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:32]

    def require_front_end(self, spectrogram: Spectrogram) -> None:
        """Raise ArtifactError unless the spectrogram's front end is the one the vocabulary was fitted on."""
        for key, value in self.metadata["front_end"].items():
            if spectrogram.metadata.get(key) != value:
                field = f"front_end.{key} (against {spectrogram.path})"
                raise VOCABULARY.error(self.path, field, expected=spectrogram.metadata.get(key), found=value)


class SpecialTokens(TypedDict):
    """Ids of the special tokens."""

    padding_token: int
    mask_token: int
    class_token: int


def special_tokens(size: int) -> SpecialTokens:
    """Return the ids of the special tokens of a vocabulary of `size` tokens."""
    return {"padding_token": size, "mask_token": size + 1, "class_token": size + 2}


def frames_per_state(metadata: VocabularyMetadata) -> int:
    """Return how many frames each vector that is quantised is made of: one, where these are frames."""
    return metadata["hidden_states"]["frames_per_state"] if "hidden_states" in metadata else 1


def write_vocabulary_store(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    own: Mapping[str, NamedArray],
    metadata: VocabularyMetadata,
    network: Path | None = None,
) -> None:
    """Write the arrays of every vocabulary, those of its kind's own, and the metadata but for `own`, which follows.

    `network` is the folder of the network whose hidden states are quantised, which is copied into the store.
    """
    axes = {name: list(dims) for name, (dims, _) in own.items()}
    values = {**arrays, **{_OWN + name: values for name, (_, values) in own.items()}}
    stored: StoredMetadata = {**metadata, "own": axes}
    _schema(stored).write(path, values, stored, {} if network is None else {NETWORK: network})


def _schema(metadata: StoredMetadata) -> GroupSchema[StoredMetadata]:
    """Return the schema of a store with this metadata: with own arrays of its kind, and with LDA its inverse."""
    axes, inverse = metadata["own"], _INVERSE if "context" in metadata["features"] else {}
    own = {_OWN + name: ArraySchema(tuple(dims), ("float32",), "as the kind's") for name, dims in axes.items()}
    return replace(VOCABULARY, arrays={**VOCABULARY.arrays, **inverse, **own})


def open_vocabulary(path: Path) -> Vocabulary:
    """Open a vocabulary and check sizes and ids against each other, and that it was fitted on training clips."""
    stored = VOCABULARY.read_metadata(path)
    arrays, metadata = _schema(stored).open(path)
    size = metadata["bpe"].get("num_tokens", metadata["num_tokens"])
    for name, expected in special_tokens(size).items():
        if (found := metadata.get(name)) != expected:
            raise VOCABULARY.error(path, name, expected=f"{expected} for num_tokens {size}", found=found)
    if metadata["role"] != "train":
        raise VOCABULARY.error(path, "role", expected="train", found=metadata["role"])
    features = metadata["features"]
    for name, least in (("deltas", 0), ("stack", 1), ("groups", 1), ("context", 0)):
        found = features.get(name, 0)
        if not isinstance(found, int) or found < least:
            raise VOCABULARY.error(path, f"features.{name}", expected=f"at least {least}", found=found)
    space = FeatureSpace(
        normalisation=metadata["normalisation"],
        deltas=features["deltas"],
        stack=features["stack"],
        groups=features["groups"],
        context=features.get("context", 0),
        inverse=arrays.get("inverse", no_inverse()),
        **{name: arrays[name] for name in ("mean", "scale", "delta_scale", "centre", "components")},
    )
    _check_arrays(path, arrays, metadata, space)
    _check_network(path, metadata)
    named = {name: arrays[name] for name in ("codebooks", "levels", "counts", "merges")}
    own = {name: NamedArray(tuple(dims), arrays[_OWN + name]) for name, dims in metadata["own"].items()}
    vocabulary = Vocabulary(path, space, metadata=metadata, own=own, **named)
    _check_merges(vocabulary)
    return vocabulary


def _check_network(path: Path, metadata: StoredMetadata) -> None:
    """Raise ArtifactError unless the network in the store is that of the metadata. Its weights are not read here."""
    if "hidden_states" in metadata:
        expected = metadata["hidden_states"]["network"]
        try:
            found = metadata_digest(read_card(path / NETWORK))
        except ArtifactError as error:  # its advice is for a model of the experiment
            found = f"{error.field}: {error.found}"
        if found != expected:
            raise VOCABULARY.error(path, NETWORK, expected=f"metadata of digest {expected} as written", found=found)


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: StoredMetadata, space: FeatureSpace) -> None:
    size, num_codebooks, n_mels = metadata["num_tokens"], metadata["num_codebooks"], metadata["front_end"].get("n_mels")
    if "hidden_states" in metadata:
        n_mels = metadata["hidden_states"]["width"]
    width = max((stop - start for start, stop in metadata["bands"]), default=0)
    num_stacked = space.num_stacked if len(space.components) else 0
    expected_shapes = {
        "codebooks": [num_codebooks, size, width],
        "mean": [n_mels],
        "scale": [n_mels],
        "delta_scale": [n_mels],
        "centre": [num_stacked],
        "components": [len(space.components), num_stacked],
        **({"inverse": [len(space.components), num_stacked]} if "inverse" in arrays else {}),
        "levels": [num_codebooks, size, 2],
        "counts": [num_codebooks, size],
        "merges": [len(arrays["merges"]), 2],
    }
    for name, shape in expected_shapes.items():
        if list(arrays[name].shape) != shape:
            raise VOCABULARY.error(path, f"shape of {name}", expected=shape, found=list(arrays[name].shape))
    for name in arrays:
        if not np.isfinite(arrays[name]).all():
            raise VOCABULARY.error(path, name, expected="finite numbers", found="NaN or infinity")
    for name in ("scale", "delta_scale"):
        if (arrays[name] <= 0).any():
            raise VOCABULARY.error(path, name, expected="above 0", found=float(arrays[name].min()))
    if "external" in metadata:
        return
    if not all(0 <= start < stop <= space.num_features for start, stop in metadata["bands"]):
        raise VOCABULARY.error(
            path, "bands", expected=f"within the {space.num_features} features", found=metadata["bands"]
        )


def _check_merges(vocabulary: Vocabulary) -> None:
    """Raise ArtifactError unless the merges join defined tokens and give the number of tokens in the metadata."""
    path, bpe = vocabulary.path, vocabulary.metadata["bpe"]
    if vocabulary.merged != bool(bpe):
        raise VOCABULARY.error(
            path, "merges", expected="with metadata of bpe, or neither", found=len(vocabulary.merges)
        )
    try:
        found = len(vocabulary.parts)
    except ValueError as error:
        raise VOCABULARY.error(path, "merges", expected="those of this vocabulary", found=error) from None
    if vocabulary.merged and found != bpe["num_tokens"]:
        raise VOCABULARY.error(
            path, "merges", expected=f"{bpe['num_tokens']} tokens, as metadata bpe.num_tokens", found=found
        )

"""Audio spectrogram transformer: the spectrogram as a picture (Gong, Chung and Glass, 2021, arXiv 2104.01778).

Log-mel frames, normalised, go through a stem (AST's patches with any strides, or early convolutions) into the encoder. With
a stem of patches, learned positions and the pooling `class_distillation` it is the published model, parameter by parameter,
and may start from published weights (`start`, docs/models.md).
"""

from typing import Any, Literal

from pydantic import PositiveFloat, model_validator

from pipeline.models.classifier import PictureClassifier
from pipeline.models.encoder import NORM_EPSILON, Encoder, EncoderParams
from pipeline.models.heads import HEAD_NORM_EPSILON, Head, Pooling
from pipeline.models.layouts.checkpoint import Checkpoint
from pipeline.models.layouts.imagenet import ImageNetParams
from pipeline.models.positions import LearnedParams
from pipeline.models.start import StartParams, put_in, read_start, warn_of_front_end
from pipeline.models.stems import PatchesParams, StemParams, build_stem

READS = "frames"
ATTENTION_MAPS = True  # over time and frequency, see `pipeline/evaluation/attention.py`


class Params(EncoderParams):
    kind: Literal["ast"]
    start: StartParams | None  # published weights to start from
    normalisation: Literal["corpus", "clip", "none", "start"]  # corpus: of the fold's training clips; start: as it was
    deviations: PositiveFloat  # how many standard deviations make one unit; AST takes 2
    stem: StemParams
    pooling: Pooling

    @property
    def positions(self) -> LearnedParams | None:
        """The learned position table, if there is one."""
        positions = self.stem.positions if isinstance(self.stem, PatchesParams) else None
        return positions if isinstance(positions, LearnedParams) else None

    @model_validator(mode="after")
    def _start_fits(self) -> "Params":
        if self.start and (self.positions is None or self.pooling != "class_distillation"):
            raise ValueError(
                "start: published weights need stem.kind patches, stem.positions.kind learned and pooling "
                f"class_distillation, found stem.kind {self.stem.kind} and pooling {self.pooling}; recipes/ast_base384.yaml "
                "has them, or set start to null"
            )
        if self.normalisation == "start" and (self.start is None or isinstance(self.start, ImageNetParams)):
            raise ValueError("normalisation: `start` needs a start that was trained on log-mel frames; take `corpus`")
        if self.normalisation == "start" and self.deviations != 2:
            raise ValueError(f"deviations {self.deviations} must be 2 with normalisation `start`, as in AST")
        if self.normalisation == "clip" and self.positions and self.positions.shorter == "pad":
            raise ValueError(
                "normalisation: with `clip` a zero of the front end has no one value to pad with; take `mask`"
            )
        return self


class SpectrogramTransformer(PictureClassifier):
    """`model(frames, mask) -> logits`: (batch, frame, mel) and (batch, frame) bool in, (batch, class) out."""

    def __init__(self, params: Params, *, n_mels: int, num_classes: int, silence: float, epsilons: list[float]) -> None:
        super().__init__()
        self.stem = build_stem(params.stem, num_features=n_mels, width=params.width, silence=silence)
        self.encoder = Encoder(params, epsilons[0])
        has_positions = params.positions is not None
        self.head = Head(
            params.pooling, params.width, num_classes, has_positions=has_positions, norm_epsilon=epsilons[1]
        )


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> SpectrogramTransformer:
    """Build the model for an input described by `input_facts`: `n_mels`, `normalisation`, and `start` if there was one."""
    normalisation = input_facts.get("normalisation", {"kind": "none"})
    silence = 0.0
    if normalisation["kind"] in ("corpus", "start"):
        silence = -normalisation["mean"] / (normalisation["deviations"] * max(normalisation["deviation"], 1e-6))
    return SpectrogramTransformer(
        params,
        n_mels=input_facts["n_mels"],
        num_classes=num_classes,
        silence=silence,
        epsilons=norm_epsilons(input_facts),
    )


def norm_epsilons(input_facts: dict[str, Any]) -> list[float]:
    """Return the epsilons of the encoder's layer norms and of the head's: those of the start, or ours."""
    epsilons: list[float] = input_facts.get("start", {}).get("norm_epsilons", [NORM_EPSILON, HEAD_NORM_EPSILON])
    return epsilons


def open_start(params: Params, front_end: dict[str, Any]) -> Checkpoint | None:
    """Open the weights that a fresh model starts from, if its params name any; see `start_from`."""
    if params.start is None:
        return None
    checkpoint = read_start(params.start)
    warn_of_front_end(checkpoint, front_end)
    return checkpoint


def start_from(model: SpectrogramTransformer, params: Params, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a fresh model. Raises SonolexError where they do not fit."""
    put_in(model, params, checkpoint)

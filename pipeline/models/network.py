"""Neural network composed of input, stem, encoder and head, each chosen by params (`pipeline/models/parts.py`).

Conventions: B batch, T frame, F feature, N position, D width, S time step, K class; masks (B, T) are bool, True = real, None
= all real.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from pipeline.artifacts.clips import Link
from pipeline.artifacts.model import InputMetadata, Normalisation, Reads
from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.models.base import Explanation, FrontEndValues, ModelParams, VocabularySection
from pipeline.models.checkpoint_formats.checkpoint import Checkpoint, CheckpointParams
from pipeline.models.neural_model import NeuralModel
from pipeline.models.parts import EncoderParams, HeadParams, InputParams, Statistics, StemParams
from pipeline.models.registry import CHECKPOINT_FORMATS, ENCODERS, HEADS, INPUTS, STEMS
from pipeline.models.windows import WindowParams, Windows


class NetworkParams(ModelParams):
    """Section of `models` that describes a network by its parts."""

    kind: Literal["network"]
    input: Annotated[InputParams, INPUTS.params]
    stem: Annotated[StemParams, STEMS.params]
    encoder: Annotated[EncoderParams, ENCODERS.params]
    head: Annotated[HeadParams, HEADS.params]
    window: WindowParams | None  # clips are cut into windows, which are classified one by one; null = whole clips
    pretrained: Annotated[CheckpointParams, CHECKPOINT_FORMATS.params] | None  # weights for initialisation

    @property
    def reads(self) -> Reads:
        return INPUTS[self.input.kind].reads

    @property
    def supports_pretraining(self) -> bool:
        return INPUTS[self.input.kind].supports_pretraining and ENCODERS[self.encoder.kind].supports_pretraining

    @property
    def begins_with_weights(self) -> bool:
        return self.pretrained is not None

    @property
    def explanation(self) -> Explanation | None:
        encoder = ENCODERS[self.encoder.kind]
        if self.reads != "frames" or self.window is not None or not (encoder.has_attention or encoder.has_feature_maps):
            return None
        return "attention" if encoder.has_attention else "grad_cam"

    @property
    def attributes_tokens(self) -> bool:
        return INPUTS[self.input.kind].supports_attribution

    @property
    def time_stride(self) -> int | None:
        return None if self.stem.time_stride is None else self.stem.time_stride * self.encoder.time_stride

    def rate_remark(self, learning_rate: float) -> str | None:
        return None if self.pretrained is None else self.pretrained.rate_remark(learning_rate)

    def require_front_end(self, front_end: FrontEndValues) -> None:
        if self.reads == "frames":
            self._require_samples(front_end)
        if front_end.is_log_mel:
            return
        if self.stem.reads_levels:
            raise ValueError(
                f"stem.kind {self.stem.kind}: texture statistics need log-mel frames in one channel: use front end kaldi or "
                "mel, or another stem"
            )
        if self.reads != "frames":
            return
        if self.pretrained is not None and self.pretrained.log_mel_only:
            raise ValueError(
                "pretrained: published weights are of log-mel frames in one channel; use front end kaldi or mel, or set "
                "pretrained to null"
            )
        if self.stem.pads:
            raise ValueError(
                f"stem.kind {self.stem.kind} pads shorter clips with silence, which has a single value in log-mel frames "
                "alone; use the stem convolution or linear, or patches with positions that do not pad"
            )
        if self.window is not None and self.window.fill == "silence":
            raise ValueError("window.fill: silence has a single value in log-mel frames alone; use shift or repeat")

    @property
    def windows(self) -> tuple[float, float] | None:
        return None if self.window is None else (self.window.length, self.window.hop)

    def require_vocabulary(self, vocabulary: VocabularySection) -> None:
        self.input.require_vocabulary(vocabulary)
        if self.window is not None and vocabulary.bpe is not None:
            raise ValueError(
                "window: expected null with a vocabulary of merged tokens (bpe), which have no fixed rate, found windows "
                f"of {self.window.length:g} s"
            )
        if self.input.needs_vectors and not vocabulary.has_vectors:
            raise ValueError(
                f"input.embedding: expected random with a vocabulary of kind {vocabulary.kind} whose `vectors` is null, "
                "found centroids; set models.*.input.embedding to random, or vocabularies.*.vectors to a file of vectors"
            )

    @model_validator(mode="after")
    def _parts_fit(self) -> "NetworkParams":
        self._stem_fits_the_encoder()
        self._stem_fits_the_input()
        self.encoder.require_network(self)
        self._head_fits()
        self._window_fits()
        if self.stem.pads and self.input.normalises_by_clip:
            raise ValueError(
                f"input.normalisation: expected one for all clips with stem.kind {self.stem.kind}, which pads shorter "
                "clips with silence, found clip: silence then has no single value"
            )
        return self

    @model_validator(mode="after")
    def _pretrained_fits(self) -> "NetworkParams":
        if self.pretrained is not None:
            self.pretrained.require_network(self)
        if self.input.normalises_as_pretrained and not (self.pretrained and self.pretrained.has_statistics):
            raise ValueError(
                "input.normalisation: `pretrained` needs pretrained weights of log-mel frames; use `corpus`"
            )
        scale = None if self.pretrained is None else self.pretrained.std_scale
        if self.input.normalises_as_pretrained and scale is not None:
            self.input.require_std_scale(scale)
        return self

    def _require_samples(self, front_end: FrontEndValues) -> None:
        """Raise ValueError where one of encoder and front end deals in samples and the other does not."""
        if ENCODERS[self.encoder.kind].reads_samples == front_end.has_samples:
            return
        kinds = ", ".join(kind for kind in ENCODERS if ENCODERS[kind].reads_samples)
        if front_end.has_samples:
            raise ValueError(
                f"they are samples, which encoder.kind {kinds} reads, found {self.encoder.kind}; use that encoder, or "
                "the front end kaldi"
            )
        raise ValueError(f"encoder.kind {self.encoder.kind} reads samples; set spectrogram.front_end.kind to waveform")

    def _window_fits(self) -> None:
        if self.window is None or self.window.fill != "silence":
            return
        if self.reads == "tokens" or self.input.normalises_by_clip:
            found = "tokens" if self.reads == "tokens" else "frames with input.normalisation clip"
            raise ValueError(
                f"window.fill: expected shift or repeat for a model that reads {found}, in which silence has no single "
                "value, found silence"
            )

    def _stem_fits_the_encoder(self) -> None:
        projects, width = STEMS[self.stem.kind].projects, self.encoder.input_width
        if projects is None and ENCODERS[self.encoder.kind].has_feature_maps:
            kinds = [kind for kind in ENCODERS if not ENCODERS[kind].has_feature_maps]
            raise ValueError(
                f"encoder.kind: expected one of {', '.join(kinds)} with stem.kind {self.stem.kind}, whose features have no "
                f"order along frequency, found {self.encoder.kind}"
            )
        if projects is not None and projects != (width is not None):
            fitting = (False,) if ENCODERS[self.encoder.kind].has_feature_maps else (None, width is not None)
            stems = [kind for kind in STEMS if STEMS[kind].projects in fitting]
            raise ValueError(
                f"stem.kind: expected one of {', '.join(stems)} with encoder.kind {self.encoder.kind}, which reads "
                f"positions {'as they are' if width is None else f'of width {width}'}, found {self.stem.kind}"
            )

    def _stem_fits_the_input(self) -> None:
        if self.stem.reads_levels and not self.input.keeps_levels:
            raise ValueError(
                f"input: expected kind frames with normalisation none, or kind decoded_tokens, with stem.kind "
                f"{self.stem.kind}, whose statistics are of levels, found kind {self.input.kind}; set it so, "
                "or take another stem"
            )

    def _head_fits(self) -> None:
        head, encoder = HEADS[self.head.kind], ENCODERS[self.encoder.kind]
        found = f"found {self.head.kind} with encoder.kind {self.encoder.kind} and stem.kind {self.stem.kind}"
        if head.needs_class_tokens and not encoder.supports_class_tokens:
            kinds = [kind for kind in ENCODERS if ENCODERS[kind].supports_class_tokens]
            raise ValueError(f"head.kind: class tokens need one of the encoders {', '.join(kinds)}, {found}")
        if self.head.needs_directions and not encoder.has_directions:
            kinds = [kind for kind in ENCODERS if ENCODERS[kind].has_directions]
            raise ValueError(f"head: last states need one of the encoders {', '.join(kinds)}, {found}")
        if head.needs_fixed_length and not (encoder.keeps_positions and self.stem.pads):
            raise ValueError(f"head.kind: expected a stem with a fixed number of positions, {found}")


class Network(NeuralModel):
    """`network(inputs, mask) -> logits`: (B, T, mel) float32 frames or (B, codebook, T) int64 tokens in, (B, K) out.

    Logits are `classify(embed(inputs), mask)`; augmentation acts between the two.
    """

    Params: ClassVar[type[NetworkParams]] = NetworkParams

    def __init__(
        self, params: NetworkParams, metadata: InputMetadata, num_classes: int, link: Link | None = None
    ) -> None:
        """Build a network with random weights for data with this metadata; one with windows needs the link."""
        super().__init__()
        self.input = INPUTS[params.input.kind](params.input, metadata)
        self.stem = STEMS[params.stem.kind](params.stem, self.input, params.encoder.input_width)
        pretrained = metadata.get("pretrained", {})
        self.encoder = ENCODERS[params.encoder.kind].build(params.encoder, self.stem, pretrained)
        self.head = HEADS[params.head.kind](params.head, self.stem, self.encoder, num_classes)
        self.windows: Windows | None = None
        if params.window is not None:
            assert link is not None
            self.windows = Windows(
                params.window, metadata["frame_rate"], self.input.silence, link, self.encoder.num_features, num_classes
            )
        self.embedding_rate = self.input.embedding_rate
        self.supports_patchout = self.encoder.supports_patchout and self.head.supports_patchout
        self.supports_masking = self.stem.supports_masking
        self.supports_token_noise = self.input.reads == "frames" or self.input.mask_token is not None
        self.supports_activation_checkpointing = self.encoder.supports_activation_checkpointing
        self.head.free_weights = pretrained.get("free_head_weights", False)
        if "norm_epsilons" in pretrained:
            for part, epsilon in zip((self.encoder, self.head), pretrained["norm_epsilons"], strict=True):
                _set_norm_epsilons(part, epsilon)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the feature map (B, T, F)."""
        features: Tensor = self.input(inputs)
        return features

    def classify(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Map a feature map to logits."""
        if self.windows is not None:
            return self.windows.pool(*self._classify_windows(self.windows, features, mask))
        logits: Tensor = self.head(*self._encode(features, mask))
        return logits

    def _encode(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map a feature map to the positions that the head reads, and their mask."""
        x, mask = self.stem(features, mask)
        if self.training and self.patchout:
            x, mask = drop_positions(x, mask, self.patchout)
        x, mask = self.head.prepend_class_tokens(x, mask)
        encoded: tuple[Tensor, Tensor | None] = self.encoder(x, mask, self.head.num_class_tokens or None)
        return encoded

    def _classify_windows(
        self, windows: Windows, features: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return logits (B, W, K) of windows, their attention (B, W, K) if there is any, and which are real (B, W)."""
        cut = windows.cut(features, mask)
        x, positions = self._encode(cut.features, cut.mask)
        weights = windows.weigh(x, positions, self.head.num_class_tokens)
        by_clip = cut.by_clip(self.head(x, positions))
        return by_clip, None if weights is None else cut.by_clip(weights), cut.real

    def forward(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        return self.classify(self.embed(inputs), mask)

    @property
    def supports_time_steps(self) -> bool:
        """Whether there is a `classify_time_steps`."""
        return self.windows is not None or self.head.supports_time_steps

    @property
    def max_frames(self) -> int | None:
        """Frames that it reads of a clip, from its start; None = all."""
        return self.stem.max_frames if self.windows is None else None

    def frames_read(self, num_frames: int) -> int:
        """Return the number of frames that are computed for a clip: those of its windows, where they overlap more."""
        return num_frames if self.windows is None else self.windows.frames_read(num_frames)

    def time_step_centres(self, num_time_steps: int, num_frames: int) -> np.ndarray:
        """Return the frame that each of a clip's time steps is centred on."""
        if self.windows is not None:
            return self.windows.middles(num_frames)
        return np.asarray(self.encoder.stride * np.arange(num_time_steps) + self.encoder.centre)

    def classify_time_steps(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map a feature map to logits (B, S, K) of time steps, and return which time steps (B, S) are real.

        They are centred on the frames `time_step_centres`. The clip's classifier is applied to each step, which only heads
        that average over steps have learned (a clip's logits are then the mean of its steps'). With windows, a time step is
        a window.
        """
        if self.windows is not None:
            logits, _, steps = self._classify_windows(self.windows, features, mask)
            return logits, torch.ones(logits.shape[:2], dtype=torch.bool) if steps is None else steps
        x, positions = self.stem(features, mask)
        real = self._real_time_steps(x, features, mask)
        x, positions = self.head.prepend_class_tokens(x, positions)
        x, _ = self.encoder(x, positions)
        return self.head.classify_time_steps(x[:, self.head.num_class_tokens :], self.encoder.num_rows), real

    def context(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map a feature map to the encoder's output at each time step, (B, S, R * D), and the mask (B, S) of real steps.

        The rows of a time step are concatenated. The head is not used.
        """
        x, positions = self.stem(features, mask)
        real = self._real_time_steps(x, features, mask)
        x, _ = self.encoder(x, positions)
        return x.reshape(x.shape[0], -1, self.encoder.num_rows * x.shape[2]), real

    def set_activation_checkpointing(self, on: bool) -> None:
        self.encoder.activation_checkpointing = on

    @property
    def class_weights(self) -> tuple[str, ...]:
        """Names of the weights with a row for each class, see `Head.class_weights`."""
        names = [f"head.{name}" for name in self.head.class_weights]
        if self.windows is not None and self.windows.attend is not None:
            names += ["windows.attend.weight", "windows.attend.bias"]
        return tuple(names)

    def is_of_head(self, name: str) -> bool:
        """Return whether a weight belongs to the head, with what pools windows, and not to what enters the encoder."""
        return name.startswith(("head.", "windows.")) and name.removeprefix("head.") not in self.head.entering_weights

    def load_weights(self, params: NetworkParams, checkpoint: Checkpoint) -> None:
        """Load the weights of a checkpoint. Raises SonolexError where they do not fit."""
        checkpoint.load_into(self, params)

    def _real_time_steps(self, positions: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return self.encoder.real_time_steps(self.stem.real_time_steps(mask, positions.shape[1] // self.stem.num_rows))


def open_pretrained_weights(
    params: NetworkParams, front_end: FrontEndMetadata, vocabulary: str | None = None
) -> Checkpoint | None:
    """Open the weights that the params begin with, if any; warn, or raise SonolexError, where their data differ.

    `vocabulary` is the digest of the one behind tokens, see `Checkpoint.require_run`.
    """
    if params.pretrained is None:
        return None
    checkpoint = CHECKPOINT_FORMATS[params.pretrained.kind](params.pretrained)
    checkpoint.warn_of_front_end(front_end)
    checkpoint.require_run(params, front_end, vocabulary)
    return checkpoint


def fit_normalisation(
    params: NetworkParams, corpus: Callable[[], Sequence[Statistics]], checkpoint: Checkpoint | None
) -> Normalisation:
    """Return the normalisation of a network's input, by statistics of training clips or of the weights that it begins with.

    Raises SonolexError for another form of normalisation than that of the weights.
    """
    if checkpoint is None:
        return params.input.fit_normalisation(corpus, ())
    normalisation = params.input.fit_normalisation(corpus, checkpoint.statistics)
    checkpoint.require_normalisation(normalisation)
    return normalisation


def _set_norm_epsilons(part: nn.Module, epsilon: float) -> None:
    for module in part.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = epsilon


def drop_positions(positions: Tensor, mask: Tensor | None, fraction: float) -> tuple[Tensor, Tensor | None]:
    """Drop this fraction, rounded down, of each clip's real positions (B, N, D), and padding that becomes unnecessary.

    Unstructured patchout (Koutini et al., 2021, "Efficient Training of Audio Transformers with Patchout", arXiv 2110.05069):
    positions are drawn per clip, after the stem, which adds position embeddings, and before class tokens are prepended. The
    remaining positions keep their order.
    """
    batch, num_positions, width = positions.shape
    order = torch.rand(batch, num_positions).to(positions.device)
    if mask is not None:
        order = order.masked_fill(~mask, 2.0)  # padding comes last
    kept = order.argsort(dim=1)[:, : num_positions - int(num_positions * fraction)]
    real: Tensor | None = None
    if mask is not None:
        lengths = mask.sum(1, keepdim=True)
        real = torch.arange(kept.shape[1], device=mask.device) < lengths - (lengths * fraction).long()
        kept = kept.where(real, num_positions)
    kept = kept.sort(dim=1).values.clamp(max=num_positions - 1)  # padding comes last
    return positions.gather(1, kept[:, :, None].expand(-1, -1, width)), real

"""Masked-token prediction task: span masking, loss and accuracy, and the unigram baseline.

Every token sequence is cut into blocks of `span` tokens, from a random point on; each block is masked with the probability
`share`, and at least one in every clip. Tokens of all codebooks of a frame are masked together, since one predicts the
others. All masked tokens become the mask token, as in HuBERT. BERT also keeps some and replaces some at random, because its
later inputs have no masks; here `train.augmentation.frame_masks` masks them.

Conventions: B batch, T frame, M masked position; tokens (B, codebook, T) int64; mask (real frames) and masked (B, T) bool. A
clip's loss is the mean cross entropy, in nats, over its masked tokens of all codebooks, its accuracy the fraction of them
that is ranked first; a batch's are the means over its clips, so that micro-batches add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batch, Batches, StoredBatch
from pipeline.training.distributed import DistributedContext
from pipeline.training.step import Forward
from pipeline.training.token_predictor import TokenPredictor

_VALIDATION_SEED = 0  # of the masks of validation clips, the same in every epoch


@dataclass(frozen=True)
class MaskedTokens:
    """Task of predicting the masked tokens of token sequences; class targets are ignored."""

    share: float
    span: int
    section: str = "pretrain"
    measures: tuple[str, ...] = ("masked_accuracy",)

    def forward(self, model: TokenPredictor) -> Forward:
        """Return the function from tokens and mask to vectors."""
        return model.forward

    def loss(
        self, model: TokenPredictor, forward: Forward, batch: Batch, _targets: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Mask tokens at random; return the loss and the accuracy of a batch."""
        masked = draw_masked(lengths_of(batch), batch.inputs.shape[2], self.share, self.span)
        predicted = predict_masked(model, forward, batch, masked.to(batch.inputs.device))
        return predicted.losses.mean(), [predicted.hits.mean()]


def lengths_of(batch: Batch | StoredBatch) -> Tensor:
    """Return the number of frames of each clip, (B, 1), on the CPU."""
    if batch.mask is None:
        return torch.full((len(batch.inputs), 1), batch.inputs.shape[2])
    return batch.mask.sum(1, keepdim=True).cpu()


def draw_masked(
    lengths: Tensor, num_frames: int, share: float, span: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the masked positions of clips of `lengths` (B, 1): (B, `num_frames`) bool, on the CPU."""
    batch = len(lengths)
    start = torch.randint(0, span, (batch, 1), generator=generator)
    frames = torch.arange(num_frames)
    block = (frames + start) // span
    draws = torch.rand(batch, num_frames // span + 2, generator=generator)
    beyond = torch.arange(draws.shape[1]) > (lengths - 1 + start) // span
    draws = draws.masked_fill(beyond, 2.0)
    chosen = (draws < share) | (draws == draws.amin(1, keepdim=True))
    return chosen.gather(1, block) & (frames < lengths)


class MaskedPrediction(NamedTuple):
    """Loss and accuracy over the masked positions of each clip that the model predicts; 0 for a clip without any."""

    losses: Tensor  # (B,)
    hits: Tensor  # (B,) accuracy
    counts: Tensor  # (B,) positions


def predict_masked(model: TokenPredictor, forward: Forward, batch: Batch, masked: Tensor) -> MaskedPrediction:
    """Mask tokens, predict them, and compare; `forward` is the model's own, or compiled from it."""
    vectors, asked = forward(batch.inputs.masked_fill(masked[:, None], model.mask_token), batch.mask)
    places: Tensor = masked & asked
    clips, tokens = places.nonzero()[:, 0], batch.inputs.transpose(1, 2)[places]  # (M,), (M, codebook)
    scores = model.scores(vectors[places].float())
    losses = torch.stack([F.cross_entropy(s, w, reduction="none") for s, w in zip(scores, tokens.T, strict=True)])
    hits = torch.stack([s.argmax(1) == w for s, w in zip(scores, tokens.T, strict=True)]).float()
    counts = places.sum(1)

    def by_clip(values: Tensor) -> Tensor:
        totals: Tensor = torch.zeros(len(batch.inputs), device=values.device).index_add(0, clips, values.mean(0))
        return totals / counts.clamp(min=1)

    return MaskedPrediction(by_clip(losses), by_clip(hits), counts)


class Unigrams:
    """Unigram model: token frequencies, the baseline without context."""

    def __init__(self, sequences: Sequence[np.ndarray], size: int) -> None:
        """Count the tokens of sequences (codebook, frame), with add-one smoothing."""
        counts = np.ones((len(sequences[0]), size))
        for sequence in sequences:
            for book, tokens in enumerate(sequence):
                counts[book] += np.bincount(tokens, minlength=size)
        self.frequencies = counts / counts.sum(axis=1, keepdims=True)  # (codebook, token)

    def losses(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Return each sequence's mean cross entropy over all of its tokens, as in `predict_masked`: (clip,)."""
        surprise, rows = -np.log(self.frequencies), np.arange(len(self.frequencies))[:, None]
        return np.array([surprise[rows, sequence].mean() for sequence in sequences])

    def measure(self, sequences: Sequence[np.ndarray]) -> tuple[float, float]:
        """Return the mean loss and accuracy of token sequences."""
        best = self.frequencies.argmax(axis=1)[:, None]
        return float(self.losses(sequences).mean()), float(np.mean([(tokens == best).mean() for tokens in sequences]))


class MaskedValidation:
    """Validation of masked-token prediction by the averaged weights, with the same masks in every epoch."""

    def __init__(self, task: MaskedTokens, batches: Batches, batch_size: int) -> None:
        self.total = torch.zeros(0, 0)
        self._task, self._batches, self._batch_size = task, batches, batch_size

    @torch.no_grad()
    def measure(
        self, model: TokenPredictor, average: WeightAverage, _epoch: int, context: DistributedContext
    ) -> dict[str, float]:
        """Return validation_loss and validation_accuracy; every process computes them on all clips."""
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        average.swap()
        model.eval()
        measured = []
        for batch in self._batches.in_order(self._batch_size):
            lengths, frames = lengths_of(batch), batch.inputs.shape[2]
            masked = draw_masked(lengths, frames, self._task.share, self._task.span, generator).to(context.device)
            predicted = predict_masked(model, model, batch.to(context.device), masked)
            measured.append(torch.stack([predicted.losses, predicted.hits]))
        average.swap()
        loss, accuracy = torch.cat(measured, dim=1).mean(1).tolist()
        return {"validation_loss": loss, "validation_accuracy": accuracy}

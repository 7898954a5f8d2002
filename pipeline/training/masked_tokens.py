"""Masked-token prediction: span masking, the loss of a batch, and the score of a unigram model.

Every token sequence is cut into blocks of `span` tokens, from a random point on; each block is hidden with the probability
`share`, and at least one of every clip is. Tokens of all codebooks are hidden together: one would tell the others. All
hidden tokens become the mask token, as in HuBERT; BERT's random and unchanged ones among them are for inputs that are later
never masked, and `train.augmentation.frame_masks` masks them.

Conventions: B batch, T frame, M hidden place; tokens (B, codebook, T) int64, mask and hidden (B, T) bool. A clip's loss is
the mean cross entropy, in nats, over its hidden tokens of all codebooks, its accuracy the part of them that is ranked first;
a batch's are the means over its clips, so that the parts of a batch add up.
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
    """Fill in the hidden tokens of token sequences; targets are not looked at."""

    share: float
    span: int
    section: str = "pretrain"
    measures: tuple[str, ...] = ("masked_accuracy",)

    def forward(self, model: TokenPredictor) -> Forward:
        """Return the model's way from tokens and mask to vectors."""
        return model.forward

    def loss(
        self, model: TokenPredictor, forward: Forward, batch: Batch, _targets: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of a batch whose tokens are hidden at random, and its accuracy."""
        masked = draw_masked(lengths_of(batch), batch.inputs.shape[2], self.share, self.span)
        predicted = predict_masked(model, forward, batch, masked.to(batch.inputs.device))
        return predicted.losses.mean(), [predicted.hits.mean()]


def lengths_of(batch: Batch | StoredBatch) -> Tensor:
    """Return how many frames each clip has, (B, 1), on the CPU."""
    if batch.mask is None:
        return torch.full((len(batch.inputs), 1), batch.inputs.shape[2])
    return batch.mask.sum(1, keepdim=True).cpu()


def draw_masked(
    lengths: Tensor, num_frames: int, share: float, span: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw which tokens of clips of some lengths (B, 1) are hidden: (B, `num_frames`) bool, on the CPU."""
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
    """What became of the hidden places of each clip that the model answers for; a clip without any has 0 for all."""

    losses: Tensor  # (B,)
    hits: Tensor  # (B,) accuracy
    counts: Tensor  # (B,) places


def predict_masked(model: TokenPredictor, forward: Forward, batch: Batch, masked: Tensor) -> MaskedPrediction:
    """Hide tokens, and compare what the model says of them with what they are; `forward` is its own, or made of it."""
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
    """The tokens' frequencies, which are what a model knows that looks at no context."""

    def __init__(self, sequences: Sequence[np.ndarray], size: int) -> None:
        """Count the tokens of token sequences, each (codebook, frame), with one added to every count."""
        counts = np.ones((len(sequences[0]), size))
        for sequence in sequences:
            for book, tokens in enumerate(sequence):
                counts[book] += np.bincount(tokens, minlength=size)
        self.frequencies = counts / counts.sum(axis=1, keepdims=True)  # (codebook, token)

    def losses(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Return each token sequence's loss over all of its tokens, as `predict_masked` counts it: (clip,)."""
        surprise, rows = -np.log(self.frequencies), np.arange(len(self.frequencies))[:, None]
        return np.array([surprise[rows, sequence].mean() for sequence in sequences])

    def measure(self, sequences: Sequence[np.ndarray]) -> tuple[float, float]:
        """Return the mean loss and accuracy of token sequences."""
        best = self.frequencies.argmax(axis=1)[:, None]
        return float(self.losses(sequences).mean()), float(np.mean([(tokens == best).mean() for tokens in sequences]))


class MaskedValidation:
    """How the averaged weights fill in tokens of clips that are not trained on, hidden at the same places every time."""

    def __init__(self, task: MaskedTokens, batches: Batches, batch_size: int) -> None:
        self.total = torch.zeros(0, 0)
        self._task, self._batches, self._batch_size = task, batches, batch_size

    @torch.no_grad()
    def measure(
        self, model: TokenPredictor, average: WeightAverage, _epoch: int, context: DistributedContext
    ) -> dict[str, float]:
        """Return validation_loss and validation_accuracy; every process measures all clips."""
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

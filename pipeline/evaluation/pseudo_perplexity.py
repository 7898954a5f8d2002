"""Pseudo-perplexity of tokens, per class, under a pretrained model.

After Salazar et al., 2020, "Masked Language Model Scoring" (arXiv 1910.14659): every token of a clip is hidden once and told
from the others, and the exponential of its mean surprise says among how many equally likely tokens the model would have to
guess. They hide one token at a time; here blocks are hidden, as in pretraining, since the tokens beside a frame's nearly say
it: the number of tokens at a time is that of the pretraining, and figures of other settings do not compare.

Conventions: surprise in nats; over several codebooks a place counts as their mean.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.artifacts.files import replacing
from pipeline.training.batches import Batches
from pipeline.training.masked_tokens import predict_masked
from pipeline.training.token_predictor import TokenPredictor

ALL_CLASSES = "(all)"  # in the place of a class: every clip once

_BATCH_SIZE = 16  # clips


class PerplexityRow(NamedTuple):
    """The clips of one class; a clip counts in each of its classes."""

    class_name: str
    num_clips: int
    num_places: int
    pseudo_perplexity: float
    unigram_perplexity: float  # of what knows the tokens' frequencies alone


@torch.no_grad()
def measure_surprise(
    model: TokenPredictor, batches: Batches, *, share: float, span: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return every clip's mean surprise over its places, and how many these are: both (clip,)."""
    model.eval()
    rounds = max(2, round(1 / share))
    totals, counts = np.zeros(len(batches)), np.zeros(len(batches))
    for stored in batches.in_order(_BATCH_SIZE):
        batch = stored.to(torch.device("cpu"))
        block = torch.arange(batch.inputs.shape[2]) // span
        real = torch.ones_like(batch.inputs[:, 0], dtype=torch.bool) if batch.mask is None else batch.mask
        for turn in range(rounds):
            predicted = predict_masked(model, model, batch, real & (block % rounds == turn))
            totals[batch.rows.numpy()] += (predicted.losses * predicted.counts).numpy()
            counts[batch.rows.numpy()] += predicted.counts.numpy()
    return totals / np.maximum(counts, 1), counts


def perplexity_rows(
    surprise: np.ndarray, unigram: np.ndarray, counts: np.ndarray, targets: np.ndarray, classes: Sequence[str]
) -> list[PerplexityRow]:
    """Return a row for all clips and one a class that has any; surprises and counts (clip,), targets (clip, class)."""
    members = {ALL_CLASSES: np.arange(len(counts))}
    members |= {name: np.flatnonzero(targets[:, number] > 0.5) for number, name in enumerate(classes)}
    rows = []
    for name, own in members.items():
        places = counts[own].sum()
        if places:
            pseudo, plain = (math.exp((values[own] * counts[own]).sum() / places) for values in (surprise, unigram))
            rows.append(PerplexityRow(name, len(own), int(places), pseudo, plain))
    return rows


def write_perplexity(path: Path, rows: Sequence[PerplexityRow]) -> None:
    """Write the rows as CSV."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", *PerplexityRow._fields[1:]])
        writer.writerows([*row[:3], *(f"{value:.6f}" for value in row[3:])] for row in rows)

"""Page of doubtful labels: listen through them, choose the right ones, and download them as a table for `labels.use`.

The page needs no server: choices are kept in the browser, and the table is written by the page itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.corpora.base import corpus_name
from pipeline.corpora.label_tables import SEPARATOR
from pipeline.evaluation.label_quality import Labelled, LabelQuality
from pipeline.reporting.gallery import ClipCard
from pipeline.reporting.pictures import AUDIO_SECONDS
from pipeline.reporting.rendering import write_html

TEMPLATE = "doubtful.html.j2"
_SUGGESTIONS = 3  # likeliest classes of a clip, offered beside its own


@dataclass(frozen=True)
class DoubtfulClip:
    """One clip of the page."""

    card: ClipCard
    labels: tuple[str, ...]  # that it is trained on
    quality: float
    doubtful: bool
    suggestions: tuple[
        tuple[str, float], ...
    ]  # classes with their probabilities: its own and the likeliest, in this order


def doubtful_clips(
    cards: Sequence[ClipCard], clips: Labelled, quality: LabelQuality, classes: Sequence[str]
) -> list[DoubtfulClip]:
    """Return the clips of the page, the most doubtful first, one for each card."""
    return [
        _doubtful_clip(card, int(row), clips, quality, classes)
        for card, row in zip(cards, quality.order[: len(cards)], strict=True)
    ]


def _doubtful_clip(
    card: ClipCard, row: int, clips: Labelled, quality: LabelQuality, classes: Sequence[str]
) -> DoubtfulClip:
    own = np.flatnonzero(clips.labels[row]).tolist()
    likeliest = np.argsort(-clips.scores[row], kind="stable")[:_SUGGESTIONS].tolist()
    suggested = tuple((classes[i], float(clips.scores[row, i])) for i in dict.fromkeys([*own, *likeliest]))
    labels = tuple(classes[i] for i in own)
    return DoubtfulClip(card, labels, float(quality.values[row]), bool(quality.doubtful[row]), suggested)


def write_doubtful(
    path: Path,
    shown: Sequence[DoubtfulClip],
    clips: Labelled,
    *,
    classes: Sequence[str],
    corpus: str,
    models: Sequence[str],
    num_doubtful: int,
    overrides: Sequence[tuple[str, Sequence[str]]],
) -> None:
    """Write the page; `overrides` are rows, clip and labels, that the downloaded table keeps from the one in use."""
    data = {
        "classes": list(classes),
        "one": clips.label_kind == "one",
        "separator": SEPARATOR,
        "overrides": [[clip, list(labels)] for clip, labels in overrides],
        "given": {item.card.clip_id: list(item.labels) for item in shown},
        "key": f"sonolex doubtful {corpus_name(corpus)}",
    }
    values = {
        "shown": shown,
        "classes": classes,
        "one": data["one"],
        "corpus": corpus_name(corpus),
        "models": models,
        "num_clips": len(clips.clip_ids),
        "num_doubtful": num_doubtful,
        "num_overrides": len(overrides),
        "audio_seconds": AUDIO_SECONDS,
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    }
    write_html(path, TEMPLATE, values, {})

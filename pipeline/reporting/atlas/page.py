"""The atlas: one vocabulary to look at and listen to, token by token and in whole clips, as one HTML file.

Conventions: as in `pipeline/reporting/page.py`, everything comes from artifacts, and the same artifacts give the same bytes.
Tokens are numbered codebook by codebook: codebook times size plus token. The page's script draws them from `data`, as JSON.
"""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.attribution import mean_attributions
from pipeline.artifacts.spectrogram import HIDDEN_STATE
from pipeline.corpora.base import corpus_name
from pipeline.reporting import figures
from pipeline.reporting.atlas.axis import Axis, axis_of
from pipeline.reporting.atlas.content import AtlasContent
from pipeline.reporting.atlas.sounds import ResynthesisedClip, Snippet, decibels
from pipeline.reporting.atlas.tokens import CodebookPatterns, class_rates, nearest_tokens
from pipeline.reporting.pictures import mel_picture, peaks, sound_address
from pipeline.reporting.rendering import write_html
from pipeline.reporting.token_use import TokenStatistics, token_statistics
from pipeline.spectrogram.log_mel import count_bands, describe_frame
from pipeline.vocabulary.statistics import zipf_slope

TEMPLATE = "atlas.html.j2"

_CLASSES = 5  # bars of a token
_RAISED = 3  # classes whose logits a token raises
_NEIGHBOURS = 5
_PEAKS = 48  # of a snippet's outline
_COLUMNS = 320  # of a clip's picture, at most
_LOUDEST = 0.9  # the peak that sounds are brought to
_LARGEST_GAIN = 100.0  # on the way there: 40 dB
_MOST_CLASSES = 60  # rows that the figure of classes has room for

# What a page shows of tokens that stand for no frames.
_WITHOUT_FRAMES = (
    "Each token is shown with the mean spectrum of its occurrences in training clips, its distribution over classes, its "
    "nearest tokens, and training snippets near that spectrum.",
    "Such tokens stand for no log-mel frames, so that clips cannot be resynthesised from them.",
)


class Sounds:
    """The sounds of the page as its script has them: address, gain back to the true level, and outline."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self.listed: list[tuple[str, float, str]] = []

    def add(self, waveform: np.ndarray, peak: float, *, outline: bool) -> int:
        """Add a waveform (sample,) at full level, as if its highest sample were `peak`, and return its number."""
        gain = min(_LOUDEST / max(peak, 1e-9), _LARGEST_GAIN)
        address = sound_address(waveform * gain, self._sample_rate)
        self.listed.append((address, round(min(1.0, 1 / gain), 4), peaks(waveform, _PEAKS) if outline else ""))
        return len(self.listed) - 1


def write_atlas(path: Path, content: AtlasContent) -> None:
    """Render the atlas and write it in one step."""
    write_html(path, TEMPLATE, atlas_values(content), {})


def atlas_values(content: AtlasContent) -> dict[str, Any]:
    """Return the template's values."""
    metadata, clips = content.vocabulary.metadata, content.clips
    sounds = Sounds(content.spectrogram.metadata["sample_rate"])
    classes = clips.metadata["classes"]
    usage = [
        (name, _usage(content, counts))
        for name, counts in (("all", content.counts), ("training", content.training_counts))
    ]
    cards = [_clip_card(content, clip, resynthesised, sounds) for clip, resynthesised in content.resynthesised.items()]
    averages = {
        name: float(np.mean([resynthesised.distance[name] for resynthesised in content.resynthesised.values()]))
        for name in ("tokens", "snippets", "log_mel")
        if content.resynthesised
    }
    rates = class_rates(content.class_counts).reshape(-1, len(classes))[content.counts.ravel() > 0]
    slope, label = zipf_slope(content.counts.ravel()), f"fold {metadata['fold']}"
    return {
        "corpus": corpus_name(clips.metadata["corpus"]),
        "licence": clips.metadata["licence"],
        "classes": classes,
        "num_clips": len(clips),
        "metadata": metadata,
        "digest": content.vocabulary.digest()[:12],
        "params": content.params,
        "front_end": content.spectrogram.metadata,
        "frame": describe_frame(content.spectrogram.metadata),
        "pattern": axis_of(content.spectrogram.metadata).pattern,
        "has_bands": content.spectrogram.metadata["units"] != HIDDEN_STATE,
        "num_tokens": content.counts.size,
        "explanation": _explanation(content),
        "curve": _curve(content),
        "tiles": _tiles(content, usage[0][1], averages),
        "clips": cards,
        "averages": averages,
        "attribution": None if content.attribution is None else content.attribution.metadata,
        "silent": content.silent,
        "num_sounding": int(content.sounding.sum()),
        "num_silent": int((content.counts > 0).sum() - content.sounding.sum()),
        "usage": usage,
        "rank_figure": figures.rank_figure({label: content.counts}, {label: math.nan if slope is None else slope}),
        "class_figure": figures.class_token_figure(rates, classes) if len(classes) <= _MOST_CLASSES else "",
        "num_listened": int((content.occurrences.stop - content.occurrences.start).sum()),
        "num_listened_clips": len(content.occurrences.clips),
        "num_units": len(content.occurrences.units),
        "data": _data(content, sounds),
    }


def _usage(content: AtlasContent, counts: np.ndarray) -> TokenStatistics:
    """Describe counts (codebook, token)."""
    return token_statistics(
        counts,
        frame_rate=content.token_rate,
        joint=content.training_class_counts,
        distortion=content.vocabulary.distortion,
        stability=math.nan,  # of folds, of which one is shown
    )


def _explanation(content: AtlasContent) -> tuple[str, str, str]:
    """Return what the page shows, in three sentences."""
    number, size = content.counts.shape
    pattern = axis_of(content.spectrogram.metadata).pattern
    tokens = f"the nearest of {size} tokens" if number == 1 else f"a token from each of {number} codebooks of {size}"
    if content.vocabulary.external:
        return (
            f"These tokens were computed by another program and read from a table: {number} every "
            f"{1000 / content.token_rate:.0f} ms, of {size} each.",
            *_WITHOUT_FRAMES,
        )
    if content.vocabulary.network is not None:
        about = content.vocabulary.metadata["hidden_states"]
        return (
            f"This vocabulary rewrites a clip as a token sequence: every {1000 / content.token_rate:.0f} ms become "
            f"{tokens}, fitted on hidden states that the network {about['model']} (layer {about['layer']}) makes of the "
            f"training clips of fold {content.vocabulary.metadata['fold']}, on which it was trained.",
            *_WITHOUT_FRAMES,
        )
    return (
        f"This vocabulary rewrites a clip as a token sequence: every {1000 / content.token_rate:.0f} ms become {tokens}, "
        f"fitted on the training clips of fold {content.vocabulary.metadata['fold']}"
        f"{' and the discriminants of their classes' if len(content.vocabulary.space.inverse) else ''}.",
        f"Each token is shown with its {pattern}, its distribution over classes, its nearest tokens, and training snippets "
        "near it.",
        "Whole clips are resynthesised from their tokens, so that what the tokens retain can be heard."
        if content.resynthesised
        else "",
    )


def _curve(content: AtlasContent) -> str:
    """Return a sentence about the picture of a token."""
    low, high = _range(content, 0)
    axis = axis_of(content.spectrogram.metadata)
    if content.codebooks[0].patterns.shape[1] > 1:
        return f"The patch is the {axis.patch} of the token: time to the right, {axis.upwards}, bright is {axis.large}."
    changes = (
        " (of later codebooks: the residual, relative to the mean over their tokens)"
        if content.codebooks[-1].change
        else ""
    )
    digits = 0 if axis.unit else 2  # hidden states are about 1
    scale = f"{low:.{digits}f} to {high:.{digits}f}{axis.unit}".replace("-", "−")
    height = scale if len(content.codebooks) == 1 else "the range of its codebook"
    return f"The curve is the {axis.pattern} of the token{changes} over {axis.over}; its height is {height}."


def _range(content: AtlasContent, number: int) -> tuple[float, float]:
    """Return the lowest and highest dB of a codebook's tokens that occur."""
    used = content.codebooks[number].patterns[content.counts[number] > 0] * decibels(content.spectrogram.metadata)
    return (float(used.min()), float(used.max())) if used.size else (0.0, 1.0)


def _tiles(content: AtlasContent, usage: TokenStatistics, averages: dict[str, float]) -> list[tuple[str, str, str]]:
    """Return label, value and remark of the page's first numbers."""
    span = (
        content.spectrogram.frame_rate / content.token_rate
        if content.vocabulary.external
        else content.vocabulary.frames_per_token
    )
    frames = f"{span:.3g} frame{'s' * (span != 1)} of {describe_frame(content.spectrogram.metadata)}"
    tiles = [
        ("Duration of a token", f"{1000 / content.token_rate:.0f} ms", frames),
        (
            "Bit rate",
            f"{usage.bits_per_second:.0f} bit/s",
            f"perplexity {usage.perplexity:.0f} of {content.counts.shape[1]}",
        ),
    ]
    if averages:
        remark = f"from the clips' own log-mel frames {averages['log_mel']:.1f} dB"
        tiles.append(("Resynthesis error", f"{averages['tokens']:.1f} dB", remark))
    return tiles


def _clip_card(content: AtlasContent, clip: str, resynthesised: ResynthesisedClip, sounds: Sounds) -> dict[str, Any]:
    """Return what the page shows of a clip; its versions share one gain, so that they compare."""
    waveforms = {"original": resynthesised.original} | resynthesised.versions
    peak = max(float(np.abs(waveform).max()) for waveform in waveforms.values())
    low, high = (float(value) for value in np.percentile(resynthesised.frames["original"], [1, 99.7]))
    return {
        "clip_id": clip,
        "labels": content.labels[clip],
        "seconds": len(resynthesised.frames["original"]) / content.spectrogram.frame_rate,
        "num_tokens": content.num_tokens[clip],
        "distance": resynthesised.distance,
        "sounds": {name: sounds.add(waveform, peak, outline=False) for name, waveform in waveforms.items()},
        "pictures": {
            name: mel_picture(_fewer_columns(frames), low, high) for name, frames in resynthesised.frames.items()
        },
    }


def _fewer_columns(frames: np.ndarray) -> np.ndarray:
    """Return means over time of frames (frame, mel), few enough for a picture."""
    each = -(-len(frames) // _COLUMNS)
    whole = len(frames) // each * each
    means: np.ndarray = frames[:whole].reshape(-1, each, frames.shape[1]).mean(axis=1)
    return means


def _data(content: AtlasContent, sounds: Sounds) -> dict[str, Any]:
    """Return what the script draws the tokens from; see `atlas.js.j2`."""
    import matplotlib as mpl

    metadata, shape = content.spectrogram.metadata, content.counts.shape
    axis = axis_of(metadata)
    num_classes = len(content.clips.metadata["classes"])
    rates = class_rates(content.class_counts).reshape(-1, num_classes)
    clip_numbers = {clip: number for number, clip in enumerate(content.occurrences.clips)}
    numbers = [_add_snippet(sounds, waveform) for waveform in content.snippets.waveforms]
    named = [
        [clip, ", ".join(content.labels[clip]) or "no class"] for clip in content.occurrences.clips
    ]  # of training alone: other clips are no snippet's
    vectors = content.vocabulary.token_vectors()
    if content.vocabulary.external:  # perhaps without vectors: tokens are near that sound alike
        vectors = [book.patterns[:, 0] for book in content.codebooks]
    shift = np.arange(shape[0])[:, None, None] * shape[1]
    neighbours = np.stack([nearest_tokens(codebook, _NEIGHBOURS) for codebook in vectors]) + shift
    magma = np.round(255 * mpl.colormaps["magma"](np.arange(256))[:, :3]).astype(int) @ [65536, 256, 1]
    return {
        "size": shape[1],
        "codebooks": [_codebook(content, number, axis) for number in range(shape[0])],
        "axis": axis._asdict(),
        "empty": content.empty_bands,
        "colours": magma.tolist() if content.codebooks[0].patterns.shape[1] > 1 else [],
        "classes": content.clips.metadata["classes"],
        "counts": content.counts.ravel().tolist(),
        "training": content.training_counts.ravel().tolist(),
        "total": int(content.counts[0].sum()),
        "classesOf": _class_bars(content, num_classes),
        "raises": _raised(content),
        "still": _still(content),
        "dominant": [[int(row.argmax()), round(1000 * float(row.max()))] for row in rates],
        "brightness": [round(float(value), 3) for book in content.codebooks for value in book.brightness],
        "neighbours": neighbours.reshape(-1, neighbours.shape[2]).tolist(),
        "snippets": {
            codebook * shape[1] + token: [_snippet(snippet, numbers, clip_numbers) for snippet in some]
            for (codebook, token), some in content.snippets.of_token.items()
        },
        "clips": named if content.snippets.waveforms else [],
        "sounds": sounds.listed,
        "silent": content.silent.capitalize(),
    }


def _still(content: AtlasContent) -> list[int]:
    """Return the tokens that stand for digital silence: nothing in their bands lies above the front end's floor.

    Hidden states have no floor.
    """
    if content.spectrogram.metadata["units"] == HIDDEN_STATE:
        return []
    floor = content.spectrogram.metadata["log_floor"] + 1 / decibels(content.spectrogram.metadata)  # within a dB
    found = [not book.change and (book.patterns < floor).all(axis=(1, 2)) for book in content.codebooks]
    return [
        int(token)
        for token in np.flatnonzero(np.concatenate([np.broadcast_to(f, content.counts.shape[1]) for f in found]))
    ]


def _add_snippet(sounds: Sounds, waveform: np.ndarray) -> int:
    return sounds.add(waveform, float(np.abs(waveform).max()), outline=True)


def _snippet(snippet: Snippet, numbers: Sequence[int], clip_numbers: dict[str, int]) -> list[float]:
    mark = [round(place, 3) for place in snippet.mark]
    clip = clip_numbers[snippet.clip]
    return [numbers[snippet.sound], clip, round(snippet.time, 3), *mark, round(snippet.distance, 1)]


def _class_bars(content: AtlasContent, num_classes: int) -> list[list[list[int]]]:
    """Return each token's most frequent classes, with per mille of its occurrences in all clips and in training."""
    counts, training = (
        1000 * by_class.reshape(-1, num_classes) / np.maximum(total.reshape(-1, 1), 1)
        for by_class, total in (
            (content.class_counts, content.counts),
            (content.training_class_counts, content.training_counts),
        )
    )
    order = np.argsort(-counts, axis=1, kind="stable")[:, :_CLASSES]
    return [
        [[int(c), round(float(all_[c])), round(float(train[c]))] for c in row if all_[c] > 0]
        for row, all_, train in zip(order, counts, training, strict=True)
    ]


def _raised(content: AtlasContent) -> list[tuple[int, float, list[tuple[int, float]]]]:
    """Return of each token its occurrences in the clips attributed, the mean for their classes, and the classes it raises.

    These are pairs of class and mean attribution, the largest first. Empty without attributions.
    """
    if content.attribution is None:
        return []
    parts = mean_attributions(content.attribution, (content.counts.shape[0], content.counts.shape[1]))
    occurrences, means, own = (part.reshape(content.counts.size, *part.shape[2:]) for part in parts)
    order = np.argsort(-means, axis=1, kind="stable")[:, :_RAISED]
    raised = [[(int(c), _short(row[c])) for c in best if row[c] > 0] for row, best in zip(means, order, strict=True)]
    return list(zip(occurrences.tolist(), map(_short, own), raised, strict=True))


def _short(value: float) -> float:
    """Return a value with three significant digits."""
    return float(f"{value:.3g}")


def _codebook(content: AtlasContent, number: int, axis: Axis) -> dict[str, Any]:
    """Return a codebook's patterns as steps of 1 / 255 of their range, and what it is called."""
    book: CodebookPatterns = content.codebooks[number]
    low, high = _range(content, number)
    scaled = (book.patterns * decibels(content.spectrogram.metadata) - low) / max(high - low, 1e-6)
    part = f"{axis.before}{axis.places[book.first]} to {axis.places[book.last - 1]}{axis.after}"
    partial = book.last - book.first < count_bands(content.spectrogram.metadata)
    return {
        "name": part if partial else f"codebook {number + 1}",
        "first": book.first,
        "last": book.last,
        "frames": book.patterns.shape[1],
        "change": book.change,
        "zero": round(255 * -low / max(high - low, 1e-6)),
        "patterns": base64.b64encode(np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8).tobytes()).decode(),
    }

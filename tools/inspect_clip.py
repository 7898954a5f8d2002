"""Plot the waveform, log-mel frames and tokens of one clip.

    python -m tools.inspect_clip CLIP [--fold 1] [--out clip.png]

Frames and tokens come from the artifacts, the waveform from the corpus; a message names what is not available.
"""

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import pyarrow.compute as pc
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.artifacts.clips import ClipRecord, ClipTable, open_clips
from pipeline.artifacts.files import replacing
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import FrontEndMetadata, Mix, open_spectrogram
from pipeline.artifacts.tokens import TokensMetadata, open_tokens, token_arrays
from pipeline.corpora.base import AudioParams
from pipeline.errors import ArtifactError, CorpusError
from pipeline.execution.stage import stage_main
from pipeline.params import load_params
from pipeline.paths import shared_path
from pipeline.spectrogram.band_scale import tick_labels
from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.log_mel import log_mel_part
from pipeline.spectrogram.reader import FrameReader
from pipeline.spectrogram.sources import BadClip, PackedAudio

_INCHES = (10.0, 7.0)
_DPI = 110


def run(clip_id: str, vocabulary: str, fold: str, layout: Layout, corpus_root: Path, figure_path: Path) -> list[str]:
    """Write the figure, and return messages about parts that had to be left out.

    Raises CorpusError when the manifest has no such clip, ArtifactError when there are no frames to draw.
    """
    clips = open_clips(layout.clips)
    row = manifest_row(clips, clip_id)
    spectrogram = open_spectrogram(layout.spectrogram)
    reader = FrameReader(spectrogram)
    if not reader.ok([clip_id]):
        raise CorpusError(f"{clip_id}: the clip has no frames; `sonolex why {clip_id}` says why")
    metadata = spectrogram.metadata
    frames = log_mel_part(reader.read([clip_id])[0], metadata)
    left_out: list[str] = []
    seconds = len(frames) / metadata["frame_rate"]
    waveform = _waveform(row, corpus_root, metadata["sample_rate"], seconds, left_out, metadata.get("mix", "mean"))
    tokens, token_metadata = _tokens(clip_id, layout.tokens(vocabulary, fold), left_out)

    labels = ", ".join(clips.metadata["classes"][label] for label in row["labels"])
    figure = draw(f"{clip_id}: {labels}", waveform, frames, tokens, metadata, token_metadata)
    with replacing(figure_path) as partial:
        figure.savefig(partial, format="png", dpi=_DPI)
    return left_out


def manifest_row(clips: ClipTable, clip_id: str) -> ClipRecord:
    """Return the manifest's row of a clip. Raises CorpusError when it has no such clip."""
    rows: list[ClipRecord] = clips.columns.filter(pc.equal(clips["clip_id"], clip_id)).to_pylist()
    if not rows:
        raise CorpusError(
            f"{clips.path}: clip_id: no clip {clip_id!r}; `sonolex why {clip_id}` names those close to it"
        )
    return rows[0]


def draw(
    title: str,
    waveform: np.ndarray | None,
    frames: np.ndarray,
    tokens: np.ndarray | None,
    metadata: FrontEndMetadata,
    token_metadata: TokensMetadata | None,
) -> Figure:
    """Draw a waveform (sample,), frames (frame, mel) and tokens (codebook, token) above each other on one time axis.

    `metadata` is the front end's: `sample_rate` and `frame_rate` place samples and frames in time. `token_metadata` is that
    of the tokens, and is not read without tokens.
    """
    heights = {"waveform": 1.0, "frames": 2.2, "tokens": 1.5}
    shown = {"waveform": waveform is not None, "frames": True, "tokens": tokens is not None}
    names = [name for name, there in shown.items() if there]
    mpl.rcParams["text.parse_math"] = False  # a class may be called "A$AP"
    figure = Figure(figsize=_INCHES, layout="constrained")
    grid = figure.subplots(len(names), 1, sharex=True, squeeze=False, height_ratios=[heights[name] for name in names])
    axes = dict(zip(names, grid[:, 0], strict=True))
    seconds = len(frames) / metadata["frame_rate"]
    if waveform is not None:
        axes["waveform"].plot(np.arange(len(waveform)) / metadata["sample_rate"], waveform, linewidth=0.4)
        axes["waveform"].set_ylabel("waveform")
    draw_frames(axes["frames"], frames, metadata, figure)
    if tokens is not None and token_metadata is not None:
        times = (np.arange(tokens.shape[1]) + 0.5) / token_metadata["frame_rate"]
        vocabulary_size = token_metadata["vocabulary_size"]
        for number, row in enumerate(tokens):
            axes["tokens"].plot(times, row, "|", markersize=4, label=f"codebook {number}")
        axes["tokens"].set(
            ylabel=f"token, fold {token_metadata['fold']}", ylim=(-0.02 * vocabulary_size, 1.02 * vocabulary_size)
        )
        if len(tokens) > 1:
            axes["tokens"].legend(loc="upper right", fontsize="small")
    grid[0, 0].set_title(title)
    grid[-1, 0].set(xlabel="seconds", xlim=(0, seconds))
    return figure


def draw_frames(
    axes: Axes,
    frames: np.ndarray,
    metadata: FrontEndMetadata,
    figure: Figure,
    *,
    colours: str = "magma",
    bar: bool = True,
) -> None:
    """Draw frames (frame, mel) over seconds and Hz; `metadata` is the front end's."""
    # Percentiles limit the influence of single clicks, and of digital silence, on the colour scale.
    low, high = np.percentile(frames, [1, 99.8])
    image = axes.imshow(
        frames.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=axes_extent(frames, metadata),
        vmin=low,
        vmax=max(high, low + 1e-6),
        cmap=colours,
    )
    ticks = tick_labels(metadata)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylim(-0.5, frames.shape[1] - 0.5)
    axes.set_ylabel("frequency (Hz)")
    if bar:
        figure.colorbar(image, ax=axes, label=f"log-mel, {metadata['units']}", pad=0.01)


def axes_extent(frames: np.ndarray, metadata: FrontEndMetadata) -> tuple[float, float, float, float]:
    """Return left, right (seconds), bottom and top (bands, centred at whole numbers) of an image of frames."""
    return 0.0, len(frames) / metadata["frame_rate"], -0.5, frames.shape[1] - 0.5


def _waveform(
    row: ClipRecord, root: Path, sample_rate: int, seconds: float, left_out: list[str], mix: Mix = "mean"
) -> np.ndarray | None:
    """Decode the clip; a file longer than its frames by more than a second counts as another file."""
    try:
        return decode(
            root / row["source"],
            start=row["start"],
            duration=row["duration"],
            sample_rate=sample_rate,
            max_duration=seconds + 1,
            member=PackedAudio.of(row),
            content=row["content"],
            mix=mix,
            allow_silence=True,
        )
    except BadClip as error:
        left_out.append(f"waveform: {error}")
        return None


def _tokens(clip_id: str, path: Path, left_out: list[str]) -> tuple[np.ndarray | None, TokensMetadata | None]:
    try:
        tokens = open_tokens(path)
    except ArtifactError as error:
        left_out.append(f"tokens: {error}")
        return None, None
    found = token_arrays(tokens).get(clip_id)
    if found is None:
        left_out.append(f"tokens: {path} does not hold the clip")
    return found, tokens.metadata


def main(
    clip_id: Annotated[str, typer.Argument(metavar="CLIP", help="id of the clip, as in the manifest")],
    vocabulary: Annotated[str, typer.Option(help="entry of `vocabularies` whose tokens are drawn")] = "kmeans",
    fold: Annotated[str, typer.Option(help="fold of the vocabulary")] = "1",
    out: Annotated[Path, typer.Option(help="PNG to write")] = Path("clip.png"),
    corpus: Annotated[Path | None, typer.Option(help="corpus root; by default that of params.yaml")] = None,
) -> None:
    root = shared_path(corpus) if corpus else load_params(AudioParams, "corpus").root
    for remark in run(clip_id, vocabulary, fold, Layout(), root, out):
        typer.echo(f"left out: {remark}")
    typer.echo(str(out))


if __name__ == "__main__":
    stage_main(main)

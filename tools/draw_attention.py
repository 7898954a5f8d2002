"""Plot a network's attention or Grad-CAM map over the log-mel frames of one clip.

    python -m tools.draw_attention CLIP [--model ast] [--fold 1] [--seed 0] [--layer 2] [--out attention.png]
    python -m tools.draw_attention CLIP --model cnn --target dog

The default fold is the one that tests the clip. Of a network with attention, rollout over all layers or one layer; of a
convolutional one, Grad-CAM of a class, by default the likeliest (pipeline/evaluation/explanation.py).
"""

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import typer
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from pipeline.artifacts.clips import link_of, open_clips
from pipeline.artifacts.files import replacing
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.model import TrainedModel, open_model
from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.errors import CorpusError, SonolexError
from pipeline.evaluation.attention import ClipAttention
from pipeline.evaluation.explanation import Explained, class_number, describe_map, open_explainer
from pipeline.evaluation.metric_functions import to_scores
from pipeline.evaluation.prediction import describe_model
from pipeline.execution.stage import stage_main
from pipeline.reporting.pictures import overlay
from pipeline.spectrogram.log_mel import log_mel_part, over_bands
from pipeline.training.inputs import FrameInputs, open_inputs_of
from tools.inspect_clip import axes_extent, draw_frames, manifest_row

_INCHES = (7.2, 4.6)  # width of the report's text
_DPI = 200
_BRIGHTEST = 99.5  # percentile of the map at the end of the colour bar


def run(
    clip_id: str, model_path: Path, layout: Layout, figure_path: Path, *, layer: int | None = None, target: str = ""
) -> Explained:
    """Write the figure, and return the explanation that it shows; `target` is a class, or empty.

    Raises CorpusError when there is no such clip or it has no frames, SonolexError for a model without a map over frames,
    with fewer layers or without that class.
    """
    clips = open_clips(layout.clips)
    row = manifest_row(clips, clip_id)
    model = open_model(model_path)
    inputs = open_inputs_of(model, layout.spectrogram) if model.metadata["reads"] == "frames" else None
    if not isinstance(inputs, FrameInputs):
        raise SonolexError(f"{model_path}: expected a model that reads frames, found one that reads tokens")
    if not inputs.usable([clip_id]):
        raise CorpusError(f"{clip_id}: the clip has no frames; `sonolex why {clip_id}` says why")
    explained = open_explainer(model, inputs).read(clip_id, class_number(target, model))
    labels = ", ".join(clips.metadata["classes"][label] for label in row["labels"]) or "no class"
    title = f"{clip_id}: {labels}\n{_describe(model, explained)}"
    (frames,) = inputs.arrays([clip_id])
    values, label = _map(explained, model, layer)
    metadata = inputs.front_end
    write_figure(
        figure_path, title, log_mel_part(frames, metadata), over_bands(values, metadata), metadata, label=label
    )
    return explained


def write_figure(
    path: Path, title: str, frames: np.ndarray, values: np.ndarray, metadata: FrontEndMetadata, *, label: str
) -> None:
    """Write a PNG of what `draw` draws."""
    figure = draw(title, frames, values, metadata, label=label)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=_DPI)


def _map(explained: Explained, model: TrainedModel, layer: int | None) -> tuple[np.ndarray, str]:
    """Return the map, and what it is."""
    if layer is None:
        return explained.over_spectrogram(), describe_map(explained, model.metadata["classes"])
    if not isinstance(explained, ClipAttention):
        raise SonolexError(
            f"--layer: expected a network with attention, found {describe_model(model)}; leave --layer out"
        )
    depth = len(explained.layers)
    if not 1 <= layer <= depth:
        raise SonolexError(f"--layer: expected one of 1 to {depth}, the layers of {model.path}, found {layer}")
    return explained.over_spectrogram(layer), f"attention, layer {layer}\n(1 = even)"


def draw(title: str, frames: np.ndarray, values: np.ndarray, metadata: FrontEndMetadata, *, label: str) -> Figure:
    """Draw frames (frame, mel), and below them a map (frame, mel) over the frames in grey; `label` says what it is."""
    mpl.rcParams["text.parse_math"] = False  # a class may be called "A$AP"
    figure = Figure(figsize=_INCHES, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    draw_frames(above, frames, metadata, figure)
    draw_frames(below, frames, metadata, figure, colours="gray", bar=False)
    top = max(float(np.nanpercentile(values, _BRIGHTEST)), 1e-6)
    image = below.imshow(
        values.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=axes_extent(frames, metadata),
        vmin=0,
        vmax=top,
        cmap=ListedColormap(overlay(np.linspace(0, 1, 256))),
    )
    figure.colorbar(image, ax=below, label=label, pad=0.01, extend="max")
    above.set_title(title, fontsize=10, loc="left")
    below.set(xlabel="time (s)", xlim=(0, len(frames) / metadata["frame_rate"]))
    return figure


def run_that_tests(clip_id: str, entry: str, seed: int, layout: Layout) -> RunId:
    """Return the run of a model and seed in the first fold that tests a clip. Raises CorpusError where there is none."""
    splits = map(open_split, layout.found_splits())
    runs = {RunId.of(entry, split.metadata["fold"], seed): split for split in splits}
    trained = {run: split for run, split in runs.items() if layout.model(run).is_dir()}
    for run, split in trained.items():
        if clip_id in clips_of(split, "test"):
            return run
    raise CorpusError(
        f"{layout.models}: expected a model {entry} with seed {seed} of the fold that tests {clip_id}, found folds: "
        f"{', '.join(run.fold for run in trained) or 'none'}; choose one with --fold, to plot a clip of its training"
    )


def _describe(model: TrainedModel, explained: Explained) -> str:
    scores = to_scores(explained.logits[None], link_of(model.metadata))[0]
    best = int(scores.argmax())
    name, fold, seed = (model.metadata[key] for key in ("model", "fold", "seed"))
    return f"{name}, fold {fold}, seed {seed}: {model.metadata['classes'][best]} ({scores[best]:.0%})"


def main(
    clip_id: Annotated[str, typer.Argument(metavar="CLIP", help="id of the clip, as in the manifest")],
    model: Annotated[str, typer.Option(help="a network of frames, with attention or convolutional")] = "ast",
    fold: Annotated[str, typer.Option(help="fold of the model; by default the one that tests the clip")] = "",
    seed: Annotated[int, typer.Option(help="of the model")] = 0,
    layer: Annotated[
        int | None, typer.Option(help="a single layer, from 1; by default rollout over all layers")
    ] = None,
    target: Annotated[
        str, typer.Option(help="class that Grad-CAM explains; by default the likeliest", metavar="CLASS")
    ] = "",
    out: Annotated[Path, typer.Option(help="PNG to write")] = Path("attention.png"),
) -> None:
    layout = Layout()
    shown = RunId.of(model, fold, seed) if fold else run_that_tests(clip_id, model, seed, layout)
    run(clip_id, layout.model(shown), layout, out, layer=layer, target=target)
    typer.echo(str(out))


if __name__ == "__main__":
    stage_main(main)

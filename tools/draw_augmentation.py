"""Write a page of pictures of what each setting of augmentation does to one clip.

    python -m tools.draw_augmentation CLIP [--out augmentation.html]

Frames come from the stage `spectrogram`, ranges from `train.augmentation` of params.yaml. The clip is mixed with the next
ones of the corpus. Copies with another speed or pitch are shown as far as `spectrogram.copies` has them.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.errors import CorpusError, SonolexError
from pipeline.execution.stage import stage_main
from pipeline.models.base import NOT_NORMALISED
from pipeline.params import load_params
from pipeline.reporting.augmentation_page import write_augmentation_page
from pipeline.training.augmentation.settings import AugmentationParams
from pipeline.training.batches import Batches
from pipeline.training.copies import CopiedFrames
from pipeline.training.inputs import FrameInputs
from tools.inspect_clip import manifest_row


def run(clip_id: str, params: AugmentationParams, layout: Layout, path: Path) -> None:
    """Write the page.

    Raises CorpusError where there is no such clip or it has no frames, SonolexError for frames that are no log powers.
    """
    clips = open_clips(layout.clips)
    labels = ", ".join(clips.metadata["classes"][label] for label in manifest_row(clips, clip_id)["labels"])
    inputs = FrameInputs(open_spectrogram(layout.spectrogram))
    if not inputs.usable([clip_id]):
        raise CorpusError(f"{clip_id}: the clip has no frames; `sonolex why {clip_id}` says why")
    scale = Batches(inputs, [clip_id], NOT_NORMALISED).power_scale
    if scale is None:
        units = inputs.front_end["units"]
        raise SonolexError(f"{layout.spectrogram}: expected frames in dB or ln(power), found {units}: nothing to draw")
    chosen = _with_others(clip_id, inputs.usable(clips.list("clip_id")), params)
    copies = [CopiedFrames(open_spectrogram(folder), inputs) for folder in layout.found_copies()]
    copied = [(copy.name, copy.arrays([clip_id])[0]) for copy in copies]
    title = f"{clip_id}: {labels or 'no class'}"
    write_augmentation_page(path, title, inputs.arrays(chosen), scale, params, copied)


def _with_others(clip_id: str, usable: list[str], params: AugmentationParams) -> list[str]:
    """Return the clip and others for its mixtures, spread over the corpus. Raises CorpusError where these are too few."""
    place = usable.index(clip_id)
    count = max(params.sum_clips.num_clips[1], params.concatenate_clips.num_clips[1], 2)
    if len(usable) < count:
        raise CorpusError(f"expected at least {count} clips with frames, which mixtures need, found {len(usable)}")
    return [usable[(place + step * (len(usable) // count)) % len(usable)] for step in range(count)]


def main(
    clip_id: Annotated[str, typer.Argument(metavar="CLIP", help="id of the clip, as in the manifest")],
    out: Annotated[Path, typer.Option(help="HTML file to write")] = Path("augmentation.html"),
) -> None:
    run(clip_id, load_params(AugmentationParams, "train.augmentation"), Layout(), out)
    typer.echo(str(out))


if __name__ == "__main__":
    stage_main(main)

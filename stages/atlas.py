"""Write the atlas of one fold's vocabulary: every word to look at and listen to, and whole clips made of words alone.

    clips, spectrogram, split, vocabulary, tokens -> report/atlas.html

The graph makes that of the first fold. For another: `python -m stages.atlas data report/atlas-2.html --fold 2`.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline.corpora.base import AudioParams
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import load_params
from pipeline.reporting.atlas import write_atlas
from pipeline.reporting.atlas_content import AtlasPaths, gather_atlas
from pipeline.reporting.atlas_settings import AtlasParams

log = logging.getLogger(__name__)


def run(params: AtlasParams, paths: AtlasPaths, page_path: Path, *, fold: str) -> StageReport:
    report = StageReport("atlas", fold)
    content = gather_atlas(params, paths)
    write_atlas(page_path, content)
    report.clips, report.decoded = len(content.clips), len(content.heard.clips)
    report.bytes_written = page_path.stat().st_size
    if content.silent:
        report.incidents.append(f"no sound: {content.silent}")
    log.info(
        "fold %s: %d words, %d snippets, %d whole clips%s -> %s",
        fold,
        content.counts.size,
        len(content.snippets.waveforms),
        len(content.spoken),
        f" ({content.silent})" if content.silent else "",
        page_path,
    )
    return report


def main(data: Path, page: Path, fold: Annotated[str, typer.Option()]) -> None:
    # Where the audio lies is no dependency: the page's sound is the only thing that is read from there.
    paths = AtlasPaths.below(data, fold, audio=load_params(AudioParams, "corpus").root)
    run(load_params(AtlasParams, "atlas"), paths, page, fold=fold).write()


if __name__ == "__main__":
    stage_main(main)

"""Stage `atlas`: write the page of a vocabulary, with plots and sounds of every token, and clips resynthesised from tokens.

    clips, spectrogram, split, vocabulary, tokens, results/attribution -> report/atlas/<vocabulary>.html

The graph makes the atlases of the first fold. For another: `python -m stages.atlas kmeans --fold 2 --page atlas-2.html`.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.clips import CLIPS
from pipeline.artifacts.layout import Layout, ModelId
from pipeline.artifacts.settings import require_current
from pipeline.artifacts.spectrogram import INDEX
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.tokens import TOKENS
from pipeline.artifacts.vocabulary import VOCABULARY
from pipeline.corpora.base import AudioParams
from pipeline.execution.stage import StageReport, stage_main
from pipeline.grid import ExperimentParams
from pipeline.params import load_params, read_params
from pipeline.reporting.atlas.content import AtlasPaths, gather_atlas
from pipeline.reporting.atlas.page import write_atlas
from pipeline.reporting.atlas.settings import AtlasParams

log = logging.getLogger(__name__)


def run(params: AtlasParams, paths: AtlasPaths, page_path: Path, *, fold: str) -> StageReport:
    report = StageReport("atlas", f"{page_path.stem}-{fold}")
    content = gather_atlas(params, paths)
    write_atlas(page_path, content)
    report.clips, report.decoded = len(content.clips), len(content.occurrences.clips)
    report.bytes_written = page_path.stat().st_size
    if content.silent:
        report.incidents.append(f"no sound: {content.silent}")
    log.info(
        "%s, fold %s: %d tokens, %d snippets, %d whole clips%s -> %s",
        page_path.stem,
        fold,
        content.counts.size,
        len(content.snippets.waveforms),
        len(content.resynthesised),
        f" ({content.silent})" if content.silent else "",
        page_path,
    )
    return report


def main(
    name: Annotated[str, typer.Argument(help="entry of `vocabularies`")],
    fold: Annotated[str, typer.Option(help="fold of the vocabulary")],
    page: Annotated[Path | None, typer.Option(help="page to write; by default report/atlas/<name>.html")] = None,
) -> None:
    layout = Layout()
    require_current(
        read_params(),
        (CLIPS, layout.clips),
        (INDEX, layout.spectrogram_index),
        (SPLIT, layout.split(fold)),
        (VOCABULARY, layout.vocabulary(name, fold)),
        (TOKENS, layout.tokens(name, fold)),
    )
    # The corpus root is not a dependency: only the sounds of the page are read from it.
    params, audio = load_params(AtlasParams, "atlas"), load_params(AudioParams, "corpus").root
    attribution = _attribution(params, layout, name, fold)
    paths = AtlasPaths.of(layout, name, fold, audio=audio, attribution=attribution)
    run(params, paths, page or layout.atlas(name), fold=fold).write()


def _attribution(params: AtlasParams, layout: Layout, name: str, fold: str) -> Path | None:
    """Return the table of attributions to show, if any. The graph makes that of the first fold; another may be missing."""
    for entry in params.attribution:
        path = layout.attribution(ModelId(entry, name), fold)
        if path.exists() or fold == load_params(ExperimentParams, "experiment").folds[0]:
            return path
    return None


if __name__ == "__main__":
    stage_main(main)

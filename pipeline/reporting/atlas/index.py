"""The list of an experiment's atlases: one page a vocabulary, with what tells them apart, as one small HTML file."""

from pathlib import Path

from pipeline.artifacts.spectrogram import HIDDEN_STATE
from pipeline.corpora.base import corpus_name
from pipeline.reporting.atlas.axis import axis_of
from pipeline.reporting.page import PageContent
from pipeline.reporting.rendering import write_html

TEMPLATE = "atlas_index.html.j2"


def write_atlas_index(path: Path, content: PageContent) -> None:
    """Write the list beside the folder `atlas`, where the stage atlas puts the pages that it leads to."""
    params = content.experiment.params
    fold = params.folds[0]
    rows = [
        (
            name,
            content.vocabularies.get((name, fold)),
            content.tokens[name].statistics[fold] if name in content.tokens else None,
        )
        for name in params.vocabularies
    ]
    front_end = content.spectrogram.metadata
    values = {
        "corpus": corpus_name(content.clips.metadata["corpus"]),
        "fold": fold,
        "rows": rows,
        "pattern": axis_of(front_end).pattern,
        "has_bands": front_end["units"] != HIDDEN_STATE,
    }
    write_html(path, TEMPLATE, values, {})

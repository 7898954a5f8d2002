"""The data page: what the corpus of an experiment is like, beside the report, as one HTML file."""

from pathlib import Path

import numpy as np

from pipeline.artifacts.splits import ROLES
from pipeline.corpora.base import corpus_name
from pipeline.reporting.data_figures import class_count_figure, histogram_figure, together_figure
from pipeline.reporting.data_summary import DataSummary, summarise_data
from pipeline.reporting.page import PageContent
from pipeline.reporting.rendering import write_html

TEMPLATE = "data.html.j2"
_PAIRS = 10  # of classes that occur together, named below the matrix


def write_data_page(path: Path, content: PageContent) -> None:
    """Write the page beside the report, which leads to it."""
    data = summarise_data(content.clips, content.spectrogram, content.splits, content.missing, content.training_labels)
    names = data.classes.names
    shown = [names[position] for position in data.shown]
    values = {
        "corpus": corpus_name(content.clips.metadata["corpus"]),
        "licence": content.clips.metadata["licence"],
        "data": data,
        "role_names": ROLES,
        "half_rate": content.spectrogram.metadata["sample_rate"] / 2,
        "class_rows": _class_rows(data),
        "pairs": _frequent_pairs(data.together, shown),
        "histogram_figure": histogram_figure(data.durations, data.bandwidths),
        "class_figure": class_count_figure(data.classes),
        "together_figure": together_figure(data.together, shown) if len(shown) > 1 else "",
    }
    write_html(path, TEMPLATE, values, {})


def _class_rows(data: DataSummary) -> list[tuple[str, int, int, int, int, float, float]]:
    """Return a row for each class, the most frequent first: name, and the numbers of `ClassCounts`."""
    classes = data.classes
    return [
        (
            classes.names[i],
            int(classes.clips[i]),
            int(classes.clips[i] - classes.usable[i]),
            int(classes.groups[i]),
            int(classes.unknown[i]),
            float(classes.seconds[i]),
            float(classes.bandwidth[i]) / 1000,
        )
        for i in np.argsort(-classes.clips, kind="stable")
    ]


def _frequent_pairs(together: np.ndarray, names: list[str]) -> list[tuple[str, str, int]]:
    """Return the pairs of classes that most clips have both of."""
    rows, columns = np.triu_indices(len(names), 1)
    counts = together[rows, columns] if len(names) else np.empty(0, np.int64)
    order = [place for place in np.argsort(-counts, kind="stable")[:_PAIRS] if counts[place]]
    return [(names[rows[place]], names[columns[place]], int(counts[place])) for place in order]

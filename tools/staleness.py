"""Check whether the artifacts on disk have the settings of params.yaml, for notes of tools that show them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.artifacts.clips import CLIPS
from pipeline.artifacts.duplicates import DUPLICATES
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import PREDICTIONS
from pipeline.artifacts.settings import SETTINGS, Schema, differences
from pipeline.artifacts.spectrogram import INDEX
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.vocabulary import VOCABULARY
from pipeline.errors import ArtifactError
from pipeline.params import PARAMS_PATH, read_params

_NAMED = 6  # settings that a note names; the rest are counted


def differing(layout: Layout, document: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return key -> (value in params.yaml, recorded value) over all existing artifacts of the experiment."""
    found: dict[str, tuple[object, object]] = {}
    for schema, path in _artifacts(layout):
        try:
            settings = schema.read_metadata(path).get(SETTINGS)
        except ArtifactError:  # a damaged one is reported where it is needed
            continue
        # Entries that params.yaml no longer has belong to earlier experiments, which no table shows.
        recorded = settings.items() if isinstance(settings, Mapping) else ()
        known = {key: value for key, value in recorded if _has(document, key)}
        found |= {key: (now, was) for key, now, was in differences(known, document)}
    return found


def note(layout: Layout, params_path: Path = PARAMS_PATH) -> str:
    """Return a sentence about the differences; empty where there are none, or no params."""
    found = differing(layout, read_params(params_path)) if params_path.exists() else {}
    if not found:
        return ""
    named = [f"{key} {was} (params.yaml: {now})" for key, (now, was) in list(found.items())[:_NAMED]]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"note: the results have other settings than params.yaml: {', '.join(named)}{more}; `dvc repro` updates them"


def _artifacts(layout: Layout) -> Iterator[tuple[Schema, Path]]:
    for schema, paths in (
        (CLIPS, [layout.clips]),
        (INDEX, [layout.spectrogram_index]),
        (DUPLICATES, [layout.duplicates]),
        (SPLIT, layout.splits.glob("*.parquet")),
        (VOCABULARY, (layout.data / "vocabulary").glob("*/*.zarr")),
        (PREDICTIONS, layout.predictions.glob("*/*/*.parquet")),
    ):
        yield from ((schema, path) for path in sorted(paths) if path.exists())


def _has(document: Mapping[str, object], key: str) -> bool:
    value: object = document
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return True

"""Checks that the corpus of params.yaml is here and has the folds of the experiment, and that models fit its clips."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.artifacts.clips import ClipRecord, ClipTable, open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import INDEX
from pipeline.check_params import Experiment
from pipeline.corpora.registry import CorpusParams, list_corpus
from pipeline.corpora.splitting import count_training_clips, folds_of, require_known
from pipeline.errors import ArtifactError, CorpusError, ParamsError
from pipeline.models.network import NetworkParams
from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.durations import sample_durations
from pipeline.spectrogram.sources import BadClip, PackedAudio
from pipeline.training.families import family_matrix
from pipeline.training.loss_settings import families_of
from pipeline.training.rate_advice import rate_remark
from pipeline.vocabulary.external import Params as ExternalParams
from pipeline.vocabulary.token_tables import read_token_table, read_vectors, require_rows

FEWEST_POSITIONS = 8  # of the median clip, without a remark


def corpus_mistakes(experiment: Experiment, layout: Layout, params_path: Path) -> list[str]:
    """Name what would stop a run: no root, an unreadable table, an unknown fold, a class in no family, or too many clips.

    Without its audio, a corpus whose manifest is here (`dvc pull`) can be used, and is no mistake.
    """
    params, split = experiment.sections["corpus"], experiment.sections["split"]
    manifest = current_manifest(experiment, layout)
    if manifest is None and not params.makes_audio and not params.root.is_dir():
        return [
            f"{params_path}: corpus.root: expected the folder of the corpus ({params.layout}), found none at {params.root}; "
            "set it, as in `sonolex compose RECIPE corpus.root=PATH`"
        ]
    try:
        published, classes = (
            _published(params) if manifest is None else (manifest["fold"], manifest.metadata["classes"])
        )
        names = folds_of(published, split, layout.clips)
    except CorpusError as error:
        return [str(error)]
    mistakes = []
    for fold in experiment.sections["experiment"].folds:
        try:
            require_known(fold, names, split, params_path)
        except CorpusError as error:
            mistakes.append(str(error))
    mistakes += _family_mistakes(experiment, classes, params_path)
    return mistakes or too_many_clips(experiment, count_training_clips(published, split, layout.clips))


def token_table_mistakes(experiment: Experiment, layout: Layout, params_path: Path) -> list[str]:
    """Name what is wrong with the tables of external tokens: unreadable, other tokens than params say, or without clips.

    Clips are compared with the manifest that the last run left, if there is one, but for those that could not be decoded;
    the stages compare lengths too.
    """
    grid, clips = experiment.sections["experiment"], _usable_clips(experiment, layout)
    mistakes = []
    for name in grid.vocabularies:
        params = experiment.vocabularies[name]
        if isinstance(params, ExternalParams):
            try:
                read_vectors(params)
                require_rows(read_token_table(params), clips)
            except CorpusError as error:
                mistakes.append(f"{params_path}: vocabularies.{name}: {error}")
    return mistakes


def _usable_clips(experiment: Experiment, layout: Layout) -> list[str]:
    """Return the clips of the last run's manifest without those that have failed; empty without a manifest."""
    manifest, failed = current_manifest(experiment, layout), set[str]()
    if manifest is None:
        return []
    with contextlib.suppress(ArtifactError):  # there may be no index yet
        index = INDEX.open(layout.spectrogram_index)
        failed = {
            clip for clip, status in zip(index.list("clip_id"), index.list("status"), strict=True) if status == "failed"
        }
    return [clip for clip in manifest.list("clip_id") if clip not in failed]


def _family_mistakes(experiment: Experiment, classes: Sequence[str], params_path: Path) -> list[str]:
    """Name the classes that the table of families lacks."""
    families = families_of(experiment.sections["train"].loss)
    if families is None or not classes:
        return []
    try:
        family_matrix(families.groups, classes)
    except ParamsError as error:
        return [f"{params_path}: {error}"]
    return []


def too_many_clips(experiment: Experiment, training_clips: int) -> list[str]:
    """Name the models of the experiment for which a fold has too many training clips."""
    grid = experiment.sections["experiment"]
    mistakes = []
    for name in grid.entries:
        try:
            experiment.models[name].require_room(training_clips)
        except ParamsError as error:
            mistakes.append(f"experiment: {name}: {error}")
    return mistakes


def length_remarks(experiment: Experiment, layout: Layout) -> list[str]:
    """Name the networks for which the corpus's clips are short; empty without the corpus."""
    params, manifest = experiment.sections["corpus"], current_manifest(experiment, layout)
    if not params.root.is_dir() or (manifest is None and params.published_folds is not None):
        return []  # listing such a corpus may take long
    clips = list_corpus(params).table() if manifest is None else manifest.columns
    durations = sample_durations(clips, params.root)
    if not len(durations):
        return []
    return [*remarks_on_windows(experiment, durations), *remarks_on_length(experiment, float(np.median(durations)))]


def remarks_on_windows(experiment: Experiment, durations: np.ndarray) -> list[str]:
    """Name the networks whose window is longer than every clip of a sample, by durations in seconds."""
    grid, longest = experiment.sections["experiment"], float(durations.max())
    params = {name: experiment.models[name] for name in grid.entries}
    windows = {name: own.window for name, own in params.items() if isinstance(own, NetworkParams) and own.window}
    return [
        f"models.{name}.window.length: expected at most the length of a training clip, found {window.length:g} s, and "
        f"{longest:.2g} s as the longest of {len(durations)} clips; shorten the window, or set models.{name}.window to null"
        for name, window in windows.items()
        if window.length > longest
    ]


def remarks_on_length(experiment: Experiment, seconds: float) -> list[str]:
    """Name the networks that see a clip of so many seconds, the median one, as fewer than FEWEST_POSITIONS positions."""
    frames = seconds * experiment.sections["spectrogram"].front_end.frame_rate
    return [
        f"models.{name}: the median clip of {seconds:.2g} s has {frames:.0f} frames, and so {frames / stride:.1f} "
        f"positions; expected at least {FEWEST_POSITIONS}: halve strides over time, or let `sonolex compose` fit them "
        "(docs/training.md)"
        for name, stride in _time_strides(experiment).items()
        if frames / stride < FEWEST_POSITIONS
    ]


def rate_remarks(experiment: Experiment) -> list[str]:
    """Name the networks of the experiment that begin with published weights and too high a learning rate for them."""
    grid, train = experiment.sections["experiment"], experiment.sections["train"]
    remarks = {name: rate_remark(experiment.models[name], train) for name in grid.entries}
    return [f"models.{name}.pretrained: {remark}" for name, remark in remarks.items() if remark]


def _time_strides(experiment: Experiment) -> dict[str, int]:
    """Return network of the experiment -> frames from one of its positions to the next."""
    grid = experiment.sections["experiment"]
    strides = {name: experiment.models[name].time_stride for name in grid.entries}
    return {name: stride for name, stride in strides.items() if stride is not None}


def current_manifest(experiment: Experiment, layout: Layout) -> ClipTable | None:
    """Return the manifest of the experiment's corpus as the last run left it, if there is one."""
    try:
        manifest = open_clips(layout.clips)
    except ArtifactError:
        return None
    return manifest if manifest.metadata["corpus"] == experiment.sections["corpus"].identity() else None


def try_clips(experiment: Experiment, layout: Layout, most: int = 20) -> tuple[list[float], list[BadClip]]:
    """Decode some clips, evenly spread over the corpus: durations in seconds, and errors of those that cannot be used.

    None are tried without audio, and where listing the clips takes long (tars) or would make them.
    """
    corpus, frames = experiment.sections["corpus"], experiment.sections["spectrogram"]
    rows = _rows(experiment, layout, most) if corpus.root.is_dir() else []
    seconds: list[float] = []
    errors: list[BadClip] = []
    for row in rows:
        try:
            waveform = decode(
                corpus.root / row["source"],
                start=row["start"],
                duration=row["duration"],
                sample_rate=frames.metadata["sample_rate"],
                max_duration=corpus.max_duration,
                member=PackedAudio.of(row),
                mix=frames.mix,
                allow_silence=frames.silence == "keep",
            )
            seconds.append(len(waveform) / frames.metadata["sample_rate"])
        except BadClip as error:
            errors.append(error)
    return seconds, errors


def _rows(experiment: Experiment, layout: Layout, most: int) -> list[ClipRecord]:
    """Return at most so many rows of the manifest, or of the listing where the manifest is another corpus's."""
    params, manifest = experiment.sections["corpus"], current_manifest(experiment, layout)
    if manifest is not None:
        table = manifest.columns
    elif params.published_folds is None and not params.makes_audio:
        table = list_corpus(params).table()
    else:
        return []
    places = np.unique(np.linspace(0, table.num_rows - 1, min(most, table.num_rows)).round().astype(int))
    rows: list[ClipRecord] = table.take(pa.array(places)).to_pylist()
    return rows


def _published(params: CorpusParams) -> tuple[pa.ChunkedArray, Sequence[str]]:
    """Return the folds or roles of the clips and the classes, by the listing; by params without classes."""
    if params.published_folds is not None:
        return pa.chunked_array([pa.array(params.published_folds, pa.string())]), ()
    listing = list_corpus(params)
    return listing.table()["fold"], listing.classes

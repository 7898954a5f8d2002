"""Stage `duplicates`: find near-duplicates, clips that hold the same recording in files that may differ.

    spectrogram -> duplicates.parquet

They are searched among the frames of all clips, whatever their roles: the stage `split` says which pairs have two, and what
is done about it.
"""

import logging
from pathlib import Path

import pyarrow as pa

from pipeline.artifacts.duplicates import DUPLICATES, DuplicatesMetadata
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import SETTINGS, require_current
from pipeline.artifacts.spectrogram import INDEX, open_spectrogram
from pipeline.duplicates.searching import find_pairs
from pipeline.duplicates.settings import DuplicateParams
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import load_params, read_params

log = logging.getLogger(__name__)


def run(params: DuplicateParams, spectrogram_path: Path, path: Path) -> None:
    report = StageReport("duplicates")
    spectrogram = open_spectrogram(spectrogram_path)
    pairs = find_pairs(spectrogram, params.threshold) if params.search else []
    about: DuplicatesMetadata = {
        "searched": params.search,
        "threshold": params.threshold,
        SETTINGS: {"duplicates": params.model_dump(mode="json")},
    }
    DUPLICATES.write(path, pa.Table.from_pylist([pair._asdict() for pair in pairs], schema=DUPLICATES.arrow), about)
    found = f"{len(pairs)} pairs of near-duplicates" if params.search else "not searched (duplicates.search: false)"
    log.info("%d clips: %s -> %s", len(spectrogram.index), found, path)
    report.clips, report.bytes_written = len(spectrogram.index), path.stat().st_size
    report.write()


def main() -> None:
    layout = Layout()
    require_current(read_params(), (INDEX, layout.spectrogram_index))
    run(load_params(DuplicateParams, "duplicates"), layout.spectrogram, layout.duplicates)


if __name__ == "__main__":
    stage_main(main)

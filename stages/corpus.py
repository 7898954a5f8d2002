"""List the corpus's clips and identify every file by its content.

    corpus (a folder of audio and its table), labels.use -> clips.parquet

DVC runs this stage every time: it looks at size and time of each file, reads those that moved, and leaves the manifest
as it is when nothing changed, so that nothing after it runs either. It first checks all of params.yaml.
"""

import logging
from pathlib import Path

from pipeline.corpora.manifest import refresh_manifest
from pipeline.corpora.registry import CorpusParams
from pipeline.corpora.relabelling import UsedLabels
from pipeline.execution.checked import check_once
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import PARAMS_PATH, load_params

log = logging.getLogger(__name__)

_CHECKED = Path(".sonolex/checked")


def run(params: CorpusParams, labels: UsedLabels, clips_path: Path) -> None:
    report = StageReport("corpus")
    refresh = refresh_manifest(params, clips_path, labels_path=labels.use)
    log.info(
        "%d clips of `%s`: read %d files, %d missing; %s %s",
        refresh.num_clips,
        params.kind,
        refresh.num_hashed,
        refresh.num_missing,
        "wrote" if refresh.written else "nothing changed in",
        clips_path,
    )
    report.clips = refresh.num_clips
    counted = {"missing": refresh.num_missing, **refresh.left_out}
    report.failed = {reason: count for reason, count in counted.items() if count}
    report.bytes_written = clips_path.stat().st_size if refresh.written else 0
    report.write()


def _check_all_params() -> None:
    from pipeline.experiment import load_experiment  # imports every model

    load_experiment()


def main(clips: Path) -> None:
    # A typo in the last stage's section is reported now, not after hours.
    check_once(_check_all_params, [PARAMS_PATH, *Path("pipeline").rglob("*.py")], _CHECKED)
    run(load_params(CorpusParams, "corpus"), load_params(UsedLabels, "labels"), clips)  # type: ignore[arg-type]


if __name__ == "__main__":
    stage_main(main)

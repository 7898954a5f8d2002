"""Check params.yaml, and write which code and settings the result of each stage follows from.

    params.yaml, the project's sources, installed packages -> code/

DVC runs this stage first and always; what it writes is the same while nothing changed that a result follows from, so that
nothing after it runs. Folders that other stages read whole, and that this experiment may leave empty, are made here.
"""

import logging
import time
from pathlib import Path

from pipeline.artifacts.layout import Layout
from pipeline.execution.stage import stage_main
from pipeline.params import read_params
from pipeline.paths import shared_path
from pipeline.stage_code import write_stage_code

log = logging.getLogger(__name__)

_OUTCOMES = Path(".sonolex/code")
_KEPT = ".keep"  # DVC warns of an empty folder at every look


def outcomes() -> Path:
    """Return the folder of what earlier runs wrote, which workspaces of experiments share."""
    return shared_path(_OUTCOMES)


def run(layout: Layout) -> None:
    started = time.perf_counter()
    computed = write_stage_code(read_params(), _check_params, layout.code, outcomes())
    for folder in layout.folders_read_whole:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _KEPT).touch()
    what = "params checked, code followed" if computed else "params and code as in an earlier run"
    log.info("%s in %.1f s -> %s", what, time.perf_counter() - started, layout.code)


def _check_params() -> None:
    from pipeline.check_params import load_experiment  # imports every model

    load_experiment()


def main() -> None:
    run(Layout())


if __name__ == "__main__":
    stage_main(main)

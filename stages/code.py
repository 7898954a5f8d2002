"""Stage `code`: check params.yaml, and write digests of the code and settings that each stage's result depends on.

    params.yaml, the project's sources, installed packages -> code/

DVC always runs this stage first. Its output changes only with something that a result depends on, so that later stages are
skipped otherwise. It also creates folders that other stages depend on as a whole and that may be empty in this experiment.
"""

import logging
import time
from collections.abc import Sequence
from itertools import product, starmap
from pathlib import Path

from pipeline.artifacts.layout import Layout
from pipeline.execution.stage import stage_main
from pipeline.params import read_params
from pipeline.paths import shared_path
from pipeline.stage_code import write_stage_code

log = logging.getLogger(__name__)

_OUTCOMES = Path(".sonolex/code")
_KEPT = ".keep"  # DVC warns of empty folders


def outcomes() -> Path:
    """Return the folder of outcomes of earlier runs, shared by workspaces of experiments."""
    return shared_path(_OUTCOMES)


def run(layout: Layout) -> None:
    started = time.perf_counter()
    document = read_params()
    computed = write_stage_code(document, _check_params, layout.code, outcomes())
    make_folders(layout, document["experiment"]["vocabularies"], document["experiment"]["folds"])
    what = "params checked, code digests computed" if computed else "params and code as in an earlier run"
    log.info("%s in %.1f s -> %s", what, time.perf_counter() - started, layout.code)


def make_folders(layout: Layout, vocabularies: Sequence[str], folds: Sequence[str]) -> None:
    """Make the folders that stages depend on as a whole, since what is in them may be nothing."""
    supervision = starmap(layout.supervision, product(vocabularies, folds))
    attributions = [layout.attributions(name, folds[0]) for name in vocabularies]
    for folder in (*layout.folders_read_whole, *supervision, *attributions):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _KEPT).touch()


def _check_params() -> None:
    from pipeline.check_params import load_experiment  # imports every model

    load_experiment()


def main() -> None:
    run(Layout())


if __name__ == "__main__":
    stage_main(main)

"""Stage `split`: assign every clip its role in one fold, and check for leaks between roles.

clips.parquet -> splits/<fold>.parquet
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import SETTINGS, require_current
from pipeline.artifacts.splits import ROLES, SPLIT
from pipeline.corpora.splitting import SplitParams, assign_roles, describe_rule
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import load_params, read_params

log = logging.getLogger(__name__)


def run(params: SplitParams, clips_path: Path, split_path: Path, fold: str) -> None:
    report = StageReport("split", fold)
    clips = open_clips(clips_path)
    roles = assign_roles(clips, fold, params)
    rule = describe_rule(clips, params, fold)
    SPLIT.write(
        split_path,
        {"clip_id": clips.list("clip_id"), "role": roles},
        {"fold": fold, "seed": params.seed, "rule": rule, SETTINGS: {"split": params.model_dump(mode="json")}},
    )
    counts = Counter(roles)
    log.info("fold %s (%s): %s", fold, rule, ", ".join(f"{counts[role]} {role}" for role in ROLES))
    if counts["excluded"]:
        log.warning(
            "fold %s: %d clips excluded, whose audio is that of a clip with a later role (test, then validation), or which "
            "the outer fold tests; `sonolex why CLIP` shows the role of a clip, the column role of %s those of all",
            fold, counts["excluded"], split_path,
        )  # fmt: skip
        report.failed["same audio in a later role"] = counts["excluded"]
    report.clips = len(clips)
    report.bytes_written = split_path.stat().st_size
    report.write()


def main(
    fold: Annotated[str, typer.Argument(help="a fold of the corpus, `official`, or an inner fold: `official-1`")],
) -> None:
    layout = Layout()
    require_current(read_params(), (CLIPS, layout.clips))
    run(load_params(SplitParams, "split"), layout.clips, layout.split(fold), fold)


if __name__ == "__main__":
    stage_main(main)

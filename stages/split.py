"""Stage `split`: assign every clip its role in one fold, and check for leaks between roles.

clips.parquet + duplicates.parquet -> splits/<fold>.parquet
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.duplicates import DUPLICATES, open_duplicates
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import SETTINGS, require_current
from pipeline.artifacts.splits import ROLES, SPLIT
from pipeline.corpora.copies import find_copied, find_separated, join_copies
from pipeline.corpora.splitting import SplitParams, assign_roles, describe_rule
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import load_params, read_params

log = logging.getLogger(__name__)

_NAMED_PAIRS = 3  # in the warning


def run(params: SplitParams, clips_path: Path, duplicates_path: Path, split_path: Path, fold: str) -> None:
    report = StageReport("split", fold)
    clips, duplicates = open_clips(clips_path), open_duplicates(duplicates_path)
    joined = join_copies(clips, duplicates)
    roles = assign_roles(joined if params.near_duplicates == "exclude" else clips, fold, params)
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
    if copied := find_copied(joined, roles):
        named = find_separated(clips, duplicates, roles) or copied
        log.warning(
            "fold %s: training or validation clips with a near-duplicate in a later role: %d, so that results of this fold "
            "may be too good: %s; with split.near_duplicates: exclude such clips are left out; the report lists all pairs",
            fold, len(copied), ", ".join(map(str, named[:_NAMED_PAIRS])),
        )  # fmt: skip
        report.failed["near-duplicate in a later role"] = len(copied)
    report.clips = len(clips)
    report.bytes_written = split_path.stat().st_size
    report.write()


def main(
    fold: Annotated[str, typer.Argument(help="a fold of the corpus, `official`, or an inner fold: `official-1`")],
) -> None:
    layout = Layout()
    require_current(read_params(), (CLIPS, layout.clips), (DUPLICATES, layout.duplicates))
    run(load_params(SplitParams, "split"), layout.clips, layout.duplicates, layout.split(fold), fold)


if __name__ == "__main__":
    stage_main(main)

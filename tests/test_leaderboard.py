"""The leaderboard: models by accuracy, each with the costs of what it reads."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_reporting import EXPERIMENT, SIZE, report, write_experiment

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.layout import Layout
from pipeline.errors import SonolexError
from pipeline.reporting.bit_rates import read_bit_rates
from pipeline.reporting.summary import read_summary, summarise
from tools import leaderboard


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("leaderboard")
    write_experiment(root, audio=False)
    report(root)
    return root


def sources_of(root: Path) -> dict[str, leaderboard.Source]:
    layout = Layout(root)
    return leaderboard.open_sources(layout, EXPERIMENT, read_bit_rates(layout.bit_rates))


def test_models_climb_and_say_what_they_cost(reported: Path) -> None:
    runs = read_summary(reported / "results/summary.csv")
    sources = sources_of(reported)
    lines = {line[0]: line for line in leaderboard.rows(summarise(runs), sources, EXPERIMENT.reads, {"ast": 2.5})}
    accuracies = [float(line[1].split()[0]) for line in lines.values()]
    assert accuracies == sorted(accuracies)
    assert set(lines) == {"ast", "token_transformer-kmeans", "bag_of_tokens-kmeans"}  # and no ensemble
    frames = sum(f.stat().st_size for f in (reported / "data/spectrogram/frames.zarr").rglob("*") if f.is_file())
    assert lines["ast"][3:] == ["1,234", "", "", "24", f"{frames / 1e6:,.2f} MB"]
    tokens, bits, speed = lines["bag_of_tokens-kmeans"][4:7]
    assert (tokens, speed) == ("100", "")  # a token a frame, and not trained here
    assert 0 < float(bits) <= 100 * math.log2(SIZE)
    sizes = [(reported / f"data/tokens/kmeans/{fold}.parquet").stat().st_size for fold in "12"]
    assert sources["kmeans"].num_bytes == round(sum(sizes) / 2)


@pytest.mark.parametrize("changes", [{"merges": [(0, 1), (SIZE, 0)]}, {"stack": 3}])
def test_both_tables_have_the_same_rates(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_experiment(tmp_path, audio=False, **changes)
    report(tmp_path)
    found, layout = sources_of(tmp_path)["kmeans"], Layout(tmp_path)
    row = next(row for row in read_bit_rates(layout.bit_rates) if row.vocabulary)
    assert (found.tokens_per_second, found.bits_per_second) == (row.tokens_per_second, row.entropy_per_second)
    assert row.entropy_per_second <= row.bits_per_second


def test_a_model_that_params_no_longer_name_has_no_costs_of_tokens(reported: Path) -> None:
    """Its name alone does not tell its vocabulary: `a-b-c` may be `a` with `b-c`, or `a-b` with `c`."""
    summaries = summarise(read_summary(reported / "results/summary.csv"))
    lines = {line[0]: line for line in leaderboard.rows(summaries, sources_of(reported), {}, {})}
    assert [lines["bag_of_tokens-kmeans"][column] for column in (4, 5, 7)] == ["", "", ""]
    assert lines["ast"][7].endswith("MB")


def test_it_prints_as_a_table_and_as_markdown(reported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for markdown in (False, True):
        leaderboard.run(Layout(reported), EXPERIMENT, Console(width=40), markdown=markdown)
        out = capsys.readouterr().out
        assert all(name in out for name in ("accuracy", "mAP", *leaderboard.COSTS, "token_transformer-kmeans"))
        assert all(name in out for name in (*leaderboard.RATES, "on frames", "no same model on frames"))
    assert out.splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"


def test_models_with_several_labels_a_clip_are_sorted_by_map(reported: Path) -> None:
    """Here by the opposite of their accuracy."""
    kind: LabelKind = "many"
    runs = [
        replace(run, label_kind=kind, values=run.values | {"mAP": 1 - run.values["accuracy"], "accuracy": math.nan})
        for run in read_summary(reported / "results/summary.csv")
    ]
    summaries = summarise(runs)
    assert leaderboard.columns(summaries)[:3] == ("model", "mAP", "macro F1")
    lines = leaderboard.rows(summaries, sources_of(reported), EXPERIMENT.reads, {})
    assert lines[0][0] == "ast"
    precisions = [float(line[1].split()[0]) for line in lines]
    assert precisions == sorted(precisions)


def test_without_results_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        SonolexError, match="expected the results of a run, found none; `dvc repro` runs the experiment"
    ):
        leaderboard.run(Layout(tmp_path), EXPERIMENT, Console(), markdown=False)

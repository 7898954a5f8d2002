"""The leaderboard: models by accuracy, each with the costs of what it reads."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from test_reporting import EXPERIMENT, report, write_experiment

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.layout import Layout
from pipeline.errors import SonolexError
from pipeline.reporting.summary import read_summary, summarise
from tools import leaderboard


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("leaderboard")
    write_experiment(root, audio=False)
    report(root)
    return root


def test_models_climb_and_say_what_they_cost(reported: Path) -> None:
    runs = read_summary(reported / "results/summary.csv")
    sources = leaderboard.open_sources(Layout(reported), EXPERIMENT)
    lines = {line[0]: line for line in leaderboard.rows(summarise(runs), sources, EXPERIMENT.reads, {"ast": 2.5})}
    accuracies = [float(line[1].split()[0]) for line in lines.values()]
    assert accuracies == sorted(accuracies)
    assert set(lines) == {"ast", "token_transformer-kmeans", "bag_of_tokens-kmeans"}  # and no ensemble
    frames = sum(f.stat().st_size for f in (reported / "data/spectrogram/frames.zarr").rglob("*") if f.is_file())
    assert lines["ast"][3:] == ["1,234", "", "", "24", f"{frames / 1e6:,.2f} MB"]
    assert lines["bag_of_tokens-kmeans"][4:7] == [
        "100",
        "300",
        "",
    ]  # a token a frame, the bits of the fit, not trained here
    sizes = [(reported / f"data/tokens/kmeans/{fold}.parquet").stat().st_size for fold in "12"]
    assert sources["kmeans"].num_bytes == round(sum(sizes) / 2)


def test_a_model_that_params_no_longer_name_has_no_costs_of_tokens(reported: Path) -> None:
    """Its name alone does not tell its vocabulary: `a-b-c` may be `a` with `b-c`, or `a-b` with `c`."""
    summaries = summarise(read_summary(reported / "results/summary.csv"))
    lines = {
        line[0]: line
        for line in leaderboard.rows(summaries, leaderboard.open_sources(Layout(reported), EXPERIMENT), {}, {})
    }
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
    lines = leaderboard.rows(summaries, leaderboard.open_sources(Layout(reported), EXPERIMENT), EXPERIMENT.reads, {})
    assert lines[0][0] == "ast"
    precisions = [float(line[1].split()[0]) for line in lines]
    assert precisions == sorted(precisions)


def test_without_results_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        SonolexError, match="expected the results of a run, found none; `dvc repro` runs the experiment"
    ):
        leaderboard.run(Layout(tmp_path), EXPERIMENT, Console(), markdown=False)

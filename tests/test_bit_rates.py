"""Scores on tokens against those on frames, by bit rate."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, browse
from conftest import REPOSITORY
from test_reporting import CLIPS, EXPERIMENT, FOLDS, N_MELS, PARAMS, SIZE, report, rows, write_experiment

from pipeline.artifacts.layout import Layout
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.check_params import load_experiment
from pipeline.errors import ArtifactError, ParamsError, SonolexError
from pipeline.reporting.bit_rates import (
    BitRate,
    bit_rate_cells,
    compared_with,
    differ_in_input_alone,
    read_bit_rates,
    spell_rate,
    write_bit_rates,
)
from pipeline.reporting.report_settings import ReferenceParams
from pipeline.reporting.summary import read_summary
from pipeline.vocabulary.statistics import entropy


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bit_rates")
    write_experiment(root, audio=False)
    report(root, drawn="bit-rate")
    return root


def table(root: Path) -> dict[str, BitRate]:
    return {row.model: row for row in read_bit_rates(Layout(root).bit_rates)}


def test_rates_are_those_of_the_test_clips(reported: Path) -> None:
    found = table(reported)["token_transformer-kmeans"]
    assert (found.num_codebooks, found.num_tokens, found.tokens_per_second) == (1, SIZE, 100)
    assert found.bits_per_second == pytest.approx(100 * math.log2(SIZE), abs=1e-6)
    entropies = []
    for first, fold in enumerate(FOLDS):
        sequences = token_arrays(open_tokens(Layout(reported).tokens("kmeans", fold)))
        counts = np.bincount(np.concatenate([sequences[clip][0] for clip in CLIPS[first::2]]), minlength=SIZE)
        entropies.append(100 * entropy(counts))
    assert found.entropy_per_second == pytest.approx(np.mean(entropies), abs=1e-6)
    frames = table(reported)["ast"]
    assert (frames.num_codebooks, frames.tokens_per_second) == (0, 100)
    assert frames.bits_per_second == 100 * N_MELS * 32  # stored as float32
    assert math.isnan(frames.entropy_per_second)


def test_merged_tokens_are_as_many_as_test_clips_have(tmp_path: Path) -> None:
    write_experiment(tmp_path, audio=False, merges=[(0, 1), (SIZE, 0)])
    report(tmp_path)
    per_second = []
    for first, fold in enumerate(FOLDS):
        sequences = token_arrays(open_tokens(Layout(tmp_path).tokens("kmeans", fold)))
        merged = [sequences[clip].size for clip in CLIPS[first::2]]
        per_second.append(100 * sum(merged) / (28 * len(merged)))  # of 28 frames each, 100 a second
    found = table(tmp_path)["bag_of_tokens-kmeans"]
    assert found.tokens_per_second == pytest.approx(np.mean(per_second), abs=1e-5)
    assert found.bits_per_second == pytest.approx(np.mean(per_second) * math.log2(SIZE + 2), abs=1e-5)


def test_a_stack_beyond_the_end_of_a_clip_counts(tmp_path: Path) -> None:
    write_experiment(tmp_path, audio=False, stack=3)
    report(tmp_path)
    found = table(tmp_path)["bag_of_tokens-kmeans"]
    assert found.tokens_per_second == pytest.approx(100 * 10 / 28, abs=1e-5)  # ten tokens of 28 frames, 100 a second
    assert found.bits_per_second == pytest.approx(found.tokens_per_second * math.log2(SIZE), abs=1e-5)
    assert found.entropy_per_second < found.bits_per_second


def test_the_difference_is_that_from_the_same_model_on_frames(reported: Path) -> None:
    found = table(reported)["token_transformer-kmeans"]
    assert (found.reference, found.same_model, compared_with(found)) == ("ast", True, "ast")
    runs = read_summary(Layout(reported).summary)
    means = {
        (model, fold): np.mean([r.values["accuracy"] for r in runs if (r.model, r.fold) == (model, fold)])
        for model in ("ast", "token_transformer-kmeans")
        for fold in FOLDS
    }
    differences = [means["token_transformer-kmeans", fold] - means["ast", fold] for fold in FOLDS]
    assert found.difference == pytest.approx(np.mean(differences), abs=1e-6)
    assert found.difference < 0
    assert found.difference_deviation == pytest.approx(np.std(differences, ddof=1), abs=1e-6)


def test_another_model_is_no_reference_unless_it_is_named(reported: Path, tmp_path: Path) -> None:
    found = table(reported)["bag_of_tokens-kmeans"]
    assert (found.reference, math.isnan(found.difference)) == ("", True)
    assert compared_with(found) == "no same model on frames"
    assert bit_rate_cells(found)[-2:] == ("", "")
    write_experiment(tmp_path, audio=False)
    named = PARAMS.model_copy(update={"references": [ReferenceParams(tokens="bag_of_tokens", frames="ast")]})
    report(tmp_path, named)
    found = table(tmp_path)["bag_of_tokens-kmeans"]
    assert (found.reference, found.same_model) == ("ast", False)
    assert compared_with(found) == "ast, not the same model"
    assert math.isfinite(found.difference)


def test_the_recipes_have_models_that_differ_in_their_input_alone() -> None:
    models = load_experiment(REPOSITORY / "params.yaml").models
    sections = {name: model.model_dump(mode="json") for name, model in models.items()}
    pairs = {
        "token_transformer": "ast",
        "bert": "frames_transformer",
        "lstm": "frames_lstm",
        "token_cnn": "cnn",
        "token_textures": "frame_textures",
        "bag_of_tokens": "",
        "ngram": "",
    }
    frames = [name for name, model in models.items() if model.reads == "frames"]
    for tokens, expected in pairs.items():
        same = [name for name in frames if differ_in_input_alone(sections[tokens], sections[name])]
        assert same == ([expected] if expected else []), tokens


def test_the_table_comes_back_as_written(reported: Path, tmp_path: Path) -> None:
    path = Layout(reported).bit_rates
    write_bit_rates(tmp_path / "again.csv", read_bit_rates(path))
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()
    assert [row["model"] for row in rows(path)] == ["ast", "token_transformer-kmeans", "bag_of_tokens-kmeans"]
    with pytest.raises(
        SonolexError, match=r"none.csv: expected the table of bit rates, found none; `dvc repro report`"
    ):
        read_bit_rates(tmp_path / "none.csv")
    (tmp_path / "old.csv").write_text("model\nast\n")
    with pytest.raises(ArtifactError, match="columns"):
        read_bit_rates(tmp_path / "old.csv")


def test_cells_say_what_there_is(reported: Path) -> None:
    row = replace(table(reported)["token_transformer-kmeans"], num_codebooks=8, num_tokens=1024, difference=-0.0134)
    cells = bit_rate_cells(replace(row, difference_deviation=0.021, score=0.933, reference_score=0.946))
    assert (cells[0], cells[5:]) == ("8 × 1,024", ("93.3", "94.6", "\N{MINUS SIGN}1.3 ± 2.1"))
    assert bit_rate_cells(replace(row, difference=0.01, difference_deviation=math.nan))[-1] == "+1.0"
    assert bit_rate_cells(table(reported)["ast"])[0] == ""


def test_the_page_has_a_figure_for_each_width(reported: Path) -> None:
    page = Layout(reported).page.read_text()
    section = page.partition('<section id="bit-rate">')[2].partition("</section>")[0]
    assert section.count(">bit rate, bit/s</text>") == 2
    assert section.count(">accuracy, %</text>") == 2
    assert section.count("token_transformer-kmeans</text>") == 2
    assert re.findall(r">([\d,]+)</text>", section.partition("</svg>")[0])[0] in (
        "100",
        "1,000",
    )  # numbers, no formulas
    assert "no same model on frames" in section


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_figure_fits_a_phone(reported: Path, tmp_path: Path) -> None:
    with browse(Layout(reported).page, tmp_path) as page:
        for width in (1280, 390):
            page.resize(width, 900)
            assert page.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("tokens", "frames", "message"),
    [
        (
            "bert",
            "ast",
            r"tokens: expected an entry of experiment.token_models \(token_transformer, bag_of_tokens\), found 'bert'",
        ),
        ("bag_of_tokens", "cnn", r"frames: expected an entry of experiment.frame_models \(ast\), found 'cnn'"),
    ],
)
def test_a_comparison_of_models_that_there_are_not_is_refused(tokens: str, frames: str, message: str) -> None:
    named = PARAMS.model_copy(update={"references": [ReferenceParams(tokens=tokens, frames=frames)]})
    with pytest.raises(ParamsError, match=message):
        named.check_against(EXPERIMENT)


def test_a_rate_below_one_a_second_is_no_zero() -> None:
    assert [spell_rate(rate) for rate in (0.390625, 6.25, 102_400.0, 0.0)] == ["0.39", "6.2", "102,400", "0"]

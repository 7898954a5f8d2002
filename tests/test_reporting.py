"""The report, from artifacts written by hand to the page."""

import base64
import csv
import io
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from browser import CHROMIUM, browse
from conftest import REPOSITORY, documented_metric, make_clips, make_duplicates, make_spectrogram, make_waveform
from networks import build, network, params_of
from PIL import Image

from pipeline.artifacts.attention import ROLLOUT, attention_maps, open_attention
from pipeline.artifacts.clips import CLIPS as CLIPS_SCHEMA
from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.curves import write_fitted, writing_epochs
from pipeline.artifacts.layout import ALL_SEEDS, Layout, RunId
from pipeline.artifacts.missing import MISSING
from pipeline.artifacts.model import MODEL, open_model, read_card, write_model
from pipeline.artifacts.ngram_perplexity import ALL_CLASSES, NgramPerplexity, write_ngram_perplexity
from pipeline.artifacts.predictions import PREDICTIONS, open_predictions
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.splits import SPLIT, open_split
from pipeline.artifacts.tokens import TOKENS, open_tokens, token_arrays
from pipeline.artifacts.training_labels import TRAINING_LABELS
from pipeline.artifacts.vocabulary import VOCABULARY, open_vocabulary, special_tokens
from pipeline.check_params import load_experiment
from pipeline.errors import ArtifactError, ParamsError
from pipeline.evaluation.attention import AttentionReader
from pipeline.evaluation.ensemble import average_predictions
from pipeline.evaluation.intervals import wilson_interval
from pipeline.evaluation.metric_definition import Interval, reported_metrics
from pipeline.evaluation.metrics import evaluate_clips
from pipeline.evaluation.thresholds import FixedThreshold
from pipeline.execution.stage import StageReport
from pipeline.grid import EnsembleParams, ExperimentParams
from pipeline.models.base import NOT_NORMALISED
from pipeline.params import validate_params
from pipeline.reporting import drawing, figures, label_figures
from pipeline.reporting.assembly import held_out
from pipeline.reporting.model_styles import NUM_COLOURS, SHIPPED, model_styles
from pipeline.reporting.pictures import mel_picture, picture
from pipeline.reporting.plots import TrainingCurve
from pipeline.reporting.report_settings import ReportParams
from pipeline.reporting.summary import (
    Run,
    duration,
    headline_metrics,
    read_summary,
    results_table,
    spread,
    spread_parts,
    summarise,
    training_times,
    write_summary,
)
from pipeline.reporting.token_use import (
    compression,
    count_by_class,
    count_tokens,
    length_shares,
    spread_tokens,
    stabilities,
    token_statistics,
)
from pipeline.training.inputs import FrameInputs
from pipeline.vocabulary.bpe import Merger
from stages import attention, thresholds
from stages.report import run
from tools.compose import compose, dump

CLASSES = ("dog bark", "rain", "<saw>")  # the last one must be escaped
MODELS = ("ast", "token_transformer-kmeans", "bag_of_tokens-kmeans")
FOLDS, SEEDS, SIZE, N_MELS = ("1", "2"), (0, 1), 5, 8
CLIPS = [f"clip{number:02d}" for number in range(12)]  # clip number i: class i % 3, fold 1 + i % 2

EXPERIMENT = ExperimentParams(
    frame_models=["ast"],
    token_models=["token_transformer", "bag_of_tokens"],
    pretrained_models=[],
    supervised_vocabularies=[],
    learned_vocabularies=[],
    vocabularies=["kmeans"],
    folds=list(FOLDS),
    seeds=list(SEEDS),
    ensembles=[
        EnsembleParams(name="ensemble", models=["ast", "token_transformer-kmeans"]),
        EnsembleParams(name="ast_seeds", models=["ast"]),
    ],
)
PARAMS = ReportParams(headline=["ast", "token_transformer-kmeans"], examples=3, worst=2, attention=[], references=[])


def write_experiment(
    root: Path, *, label_kind: str = "one", audio: bool = True, merges: Sequence[tuple[int, int]] = (), stack: int = 1
) -> None:
    """Write every artifact that the report reads; ast is right everywhere but for clip04, the others are noisy."""
    generator = np.random.default_rng(0)
    (root / "audio").mkdir(parents=True)
    if audio:
        for clip in CLIPS:
            soundfile.write(root / "audio" / f"{clip}.wav", make_waveform("tone", 0.3), 16000)
    sources = [f"{clip}.wav" for clip in [*CLIPS, "gone"]]
    labels = [[number % 3] for number in range(12)] + [[0]]
    make_clips(root / "data" / "clips.parquet", root / "audio", sources, labels=labels)
    _rewrite_classes(root / "data" / "clips.parquet", label_kind)
    lost = {"clip_id": ["lost"], "source": ["lost.wav"], "set": ["train"], "reason": ["missing"]}
    MISSING.write(root / "data" / "missing.parquet", lost, {"corpus": "esc10", "listed": {"test": 5, "train": 8}})
    nothing = {"clip_id": [], "labels": [], "unknown": [], "soft": []}
    about = {"classes": list(CLASSES), "table": "", "fold": ""}
    TRAINING_LABELS.write(Layout(root).training_labels, nothing, about)
    frames = {clip: generator.normal(size=(28, N_MELS)).astype(np.float32) for clip in CLIPS}
    make_spectrogram(root / "data" / "spectrogram", frames, failed=["gone"])
    make_duplicates(root / "data" / "duplicates.parquet", [("clip02", "clip04"), ("clip02", "clip05")], lag=0.5)
    for fold in FOLDS:
        write_tokens(root / "data", fold, generator, merges, stack)
        rows = [
            NgramPerplexity(name, order, 2, 56, 0.56, 56.0 * order)
            for order in (1, 2, 3)
            for name in (ALL_CLASSES, *CLASSES)
        ]
        write_ngram_perplexity(Layout(root).ngram_perplexity("kmeans", fold), rows)
        roles = ["test" if str(1 + number % 2) == fold else "train" for number in range(12)]
        columns = {"clip_id": CLIPS, "role": roles}
        SPLIT.write(root / "data" / "splits" / f"{fold}.parquet", columns, {"fold": fold, "seed": 0, "rule": "by hand"})
        for model in MODELS:
            for seed in SEEDS:
                write_run(root, model, fold, seed, generator, label_kind)
    if label_kind == "many":
        thresholds.run(FixedThreshold(kind="fixed", value=0.5), EXPERIMENT, Layout(root))


def _rewrite_classes(path: Path, label_kind: str) -> None:
    from pipeline.artifacts.clips import CLIPS as SCHEMA

    table = SCHEMA.open(path)
    SCHEMA.write(path, table.columns, table.metadata | {"classes": list(CLASSES), "label_kind": label_kind})


def write_tokens(
    data: Path, fold: str, generator: np.random.Generator, merges: Sequence[tuple[int, int]] = (), stack: int = 1
) -> None:
    pairs = np.array(merges, np.int32).reshape(-1, 2)
    size = SIZE + len(pairs)
    bpe = {"num_tokens": size, "compression": 1.5} if merges else {}
    arrays = {
        "merges": pairs,
        "codebooks": generator.normal(size=(1, SIZE, N_MELS * stack)).astype(np.float32),
        "mean": np.ones(N_MELS, np.float32),
        "scale": np.full(N_MELS, 2.0, np.float32),
        "delta_scale": np.ones(N_MELS, np.float32),
        "centre": np.empty(0, np.float32),
        "components": np.empty((0, 0), np.float32),
        "levels": np.tile(np.float32([0, 1]), (1, SIZE, 1)),
        "counts": np.ones((1, SIZE), np.int64),
    }
    metadata = {
        "kind": "kmeans",
        "num_tokens": SIZE,
        "num_codebooks": 1,
        "normalisation": "standardise",
        "bands": [[0, N_MELS * stack]],
    }
    metadata |= {"additive": True, "own": {}}
    metadata["features"] = {"deltas": 0, "stack": stack, "groups": 1}
    metadata |= special_tokens(size) | {
        "bpe": bpe,
        "fold": fold,
        "role": "train",
        "front_end": {"n_mels": N_MELS, "frame_rate": 100.0, "units": "ln(power)"},
        "seed": 0,
    }
    path = data / "vocabulary" / "kmeans" / f"{fold}.zarr"
    fit = {"bits_per_second": 300.0, "distortion": 0.25}
    VOCABULARY.write(path, arrays, metadata | {"sample": {"clips": 6, "frames": 60}, "fit": fit})
    merger = Merger(pairs, SIZE)
    sequences = [merger.merge(generator.integers(0, SIZE - 1, -(-28 // stack))) for _ in CLIPS]
    tokens = {"clip_id": CLIPS, "tokens": [[sequence.tolist()] for sequence in sequences]}
    metadata = {"fold": fold, "vocabulary": open_vocabulary(path).digest(), "vocabulary_size": size, "num_codebooks": 1}
    TOKENS.write(data / "tokens" / "kmeans" / f"{fold}.parquet", tokens, metadata | {"frame_rate": 100.0 / stack})
    roles = ["test" if str(1 + number % 2) == fold else "train" for number in range(len(CLIPS))]
    SPLIT.write(
        data / "splits" / f"{fold}.parquet", {"clip_id": CLIPS, "role": roles}, {"fold": fold, "seed": 0, "rule": ""}
    )


def write_run(root: Path, model: str, fold: str, seed: int, generator: np.random.Generator, label_kind: str) -> None:
    test = [number for number in range(12) if str(1 + number % 2) == fold]
    targets = np.eye(3, dtype=np.float32)[[number % 3 for number in test]]
    logits = 6 * targets - 3 + (0 if model == "ast" else 4) * generator.normal(size=targets.shape)
    if model == "ast" and 4 in test:
        logits[test.index(4)] = [9, -3, -3]  # sure of class 0, actual class 1
    place = Path(model) / fold / str(seed)
    metadata = {"model": model, "fold": fold, "seed": seed, "classes": list(CLASSES), "label_kind": label_kind}
    columns = {
        "clip_id": [CLIPS[number] for number in test],
        "role": ["test"] * len(test),
        "logits": logits.astype(np.float32).tolist(),
        "targets": targets.tolist(),
    }
    reads = "frames" if model == "ast" else "tokens"
    params = (
        {"kind": "network", "input": {"kind": reads}} if model != "bag_of_tokens-kmeans" else {"kind": "bag_of_tokens"}
    )
    metadata |= {"reads": reads, "params": params}
    metadata |= {"weights": f"weights of {place}", "num_parameters": 1234, "clips_seen": 60}
    PREDICTIONS.write(root / "predictions" / place.with_suffix(".parquet"), columns, metadata)
    curves = root / "results" / "train" / place
    if model == "bag_of_tokens-kmeans":
        write_fitted(curves)
        return
    with writing_epochs(curves) as append:
        append({"loss": 2.0, "learning_rate": 0.001, "gradient_norm": 3.0})
        append({"loss": 1.0 if seed else 0.5, "learning_rate": 1e-5, "gradient_norm": 5.0})


def report(
    root: Path, params: ReportParams = PARAMS, experiment: ExperimentParams = EXPERIMENT, *, drawn: str = ""
) -> str:
    """Write the report and return its page; `drawn` matches the names of figures to draw, which takes most of the time."""

    def render(name: str, draw: Callable[[Sequence[Any]], None], **layout: Any) -> str:
        return drawing.render(name, draw, **layout) if re.fullmatch(drawn, name) else "<svg></svg>"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "render", render)
        patch.setattr(label_figures, "render", render)
        run(params, experiment, Layout(root), audio=root / "audio")
    return Layout(root).page.read_text()


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reported")
    write_experiment(root)
    report(root, drawn=".*")
    return root


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_are_at_most_twelve_rounded_scalars(reported: Path) -> None:
    metrics = json.loads((reported / "results" / "metrics.json").read_text())
    assert list(metrics) == ["ast", "token_transformer-kmeans", "ensemble"]
    scalars = [value for values in metrics.values() for value in values.values()]
    assert len(scalars) == 12
    assert [metrics[model]["num_clips"] for model in ("ast", "token_transformer-kmeans")] == [12, 12]
    assert all(round(value, 4) == value for value in scalars)
    # Five of six clips of fold 1 (clip04 is in it) and all of fold 2, whatever the seed.
    assert metrics["ast"]["accuracy"] == round((5 / 6 + 1) / 2, 4)
    assert metrics["ast"]["accuracy_deviation"] == round(statistics.stdev([5 / 6, 1]), 4)


def test_summary_has_one_row_a_run_and_comes_back_as_written(reported: Path, tmp_path: Path) -> None:
    runs = read_summary(reported / "results" / "summary.csv")
    assert len(runs) == (len(MODELS) * len(SEEDS) + 2) * len(FOLDS)
    assert {run.num_clips for run in runs} == {6}
    write_summary(tmp_path / "again.csv", runs)
    assert (tmp_path / "again.csv").read_bytes() == (reported / "results" / "summary.csv").read_bytes()
    table = results_table(runs)
    assert table.row_count == len(MODELS) + 2
    assert table.title == "Test clips: 12 over 2 folds, 2 seeds"


def test_plots_data_add_up(reported: Path) -> None:
    plots = reported / "results" / "plots"
    for model in (*MODELS, "ensemble"):
        confusion = rows(plots / "confusion" / f"{model}.csv")
        assert len(confusion) == 12
        assert {row["actual"] for row in confusion} == set(CLASSES)
        assert sum(int(row["num_positives"]) for row in rows(plots / "per_class" / f"{model}.csv")) == 12
    right = sum(row["actual"] == row["predicted"] for row in rows(plots / "confusion" / "ast.csv"))
    assert right == 11
    loss = rows(plots / "loss" / "ast.csv")
    assert loss[1] == {
        "epoch": "2", "loss": "0.750000", "lowest": "0.500000", "highest": "1.000000", "num_runs": "4",
        "learning_rate": "1e-05", "gradient_norm": "5.000000",
    }  # fmt: skip
    assert sorted(path.stem for path in (plots / "loss").iterdir()) == ["ast", "token_transformer-kmeans"]


def test_a_list_leads_to_the_atlas_of_every_vocabulary(reported: Path) -> None:
    page = (reported / "report" / "atlas.html").read_text()
    assert page.count('href="atlas/') == len(EXPERIMENT.vocabularies)
    assert all(f'href="atlas/{name}.html"' in page for name in EXPERIMENT.vocabularies)
    assert f'<td data-label="Tokens">1 × {SIZE}</td><td data-label="Token rate (1/s)">100</td>' in page
    assert 'href="atlas.html"' in (reported / "report" / "index.html").read_text()


def test_the_page_shows_the_perplexity_of_each_class(reported: Path) -> None:
    page = (reported / "report" / "index.html").read_text()
    figure = page.partition('aria-label="N-gram perplexity of the tokens of each class"')[2].partition("</figure>")[0]
    for name in (ALL_CLASSES, "order 3", "n-gram perplexity"):
        assert f">{name}</text>" in figure
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", figure)
    assert cells[:5] == ["4", "2.0", "4.0", "8.0", "300"]  # bits add up over folds


def test_lengths_of_tokens_by_hand(tmp_path: Path) -> None:
    write_tokens(tmp_path, "1", np.random.default_rng(0), merges=[(0, 1), (SIZE, 0)])
    vocabulary = open_vocabulary(tmp_path / "vocabulary" / "kmeans" / "1.zarr")
    # Tokens of one, two and three base tokens.
    shares = length_shares(vocabulary, [np.array([[3, SIZE, 3, 3, SIZE]]), np.array([[SIZE, 3, 3, 3, SIZE + 1]])])
    assert np.allclose(shares, [0, 0.6, 0.3, 0.1])
    assert np.isclose(compression(shares), (6 + 2 * 3 + 3) / 10)


def test_the_page_says_how_long_merged_tokens_are(reported: Path, tmp_path: Path) -> None:
    write_experiment(tmp_path, merges=[(0, 1), (SIZE, 0)])
    page = report(tmp_path, drawn="lengths")
    assert f"merged by byte-pair encoding, to {SIZE + 2} tokens in all" in page
    assert "a token stands for 1.50 base tokens on average in the training clips" in page
    sequences = token_arrays(open_tokens(tmp_path / "data" / "tokens" / "kmeans" / "1.parquet"))
    test = [sequences[clip].size for clip in CLIPS[0::2]]  # of fold 1
    assert f"and for {6 * 28 / sum(test):.2f} in test clips, in fold 2" in page
    assert ">length of a token, base tokens</text>" in page
    assert ">length of a token, base tokens</text>" not in (reported / "report" / "index.html").read_text()


def test_the_page_draws_the_rate_and_the_gradients_beside_the_loss(reported: Path) -> None:
    page = (reported / "report" / "index.html").read_text()
    figure = page[page.index('<section id="training">') :].partition("</section>")[0]
    for label in ("training loss", "learning rate", "gradient norm"):
        assert f">{label}</text>" in figure


def test_models_of_one_colour_differ_in_their_lines() -> None:
    curve = TrainingCurve([1, 2, 3], [3.0, 2, 1], [3.0, 2, 1], [3.0, 2, 1], [1, 1, 1])
    curves = {f"m{number}": dict.fromkeys(("loss", "learning_rate", "gradient_norm"), curve) for number in range(9)}
    shown = [dict(list(curves.items())[:number]) for number in (8, 9)]
    eight, nine = (figures.training_figure(some, model_styles(some)) for some in shown)
    assert "stroke-dasharray" not in eight
    assert nine.count("stroke-dasharray") == 2 * 4  # three axes and the legend, at two widths


def test_page_stands_alone_and_shows_what_was_run(reported: Path) -> None:
    page = (reported / "report" / "index.html").read_text()
    markup = re.sub(r'"data:[^"]*"', '""', page)
    assert not re.search(r"https?:|//[a-z]|@import|<link|src=\"[^\"]", markup)
    assert str(reported) not in page
    for section in (
        "results",
        "folds",
        "training",
        "confusion",
        "classes",
        "vocabulary",
        "examples",
        "mistakes",
        "failed",
    ):
        assert f'<section id="{section}">' in page
    assert page.count("<audio") == 5  # 3 examples, 2 mistakes
    assert "&lt;saw&gt;" in page
    assert "<saw>" not in page
    assert ">gone</summary>" in page
    assert "without epochs: bag_of_tokens-kmeans." in page
    images = re.findall(r"<img[^>]*>", page)
    assert images
    assert all('alt="' in image for image in images)
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def train_transformers(root: Path) -> None:
    """Write an untrained transformer for every run of the models called ast, as what made their predictions."""
    section = network("frames", input__normalisation="none") | {
        "stem": {"kind": "convolution", "channels": [4], "strides": [[4, 2]], "kernel": 3},
        "encoder": {"kind": "transformer", "width": 8, "depth": 1, "heads": 2, "mlp_ratio": 1.0, "drop_path": 0.0},
    }
    params = params_of(section)
    model = build(section, {"n_mels": N_MELS}, len(CLASSES))
    weights = {name: values.numpy() for name, values in model.state_dict().items()}
    metadata = {"params": params.model_dump(mode="json"), "input": {"n_mels": N_MELS, "normalisation": NOT_NORMALISED}}
    metadata |= {"source": "", "front_end": {}}
    layout = Layout(root)
    for fold, seed in product(FOLDS, SEEDS):
        this = RunId.of("ast", fold, seed)
        table = open_predictions(layout.prediction(this))
        shared = {name: table.metadata[name] for name in get_type_hints(MODEL.metadata) if name in table.metadata}
        write_model(layout.model(this), weights, shared | metadata)
        digest = read_card(layout.model(this))["weights"]
        PREDICTIONS.write(table.path, table.columns, table.metadata | metadata_of(params) | {"weights": digest})


def metadata_of(params: Any) -> dict[str, Any]:
    return {"params": params.model_dump(mode="json")}


ATTENTIVE = PARAMS.model_copy(update={"attention": ["ast"]})


@pytest.fixture(scope="module")
def attended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an experiment with transformers and their attention maps."""
    root = tmp_path_factory.mktemp("attended")
    write_experiment(root)
    train_transformers(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        attention.run(ATTENTIVE, EXPERIMENT, Layout(root), entry="ast")
    return root


def test_attention_is_computed_for_the_clips_that_the_report_shows(attended: Path, tmp_path: Path) -> None:
    table = open_attention(Layout(attended).attention("ast"))
    assert (table.metadata["model"], table.metadata["seed"], table.metadata["layer"]) == ("ast", 0, ROLLOUT)
    maps = attention_maps(table)
    page = report(attended, ATTENTIVE)
    assert set(re.findall(r'class="id">(\w+)', page)) == set(maps)
    model = open_model(Layout(attended).model(RunId.of("ast", "1", 0)))
    reader = AttentionReader(model, FrameInputs(open_spectrogram(Layout(attended).spectrogram)))
    for clip, fold in zip(table.list("clip_id"), table.list("fold"), strict=True):
        assert fold == str(1 + CLIPS.index(clip) % 2)  # that which tests the clip
        if fold == "1":
            np.testing.assert_array_equal(maps[clip], reader.read(clip).over_spectrogram().astype(np.float32))
    first = table.path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        attention.run(ATTENTIVE, EXPERIMENT, Layout(attended), entry="ast")
    assert table.path.read_bytes() == first


def test_attention_refuses_a_model_that_did_not_predict(attended: Path, tmp_path: Path) -> None:
    shutil.copytree(attended, tmp_path / "a")
    path = Layout(tmp_path / "a").model(RunId.of("ast", "1", 0))
    card = {name: value for name, value in read_card(path).items() if name != "weights"}
    write_model(path, {name: values + 1 for name, values in open_model(path).weights.items()}, card)
    with pytest.raises(
        ArtifactError, match=r"ast/1/0\.parquet: metadata weights: expected \w+, as .*models/ast/1/0, found"
    ):
        attention.run(ATTENTIVE, EXPERIMENT, Layout(tmp_path / "a"), entry="ast")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"examples": 9},
            r"ast\.parquet: clip_id: expected the \d+ clips that the report shows, found \d missing \(clip",
        ),
        (
            {"attention": ["ast"], "seeds": [1]},
            "weights of fold 1: expected none: the experiment has no such fold and seed",
        ),
        (
            {"attention": ["cnn"]},
            r"report\.attention: expected entries of experiment\.frame_models \(ast\), found 'cnn'",
        ),
    ],
)
def test_attention_that_does_not_fit_is_named(attended: Path, params: dict[str, Any], message: str) -> None:
    seeds = {"seeds": params.pop("seeds", list(SEEDS))}
    with pytest.raises((ArtifactError, ParamsError), match=message):
        report(attended, ATTENTIVE.model_copy(update=params), EXPERIMENT.model_copy(update=seeds))


def test_a_second_report_is_identical_and_needs_no_model_and_no_training_code(
    reported: Path, attended: Path, tmp_path: Path
) -> None:
    """It reads artifacts: an edit of the training code, or a model that nobody pulled, does not concern it."""
    shutil.copytree(attended, tmp_path / "a", ignore=shutil.ignore_patterns("models"))
    write_experiment(tmp_path / "b")
    program = f"""
        import sys
        for name in ("pipeline.models", "pipeline.training", "dvc", "dvclive"):
            sys.modules[name] = None  # an import of it, or of a module in it, fails
        from pathlib import Path
        from pipeline.reporting import figures
        from stages.report import ExperimentParams, Layout, ReportParams, run
        experiment = ExperimentParams(**{EXPERIMENT.model_dump()})
        run(ReportParams(**{PARAMS.model_dump()}), experiment, Layout(Path("b")), audio=Path("b/audio"))
        figures.render = lambda name, draw, **layout: "<svg></svg>"
        run(ReportParams(**{ATTENTIVE.model_dump()}), experiment, Layout(Path("a")), audio=Path("a/audio"))
        assert "torch" not in sys.modules
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    for name in ("results/metrics.json", "results/summary.csv", "report/index.html"):
        assert (tmp_path / "b" / name).read_bytes() == (reported / name).read_bytes(), name
    assert (tmp_path / "a/report/index.html").read_bytes() == report(attended, ATTENTIVE).encode()


def test_cards_show_what_a_transformer_attends_to(attended: Path, reported: Path) -> None:
    assert "Attention of" not in (reported / "report/index.html").read_text()
    page = report(attended, ATTENTIVE)
    assert page.count("Attention of ast</span>") == 5  # 3 examples, 2 mistakes
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)" alt="The same spectrogram in grey', page)
    assert len(set(pictures)) >= 4  # one clip is in both
    colours = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0]))).convert("RGB"), dtype=float)
    assert colours.shape == (N_MELS, 28, 3)
    assert np.abs(colours[:, :, 0] - colours[:, :, 2]).max() > 50  # red over the grey


def test_pictures_of_frames_have_a_palette_and_the_colours_that_they_had() -> None:
    frames = np.random.default_rng(0).normal(size=(300, 64))
    levels = np.clip((frames + 2) / 4, 0, 1)
    expected = np.round(mpl.colormaps["magma"](levels.T[::-1])[:, :, :3] * 255).astype(np.uint8)
    drawn = mel_picture(frames, -2.0, 2.0)
    image = Image.open(io.BytesIO(base64.b64decode(drawn.partition(",")[2])))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), expected)
    many = np.random.default_rng(1).random((64, 64, 3))
    image = Image.open(io.BytesIO(base64.b64decode(picture(many).partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(image), np.round(many * 255).astype(np.uint8))


def test_the_surest_mistake_comes_first(reported: Path) -> None:
    page = (reported / "report" / "index.html").read_text()
    assert re.search(r'class="id">(\w+)', page[page.index('<section id="mistakes">') :])[1] == "clip04"


def test_many_labels_without_audio(tmp_path: Path) -> None:
    write_experiment(tmp_path, label_kind="many", audio=False)
    page = report(tmp_path, drawn="results|classes")
    assert "Audio not on this machine" in page
    assert '<section id="confusion">' not in page
    assert not (tmp_path / "results" / "plots" / "confusion").exists()
    runs = read_summary(tmp_path / "results" / "summary.csv")
    ast = summarise(runs)[0]
    assert f"{100 * ast.mean['mAP']:.1f}<small> {spread_parts(ast, 'mAP')[1]} % mAP</small>" in page
    assert f'<div class="reads">macro F1 {spread(ast, "macro_f1")}</div>' in page
    assert "mAP, with macro F1 in grey, in percent. The highest mAP of each fold is bold." in page
    assert all(f">{axis}, %</text>" in page for axis in ("mAP", "macro F1"))
    assert "% accuracy" not in page
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert set(metrics["ensemble"]) == {"mAP", "macro_f1"}
    assert sum(map(len, metrics.values())) == 12
    labels = page[page.index('<section id="labels">') :].partition("</section>")[0]
    assert "Worst clips" in labels
    assert '<div class="pair">' in labels  # a matrix of few classes has room beside the histogram
    assert '<table class="many">' in page
    assert "clip04" in labels.partition("<tbody>")[2].partition("</tr>")[0]  # the worst of ast
    assert "reaches its threshold (0.5, as given in params.yaml)" in page
    assert '<section id="calibration">' in page
    table = results_table([replace(run, values=run.values | {"mAP": float(run.model == "ast_seeds")}) for run in runs])
    assert [row.style for row in table.rows] == ["", "", "", "", "bold"]


def test_frame_models_alone_need_no_vocabulary(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    alone: dict[str, object] = {"token_models": [], "vocabularies": [], "folds": ["1"], "seeds": [0], "ensembles": []}
    one = EXPERIMENT.model_copy(update=alone)
    for folder in Layout(tmp_path).folders_read_whole:  # as the stage `code` leaves those that nothing is written to
        if folder.name in ("tokens", "vocabulary", "ngram_perplexity", "attention"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
    page = report(
        tmp_path,
        ReportParams(headline=["ast"], examples=1, worst=0, attention=[], references=[]),
        one,
        drawn="results|classes",
    )
    assert '<section id="vocabulary">' not in page
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert set(metrics["ast"]) == {"accuracy", "mAP", "num_clips"}  # one fold has no deviation, one model no ensemble


def test_a_vocabulary_that_no_model_reads_is_shown(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    unread = EXPERIMENT.model_copy(update={"token_models": [], "ensembles": []})
    page = report(
        tmp_path,
        ReportParams(headline=["ast"], examples=1, worst=0, attention=[], references=[]),
        unread,
        drawn="ranks|codebook",
    )
    assert '<section id="vocabulary">' in page
    assert "Token sequence</span>" in page


def copy_with_metric(root: Path) -> Path:
    """Copy the sources, and add the metric of docs/extending.md as it stands there."""
    path, source = documented_metric()
    for top in ("pipeline", "stages", "tools"):
        shutil.copytree(REPOSITORY / top, root / top, ignore=shutil.ignore_patterns("__pycache__"))
    assert not (root / path).exists()
    (root / path).write_text(source)
    return root


def python(root: Path, *arguments: str) -> str:
    """Run Python on the sources of a copy and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(root), "COLUMNS": "250"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def with_metric(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return the folder of two reported experiments, `one` and `many`, with the metric, and the tables of their results."""
    root = copy_with_metric(tmp_path_factory.mktemp("with_metric"))
    for label_kind in ("one", "many"):
        write_experiment(root / label_kind, label_kind=label_kind, audio=False)
        shutil.copy(REPOSITORY / "params.yaml", root / label_kind)
    program = f"""
        from contextlib import chdir
        from pathlib import Path
        from pipeline.reporting import figures
        from stages.report import ExperimentParams, Layout, ReportParams, run
        from tools.sonolex import app
        figures.render = lambda name, draw, **layout: "<svg></svg>"  # drawing takes most of the time
        params, experiment = ReportParams(**{PARAMS.model_dump()}), ExperimentParams(**{EXPERIMENT.model_dump()})
        for label_kind in ("one", "many"):
            with chdir(label_kind):
                run(params, experiment, Layout(Path(".")), audio=Path("audio"))
                print("\\f", flush=True)
                app(["results"], standalone_mode=False)
    """
    return root, python(root, "-c", textwrap.dedent(program)).split("\f")[1:]


@pytest.mark.parametrize(("number", "label_kind"), list(enumerate(["one", "many"])))
def test_a_metric_of_one_file_is_everywhere(with_metric: tuple[Path, list[str]], number: int, label_kind: str) -> None:
    root, table = with_metric[0] / label_kind, with_metric[1][number]
    page = (root / "report/index.html").read_text()
    metrics = json.loads((root / "results/metrics.json").read_text())["ast"]
    values = [float(row["cross_entropy"]) for row in rows(root / "results/summary.csv")]
    holds = label_kind == "one"  # for others it is undefined, and shown nowhere
    assert [math.isfinite(value) for value in values] == [holds] * len(values)
    assert ("Cross-entropy" in table, ">Cross-entropy</button>" in page) == (holds, holds)
    assert ({"cross_entropy", "cross_entropy_deviation"} <= set(metrics)) is holds
    if holds:
        # ast is right everywhere with a logit 6 above the others, but for one of twelve clips, 12 below.
        right, wrong = math.log(1 + 2 * math.exp(-6)), math.log(1 + math.exp(12) + 1)
        assert metrics["cross_entropy"] == pytest.approx((11 * right + wrong) / 12, abs=1e-3)
        assert "Cross-entropy is the mean over clips of −ln of the probability" in page
        assert "in nats; lower is better." in page
        section = page[page.index('<section id="results">') :]
        best = re.search(r'class="best" data-label="Cross-entropy" data-value="([\d.]+)"', section)
        assert best is not None
        means = re.findall(r'data-label="Cross-entropy" data-value="([\d.]+)"', section)
        assert float(best[1]) == min(map(float, means))


def test_two_metrics_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = copy_with_metric(tmp_path) / "pipeline/evaluation/reported"
    shutil.copy(folder / "cross_entropy.py", folder / "again.py")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    program = "from pipeline.evaluation.metric_definition import reported_metrics; reported_metrics()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "cross_entropy: METRICS: expected names of their own, found 'cross_entropy' a second time" in done.stderr


def test_shipped_models_keep_their_colours_whatever_stands_beside_them() -> None:
    alone = {name: model_styles([name])[name] for name in SHIPPED}
    assert model_styles(["mine", *SHIPPED, "ensemble2"]) | alone == model_styles(["mine", *SHIPPED, "ensemble2"])
    assert len(set(SHIPPED.values())) == len(SHIPPED)
    document, _ = compose("demo", [], REPOSITORY / "recipes")
    demo = ExperimentParams(**document["experiment"])
    shown = [*demo.models, *(ensemble.name for ensemble in demo.ensembles)]
    assert set(shown) <= set(SHIPPED)
    assert len({SHIPPED[name].colour for name in shown}) == len(shown)


def test_other_models_have_a_colour_by_name_and_none_that_is_taken() -> None:
    first = model_styles(["mine"])["mine"]
    assert first == SHIPPED["cnn"]  # by chance, so that it moves where both are shown, whatever their order
    assert model_styles(["mine", "ast", "frame_textures"])["mine"] == first
    moved = model_styles(["mine", "cnn"])
    assert moved == model_styles(["cnn", "mine"])
    assert (moved["cnn"], moved["mine"].colour) == (first, (first.colour + 1) % NUM_COLOURS)
    many = [f"model{number}" for number in range(32)]
    styles = model_styles(many)
    assert len(set(styles.values())) == 32
    assert len({style.colour for style in model_styles(many[:8]).values()}) == 8
    assert model_styles([*many[:3], "ast"])["ast"] == SHIPPED["ast"]


def test_folds_say_which_speakers_they_hold_out(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    path = tmp_path / "data" / "clips.parquet"
    for groups, expected in (
        (["anna", "ben"], {"1": "anna", "2": "ben"}),
        (["anna", "ben", "carl", "dora"], {"1": "anna, carl", "2": "ben, dora"}),
        (list("abcdefghij"), {"1": "5 groups of clips", "2": "5 groups of clips"}),
        (CLIPS, {"1": "", "2": ""}),  # every clip by itself
    ):
        table = open_clips(path)
        group = pa.array([groups[number % len(groups)] for number in range(len(table))])
        columns = table.columns.set_column(table.columns.schema.get_field_index("group"), "group", group)
        CLIPS_SCHEMA.write(path, columns, table.metadata)
        found = {
            fold: held_out(open_clips(path), open_split(tmp_path / f"data/splits/{fold}.parquet")) for fold in FOLDS
        }
        assert found == expected
        if groups == ["anna", "ben"]:
            page = report(tmp_path)
            assert 'Fold 1<br><span class="pm">6 test clips; anna</span>' in page
            assert re.search(r'class="id">clip\d\d · fold 1 \(anna\)</p>', page)
            assert "<dt>Folds</dt><dd>1 (anna), 2 (ben)</dd>" in page


def test_names_of_models_can_be_copied_from_the_page(reported: Path) -> None:
    page = (reported / "report/index.html").read_text().replace("<wbr>", "")
    text = re.sub(r"data:[^\"]*|<[^>]*>", " ", page)
    for model in (*MODELS, "ast_seeds"):
        assert model in text
        assert model.replace("_", " ") not in text.replace(model, "") or "_" not in model


def test_headings_are_those_of_the_field(reported: Path) -> None:
    page = (reported / "report/index.html").read_text()
    for heading in ("Confusion matrix", "Per-class average precision", "Perplexity of the next token"):
        assert re.search(rf"<h[23][^>]*>{heading}</h[23]>", page)
    for head in (
        "Top token share",
        "Bit rate (bit/s)",
        "Unexplained variance",
        "Mutual information with the class (bits)",
    ):
        assert re.search(rf'<th scope="col"[^>]*>{re.escape(head)}</th>', page)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_the_page_fits_a_desk_and_a_phone_and_players_know_their_duration(attended: Path, tmp_path: Path) -> None:
    report(attended, ATTENTIVE, drawn=".*")
    with browse(attended / "report/index.html", tmp_path) as page:
        for width in (1280, 390):
            page.resize(width, 900)
            assert page.run("document.documentElement.scrollWidth") <= width
            scrolled = "n => n.checkVisibility() && n.scrollWidth > n.clientWidth + 1"
            assert page.run(f"[...document.querySelectorAll('.scroll, figure')].filter({scrolled}).length") == 0
            smallest = page.run(
                """Math.min(...[...document.querySelectorAll('svg text')].filter(n => n.checkVisibility()).map(text => {
                const svg = text.ownerSVGElement, scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
                return parseFloat(getComputedStyle(text).fontSize) * scale; }))"""
            )
            assert smallest > 9  # CSS pixels
        players = "[...document.querySelectorAll('audio')]"
        page.wait(f"{players}.every(player => player.readyState > 0)")
        assert page.run(f"{players}.map(player => player.duration)") == pytest.approx([0.3] * 5, abs=0.01)
        assert page.errors == []


def test_a_single_fold_has_intervals_in_table_and_page(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    page = report(tmp_path, experiment=EXPERIMENT.model_copy(update={"folds": ["1"]}), drawn="results")
    runs = read_summary(tmp_path / "results/summary.csv")
    ast = summarise(runs)[0]
    assert ast.interval["accuracy"] == pytest.approx(wilson_interval(5 / 6, 6), abs=1e-6)
    low, high = ast.interval["mAP"]
    assert 0 < low <= ast.mean["mAP"] <= high <= 1
    shown = f"[{100 * ast.interval['accuracy'].low:.1f}, {100 * ast.interval['accuracy'].high:.1f}]"
    assert f'83.3 <span class="pm">{shown}</span>' in page
    assert f"83.3<small> {shown} % accuracy" in page
    assert "In brackets the 95 % interval over test clips" in page
    table = results_table(runs)
    assert next(iter(table.columns[2].cells)) == f"83.3 {shown} %"
    assert "95 % interval" in str(table.caption)
    assert "interval" not in results_table(runs + [replace(run, fold="2") for run in runs]).caption


def test_training_times_are_those_of_this_machine(reported: Path, tmp_path: Path) -> None:
    runs = read_summary(reported / "results/summary.csv")
    assert training_times(runs, tmp_path) == {}  # a clone
    for fold, seed in product(FOLDS, SEEDS):
        for model, result in (("ast", f"weights of ast/{fold}/{seed}"), ("bag_of_tokens-kmeans", "others")):
            timed = StageReport("train", f"{model}/{fold}/{seed}", result=result)
            timed.time_training(60.0 + seed)
            timed.write(tmp_path / f"train-{model}-{fold}-{seed}.json")
    times = training_times(runs, tmp_path)
    assert times == {"ast": 60.5}  # the other's reports are of models that are no more
    column = results_table(runs, times).columns[-1]
    assert list(column.cells) == ["1 min 00 s", "", "", "", ""]
    assert "seconds" not in (reported / "results/summary.csv").read_text().partition("\n")[0]


def remove_predictions(root: Path) -> None:
    (root / "predictions" / "ast" / "2" / "1.parquet").unlink()


def swap_seeds(root: Path) -> None:
    (root / "predictions" / "ast" / "2" / "1.parquet").replace(root / "predictions" / "ast" / "2" / "0.parquet")


def remove_curves(root: Path) -> None:
    (root / "results" / "train" / "ast" / "1" / "0" / "epochs.csv").unlink()


def remove_perplexity(root: Path) -> None:
    (root / "results" / "ngram_perplexity" / "kmeans" / "2.csv").unlink()


def drop_epoch(root: Path) -> None:
    (root / "results" / "train" / "ast" / "1" / "0" / "epochs.csv").write_text("epoch,loss,learning_rate\n2,1,1\n")


def break_curves(root: Path) -> None:
    path = root / "results" / "train" / "ast" / "1" / "0" / "epochs.csv"
    path.write_text(path.read_text().replace("\n2,", "\n3,"))


def refit_vocabulary(root: Path) -> None:
    write_tokens(root / "other", "1", np.random.default_rng(5))
    (root / "other" / "tokens" / "kmeans" / "1.parquet").replace(root / "data" / "tokens" / "kmeans" / "1.parquet")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_predictions, r"predictions/ast/2/1\.parquet: file: expected a predictions table.* 'evaluate_\*'"),
        (swap_seeds, "metadata seed: expected 0, found 1"),
        (remove_curves, r"ast/1/0/epochs\.csv: file: expected a row for each epoch.* 'train_\*'"),
        (drop_epoch, r"ast/1/0/epochs\.csv: columns: expected gradient_norm, found epoch, loss, learning_rate"),
        (break_curves, r"ast/1/0/epochs\.csv: epoch: expected 1, 2, \.\.\. in order, found \[1\.0, 3\.0\]"),
        (remove_perplexity, r"kmeans/2\.csv: file: expected a row for each class.*single-item ngram_perplexity"),
        (refit_vocabulary, r"tokens/kmeans/1\.parquet: metadata vocabulary: expected"),
    ],
)
def test_artifacts_that_are_missing_or_do_not_fit_are_named(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write_experiment(tmp_path)
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        report(tmp_path)


def test_headline_must_name_models_of_the_experiment() -> None:
    with pytest.raises(ParamsError, match=r"report\.headline: .*found 'vgg'"):
        ReportParams(headline=["vgg"], examples=0, worst=0, attention=[], references=[]).check_against(EXPERIMENT)


def test_attention_must_name_networks_with_a_map_over_frames(tmp_path: Path) -> None:
    overrides = ["report.attention=[ast, frame_statistics, token_transformer]"]
    document, _ = compose("demo", overrides, REPOSITORY / "recipes")
    (tmp_path / "params.yaml").write_text(dump(document))
    with pytest.raises(ParamsError) as caught:
        load_experiment(tmp_path / "params.yaml")
    for expected in (
        "params.yaml: report.attention: expected networks with one of the encoders transformer, conformer, cnn, "
        "timm, found frame_statistics of kind frame_statistics; remove it",
        "params.yaml: report.attention: expected entries of experiment.frame_models (ast, frame_textures, "
        "frame_statistics), found 'token_transformer'; take it out, or set report.attention to []",
    ):
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": ["1", "1"]}, "folds: expected each entry once, found 1 again"),
        ({"seeds": []}, r"experiment\.seeds"),
        ({"frame_models": [], "token_models": []}, "at least one model"),
        ({"token_models": ["ast"]}, "frame_models and token_models: expected each entry once"),
        ({"folds": ["../x"]}, r"folds\.0: expected a name of"),
        ({"ensembles": [{"name": "ast", "models": ["ast"]}]}, "found ast for the model ast and for the ensemble ast"),
        ({"ensembles": [{"name": "two", "models": ["ast", "ast"]}]}, "models of two: expected each entry once"),
        ({"ensembles": [{"name": "two", "models": ["vgg"]}]}, r"expected two to name models of .*found vgg"),
        ({"ensembles": [{"name": "a/b", "models": ["ast"]}]}, r"ensembles\.0\.name: expected a name of"),
        ({"ensembles": [{"name": "none", "models": []}]}, r"experiment\.ensembles\.0\.models"),
    ],
)
def test_experiment_params_name_the_mistake(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        validate_params(ExperimentParams, EXPERIMENT.model_dump() | change, "experiment")


def make_run(model: str, fold: str, seed: int, accuracy: float, d_prime: float = 1.0) -> Run:
    values = dict.fromkeys(reported_metrics(), 0.5) | {"accuracy": accuracy, "mAP": accuracy, "d_prime": d_prime}
    intervals = dict.fromkeys(("accuracy", "mAP"), Interval(accuracy, accuracy))
    return Run(
        model=model, label_kind="one",
        reads="frames", fold=fold, seed=str(seed), num_clips=10, num_present_classes=3, values=values,
        intervals=intervals, num_parameters=7, clips_seen=70, weights="w",
    )  # fmt: skip


def test_seeds_are_averaged_before_folds() -> None:
    summary = summarise(
        [make_run("a", "1", 0, 0.2), make_run("a", "1", 1, 0.4), make_run("a", "2", 0, 0.9), make_run("a", "2", 1, 0.9)]
    )[0]
    assert summary.mean["accuracy"] == pytest.approx(0.6)
    assert summary.deviation["accuracy"] == pytest.approx(statistics.stdev([0.3, 0.9]))
    assert (summary.num_folds, summary.num_seeds, summary.num_clips) == (2, 2, 20)


def test_a_deviation_between_seeds_is_that_of_their_means_over_folds() -> None:
    runs = [make_run("a", fold, seed, 0.5 + 0.1 * seed + 0.2 * (fold == "2")) for fold in "12" for seed in (0, 1)]
    summary = summarise(runs)[0]
    assert summary.seed_deviation["accuracy"] == pytest.approx(statistics.stdev([0.6, 0.7]))
    assert math.isnan(summarise(runs[::2])[0].seed_deviation["accuracy"])  # of one seed alone


def test_an_ensemble_of_one_model_and_one_seed_equals_it(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    alone = EXPERIMENT.model_copy(
        update={"seeds": [0], "ensembles": [EnsembleParams(name="same", models=["token_transformer-kmeans"])]}
    )
    report(tmp_path, experiment=alone)
    runs = read_summary(tmp_path / "results" / "summary.csv")
    member, same = ([r for r in runs if r.model == model] for model in ("token_transformer-kmeans", "same"))
    assert repr([replace(run, model="same", seed=ALL_SEEDS, weights="") for run in member]) == repr(same)  # NaN too


def test_an_ensemble_averages_every_seed_of_every_model(reported: Path) -> None:
    runs = [r for r in read_summary(reported / "results" / "summary.csv") if r.model == "ensemble"]
    assert [(run.fold, run.seed) for run in runs] == [(fold, ALL_SEEDS) for fold in FOLDS]
    paths = [reported / f"predictions/{model}/1/{seed}.parquet" for model in EXPERIMENT.models[:2] for seed in SEEDS]
    expected = evaluate_clips(average_predictions([open_predictions(path) for path in paths], "test"))
    assert runs[0].values["mAP"] == pytest.approx(expected.values["mAP"], abs=1e-6)
    assert runs[0].num_parameters == 4 * 1234


def test_infinite_and_undefined_values_do_not_stop_the_summary() -> None:
    runs = [make_run("a", "1", 0, math.nan, math.inf), make_run("a", "2", 0, math.nan, math.inf)]
    summary = summarise(runs)[0]
    assert summary.mean["d_prime"] == math.inf
    assert headline_metrics([summary], ["a"]) == {"a": {"num_clips": 20}}
    assert results_table(runs).row_count == 1


def test_a_single_folds_interval_is_the_mean_of_its_seeds_limits() -> None:
    limits = [(0.5, (0.2, 0.6)), (0.7, (0.4, 0.9)), (0.7, (0.6, 0.9))]
    runs = [
        replace(make_run("a", "1", seed, accuracy), intervals={"accuracy": Interval(*own)})
        for seed, (accuracy, own) in enumerate(limits)
    ]
    runs[0] = replace(runs[0], num_parameters=5, clips_seen=64)
    summary = summarise(runs)[0]
    assert summary.interval == {"accuracy": pytest.approx((0.4, 0.8))}
    assert (summary.num_parameters, summary.clips_seen) == (7, 68)
    assert spread(summary, "accuracy") == "63.3 [40.0, 80.0] %"
    assert math.isnan(summary.deviation["accuracy"])
    assert summarise([*runs, make_run("a", "2", 0, 0.5)])[0].interval == {}


def test_means_are_spelled_with_their_uncertainty() -> None:
    summary = summarise([make_run("a", "1", 0, 0.91, 1.25), make_run("a", "2", 0, 0.95, 1.75)])[0]
    assert spread(summary, "accuracy") == "93.0 ± 2.8 %"
    assert spread(summary, "AUC") == "0.500 ± 0.000"
    assert spread(summary, "d_prime") == "1.50 ± 0.35"
    for value, expected in ((math.inf, "∞ %"), (-math.inf, "-∞ %"), (math.nan, "n/a %")):
        changed = replace(summary, mean=summary.mean | {"accuracy": value})
        assert spread(changed, "accuracy") == expected
    unsure = replace(summary, deviation=summary.deviation | {"AUC": math.inf})
    assert spread(unsure, "AUC") == "0.500"


def test_headline_metrics_are_of_the_models_named_and_the_first_ensemble() -> None:
    runs = [make_run(model, fold, 0, 0.123456) for model in ("a", "b") for fold in "12"]
    runs += [replace(make_run(name, fold, 0, 0.5), seed=ALL_SEEDS) for name in ("x", "y") for fold in "12"]
    assert headline_metrics(summarise(runs), ["b"]) == {
        "b": {"accuracy": 0.1235, "accuracy_deviation": 0.0, "mAP": 0.1235, "mAP_deviation": 0.0, "num_clips": 20},
        "x": {"accuracy": 0.5, "mAP": 0.5},
    }


def test_durations_are_spelled() -> None:
    assert [duration(s) for s in (0.04, 59.94, 59.97, 185, 3599, 3600, 7800)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "3 min 05 s",
        "59 min 59 s",
        "1 h 00 min",
        "2 h 10 min",
    ]


def test_token_statistics_of_known_counts(reported: Path) -> None:
    joint = np.array([[[5, 0], [5, 0], [0, 5], [0, 5], [0, 0]]])
    even = token_statistics(np.array([[5, 5, 5, 5, 0]]), frame_rate=100.0, joint=joint, distortion=0.25, stability=0.5)
    assert even.information == pytest.approx(1, abs=0.05)  # the token says which of two even classes it is
    assert (even.num_unused, even.num_tokens, even.num_frames) == (1, 5, 20)
    assert even.perplexity == pytest.approx(4)
    assert even.top_share == 0.25
    counts = count_tokens(open_tokens(reported / "data" / "tokens" / "kmeans" / "1.parquet"))
    assert counts.shape == (1, SIZE)
    assert counts.sum() == 12 * 28
    assert counts[0, SIZE - 1] == 0  # never drawn


def test_tokens_are_counted_by_the_classes_of_training_clips(reported: Path) -> None:
    tokens = open_tokens(reported / "data" / "tokens" / "kmeans" / "1.parquet")
    joint = count_by_class(tokens, {"clip00": [0], "clip01": [1, 2], "clip02": [], "nowhere": [0]}, 3)
    assert joint.shape == (1, SIZE, 3)
    assert joint.sum(axis=(0, 1)).tolist() == [28, 28, 28]
    assert joint[0, :, 0].tolist() == np.bincount(tokens.list("tokens")[0][0], minlength=SIZE).tolist()


def test_stability_compares_the_same_frames_of_all_folds(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = open_tokens(reported / "data" / "tokens" / "kmeans" / "1.parquet")
    arrays, vocabulary = token_arrays(tokens), open_vocabulary(reported / "data" / "vocabulary" / "kmeans" / "1.zarr")
    assert spread_tokens(arrays, vocabulary).shape == (1, 12 * 28)
    monkeypatch.setattr("pipeline.reporting.token_use._SPREAD_TOKENS", 60)
    assert (
        spread_tokens(arrays, vocabulary)[0].tolist()
        == [token for row in tokens.list("tokens") for token in row[0]][::6]
    )
    codes = np.random.default_rng(0).integers(0, 9, (2, 500))
    assert stabilities({"1": codes, "2": 8 - codes}) == {"1": pytest.approx(1), "2": pytest.approx(1)}
    assert math.isnan(stabilities({"1": codes})["1"])
    assert math.isnan(stabilities({"1": codes, "2": codes[:, 1:]})["1"])


def test_merged_tokens_stand_for_all_of_their_frames(tmp_path: Path) -> None:
    write_tokens(tmp_path, "1", np.random.default_rng(0), merges=[(0, 1), (SIZE, 0)])
    arrays = token_arrays(open_tokens(tmp_path / "tokens" / "kmeans" / "1.parquet"))
    vocabulary = open_vocabulary(tmp_path / "vocabulary" / "kmeans" / "1.zarr")
    assert sum(tokens.size for tokens in arrays.values()) < 12 * 28
    spread = spread_tokens(arrays, vocabulary)
    assert spread.shape == (1, 12 * 28)
    assert vocabulary.in_time(np.array([[SIZE + 1, 2, SIZE]])).tolist() == [[SIZE + 1] * 3 + [2] + [SIZE] * 2]


def test_the_vocabularies_have_a_row_a_fold(reported: Path) -> None:
    with (reported / "results" / "vocabularies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["fold"] for row in rows] == list(FOLDS)
    assert float(rows[0]["distortion"]) == 0.25
    assert 0 <= float(rows[0]["information"]) < 0.3  # noise says little
    assert abs(float(rows[0]["stability"])) < 0.2


def test_results_table_starts_without_heavy_libraries() -> None:
    heavy = ("torch", "sklearn", "matplotlib", "jinja2", "scipy")
    program = f"import sys, stages.report; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_clips_without_audio_are_counted_by_set(reported: Path) -> None:
    page = Layout(reported).page.read_text()
    section = page[page.index('<section id="failed">') : page.index('<section id="made">')]
    assert re.search(r"<tr><th[^>]*>train</th><td[^>]*>8</td><td[^>]*>1</td><td[^>]*>12\.5 %</td></tr>", section)
    assert ">test</th>" not in section
    assert "data/missing.parquet" in section

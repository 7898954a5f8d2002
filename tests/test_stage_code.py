"""The files of the stage `code`: which stages an edit, a setting or a release reaches, and which it leaves alone."""

import importlib.metadata
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from workspace import ROOT

from pipeline.errors import ParamsError
from pipeline.execution import code
from pipeline.execution.code import Sources, snapshot
from pipeline.params import read_params
from pipeline.stage_code import find_earlier, read_settings, stage_files, write_stage_code

DOCUMENT = read_params(ROOT / "params.yaml")
TEXTS = snapshot()

NETWORKS = {"ast", "token_transformer"}
BASELINES = {"bag_of_tokens", "frame_statistics", "frame_textures"}
TRAIN_NETWORKS = {f"train/{name}" for name in NETWORKS}
EVALUATE_NETWORKS = {f"evaluate/{name}" for name in NETWORKS}


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return stage_files(DOCUMENT, Sources(Path(), TEXTS))


def moved(before: Mapping[str, str], document: Mapping[str, Any] = DOCUMENT, **texts: str) -> set[str]:
    """Return the files that differ with another params document, or other texts of some files."""
    after = stage_files(document, Sources(Path(), TEXTS | texts))
    return {name for name in {**before, **after} if before.get(name) != after.get(name)}


def test_every_stage_has_a_file_or_one_for_each_entry(before: dict[str, str]) -> None:
    assert {"corpus", "split", "spectrogram", "vocabulary/kmeans", "tokenize/kmeans", "report"} <= set(before)
    assert {name for name in before if name.startswith("train/")} == {f"train/{name}" for name in NETWORKS | BASELINES}
    for content in before.values():
        about = json.loads(content)
        assert set(about) - {"settings"} == {"code", "packages"}
        assert len(about["code"]) == 16


def test_packages_are_those_that_a_stage_computes_with(before: dict[str, str]) -> None:
    packages = {name: set(json.loads(content)["packages"]) for name, content in before.items()}
    assert {"soundfile", "soxr", "scipy"} <= packages["spectrogram"]
    assert "faiss-cpu" in packages["vocabulary/kmeans"]
    assert "torch" in packages["train/ast"]
    assert "torch" not in packages["split"] | packages["corpus"] | packages["train/bag_of_tokens"]
    assert "scikit-learn" in packages["train/bag_of_tokens"]
    assert "scikit-learn" not in packages["train/ast"]


@pytest.mark.parametrize(
    ("package", "reached", "spared"),
    [
        ("torch", {"train/ast", "evaluate/ast"}, {"corpus", "spectrogram", "train/bag_of_tokens"}),
        ("faiss-cpu", {"vocabulary/kmeans"}, {"tokenize/kmeans", "train/ast"}),
        ("scikit-learn", {"train/bag_of_tokens", "train/frame_statistics"}, {"train/ast", "evaluate/ast"}),
    ],
)
def test_a_new_release_moves_what_computes_with_it(
    package: str, reached: set[str], spared: set[str], before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0" if name == package else version(name))
    code.releases.cache_clear()
    try:
        found = moved(before)
    finally:
        monkeypatch.undo()
        code.releases.cache_clear()
    assert reached <= found
    assert not spared & found


def test_a_variant_of_a_release_is_the_same_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.11.0+cpu")
    code.releases.cache_clear()
    assert code.releases("torch") == {"torch": "2.11.0"}
    code.releases.cache_clear()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.augmentation.frame_masks.width", 8, TRAIN_NETWORKS),
        ("train.augmentation.token_noise", 0.1, {"train/token_transformer"}),
        ("train.augmentation.mixup_domain", "power", {"train/ast"}),
        ("train.epochs", 3, TRAIN_NETWORKS),
        ("train.num_threads", 2, {f"train/{name}" for name in NETWORKS | BASELINES}),
        ("models.ast.encoder.depth", 3, set()),  # DVC compares it by itself
        ("execution.workers", 1, set()),
    ],
)
def test_a_model_depends_on_the_settings_that_its_kind_reads(
    key: str, value: Any, expected: set[str], before: dict[str, str]
) -> None:
    document = deepcopy(DOCUMENT)
    *sections, last = key.split(".")
    place = document
    for section in sections:
        place = place[section]
    assert place[last] != value
    place[last] = value
    assert moved(before, document) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoders/transformer", {"train/ast", "train/token_transformer"}),
        ("inputs/tokens", {"train/token_transformer"}),
        ("inputs/frames", {"train/ast"}),
        ("baselines/texture_statistics", {"train/frame_textures"}),
        ("baselines/bag_of_tokens", {"train/bag_of_tokens"}),
        ("network", {"train/ast", "train/token_transformer"}),
        # What params do not choose.
        ("encoders/conformer", set()),
        ("encoders/lstm", set()),
        ("encoders/timm_layers", set()),
        ("heads/class_token", set()),
        ("stems/patches", set()),
        ("checkpoint_formats/ast_checkpoint", set()),
    ],
)
def test_a_model_follows_from_the_parts_that_params_choose_alone(
    name: str, expected: set[str], before: dict[str, str]
) -> None:
    path = f"pipeline/models/{name}.py"
    edited = re.sub(r"\bTensor\b|np\.ndarray", "Edited", re.sub(r"\breturn ", "return None or ", TEXTS[path]))
    assert edited != TEXTS[path]
    assert {name for name in moved(before, **{path: edited}) if name.startswith("train/")} == expected


def test_a_new_part_moves_nothing(before: dict[str, str]) -> None:
    """One file and one line of a registry; here they are taken away."""
    registry = "pipeline/models/registry.py"
    line = '        "conformer": "pipeline.models.encoders.conformer:Conformer",\n'
    assert TEXTS[registry].count(line) == 1
    assert (
        moved(before, **{registry: TEXTS[registry].replace(line, ""), "pipeline/models/encoders/conformer.py": ""})
        == set()
    )


def test_a_new_vocabulary_kind_moves_nothing(before: dict[str, str]) -> None:
    registry, kind = "pipeline/vocabulary/registry.py", "pipeline/vocabulary/random_projection.py"
    line = '        "random_projection": "pipeline.vocabulary.random_projection",\n'
    assert TEXTS[registry].count(line) == 1
    assert moved(before, **{registry: TEXTS[registry].replace(line, ""), kind: ""}) == set()


def test_a_neural_vocabulary_alone_follows_from_its_training(before: dict[str, str]) -> None:
    document = deepcopy(DOCUMENT)
    document["vocabularies"]["mine"] = {**document["vocabularies"]["kmeans"], "kind": "neural"}
    document["experiment"]["vocabularies"] = ["kmeans", "mine"]
    with_neural = stage_files(document, Sources(Path(), TEXTS))
    assert "torch" in json.loads(with_neural["vocabulary/mine"])["packages"]
    edits = {
        "autoencoder": ("network.train()", "network.eval()"),
        "neural": ("np.tanh(", "np.sin("),
        "kmeans": ("[0]", "[-1]"),
    }
    found = {}
    for module, change in edits.items():
        path = f"pipeline/vocabulary/{module}.py"
        edited = {path: TEXTS[path].replace(*change)}
        assert edited[path] != TEXTS[path]
        assert module == "kmeans" or moved(before, **edited) == set()
        found[module] = moved(with_neural, document, **edited)
    assert found["autoencoder"] == {"vocabulary/mine"}
    assert {"vocabulary/mine", "tokenize/mine"} <= found["neural"]
    assert not {"vocabulary/kmeans", "tokenize/kmeans"} & found["neural"]
    assert {"tokenize/kmeans"} <= found["kmeans"]
    assert "vocabulary/mine" not in found["kmeans"]


def test_a_new_metric_is_one_file_and_moves_the_report_alone(before: dict[str, str]) -> None:
    text = TEXTS["pipeline/evaluation/reported/standard.py"]
    assert moved(before, **{"pipeline/evaluation/reported/mine.py": text}) == {"report"}


def test_pretraining_reads_of_train_what_it_has_no_setting_of_its_own_for() -> None:
    keys = set(read_settings(DOCUMENT, "pretrain", "token_transformer"))
    assert {"train.gradient_clip", "train.num_threads", "train.optimiser.kind"} <= keys
    assert not keys & {"train.epochs", "train.label_smoothing", "train.patchout"}


def test_outcomes_are_kept_and_params_are_checked_before_anything_is_computed(tmp_path: Path) -> None:
    checks: list[int] = []

    def check() -> None:
        checks.append(1)

    def write(folder: str, document: dict[str, Any] = DOCUMENT) -> bool:
        return write_stage_code(document, check, tmp_path / folder, tmp_path / "kept")

    assert write("code")
    assert not write("again")
    assert len(checks) == 1
    files = {path.relative_to(tmp_path / "code"): path.read_bytes() for path in (tmp_path / "code").rglob("*/*")}
    assert files == {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*/*")}

    def fail() -> None:
        raise ParamsError("a typo")

    other = DOCUMENT | {"seed": 1}
    with pytest.raises(ParamsError, match="a typo"):
        write_stage_code(other, fail, tmp_path / "none", tmp_path / "kept")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ParamsError):  # a mistake is never kept
        write_stage_code(other, fail, tmp_path / "none", tmp_path / "kept")


def test_what_a_digest_of_dvc_stood_for_is_found_again(tmp_path: Path) -> None:
    write_stage_code(DOCUMENT, lambda: None, tmp_path / "code", tmp_path / "kept")
    content = (tmp_path / "code/train/ast").read_bytes()
    digest = code.hashlib.md5(content).hexdigest()
    assert find_earlier(tmp_path / "kept", "train/ast", digest) == json.loads(content)
    assert find_earlier(tmp_path / "kept", "train/ast", "0" * 32) is None


POOLED = TRAIN_NETWORKS | EVALUATE_NETWORKS | {"attention/ast"}
# One constant changed in each of fifteen functions, and the stages of the demo whose results it could change.
MUTATIONS = [
    ("corpora/synthesis.py", "0.5", "0.51", {"corpus"}),
    ("execution/shards.py", "% one_in == 0", "% one_in == 1", {"spectrogram"}),
    (
        "spectrogram/kaldi.py",
        "np.hanning(params.win_length)",
        "np.hamming(params.win_length)",
        {"spectrogram", "atlas/kmeans"},  # the atlas synthesises with the front end's window
    ),
    ("spectrogram/mel.py", "np.hanning(", "np.hamming(", set()),  # a front end that nobody chose
    ("vocabulary/clustering.py", "min_points_per_centroid=1", "min_points_per_centroid=2", {"vocabulary/kmeans"}),
    ("vocabulary/assignment.py", "axis=1)", "axis=0)", {"vocabulary/kmeans", "tokenize/kmeans"}),
    # `encode` is a method of strings too, so what only decodes follows it as well.
    (
        "vocabulary/nearest.py",
        "-0.5 * np",
        "-0.4 * np",
        {"vocabulary/kmeans", "tokenize/kmeans", "atlas/kmeans", "report"},
    ),
    ("vocabulary/kmeans.py", '("kmeans", 0)', '("kmeans", 1)', {"vocabulary/kmeans"}),
    ("vocabulary/residual.py", "rest -= codes", "rest += codes", set()),  # a kind that nobody chose
    ("training/schedules.py", "0.5 * (1 + math.cos", "0.4 * (1 + math.cos", TRAIN_NETWORKS),
    ("training/augmentation/mixing.py", "min=1e-20", "min=1e-10", TRAIN_NETWORKS),
    ("training/masked_tokens.py", "2.0", "3.0", set()),  # no model is pretrained
    ("models/heads/pooled.py", '"mean_max"', '"mean_most"', POOLED),
    ("models/encoders/conformer.py", "0.5 *", "0.4 *", set()),  # no entry of the experiment
    ("models/inputs/tokens.py", "8", "9", {"train/token_transformer", "evaluate/token_transformer"}),
    ("models/baselines/bag_of_tokens.py", "np.log", "np.log2", {"train/bag_of_tokens", "evaluate/bag_of_tokens"}),
    ("evaluation/ngram_perplexity.py", "(1, 2, 3)", "(1, 2)", {"ngram_perplexity/kmeans", "report"}),
    ("evaluation/attention.py", "0.5 *", "0.4 *", {"attention/ast"}),
]


@pytest.mark.parametrize(("path", "old", "new", "expected"), MUTATIONS, ids=[path for path, *_ in MUTATIONS])
def test_a_changed_constant_moves_the_stages_that_use_it(
    path: str, old: str, new: str, expected: set[str], before: dict[str, str]
) -> None:
    text = TEXTS[f"pipeline/{path}"]
    assert old in text
    assert moved(before, **{f"pipeline/{path}": text.replace(old, new, 1)}) == expected

"""Losses against values computed by hand, at extreme logits, with soft and unknown targets, and their fit to the labels."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from pydantic import TypeAdapter
from ruamel.yaml import YAML
from test_stages_train import AST, make_artifacts, run_evaluate, run_train
from torch import Tensor

from pipeline.artifacts.clips import link_of
from pipeline.artifacts.model import open_model
from pipeline.artifacts.predictions import matrix, open_predictions
from pipeline.check_params import load_experiment
from pipeline.errors import ParamsError, SonolexError
from pipeline.evaluation.ensemble import average_predictions, score_clips
from pipeline.execution.code import Sources
from pipeline.inference.bundle import require_members
from pipeline.inference.classifier import Classifier, Member
from pipeline.params import read_params
from pipeline.stage_code import stage_files
from pipeline.training import checkpoints, neural
from pipeline.training.classification import Classification
from pipeline.training.families import family_matrix
from pipeline.training.loss_settings import LossParams, loss_files, loss_link
from pipeline.training.losses import Loss, balancing_weights, build_loss, positive_shares
from pipeline.training.settings import TrainParams

NAN = float("nan")
CLASSES = ["cello", "violin", "flute"]
FAMILIES = REPOSITORY / "metadata" / "instruments" / "families.csv"
TERM = {"weight": 0.5, "groups": str(FAMILIES)}
LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy": {"kind": "cross_entropy"},
    "bce": {"kind": "bce", "pos_weight": "none", "families": None},
    "balanced": {"kind": "bce", "pos_weight": "balanced", "families": None},
    "families": {"kind": "bce", "pos_weight": "none", "families": TERM},
    "focal": {"kind": "focal", "gamma": 2.0, "pos_weight": "balanced", "families": TERM},
    "flat_focal": {"kind": "focal", "gamma": 0.3, "pos_weight": "none", "families": None},
    "asymmetric": {
        "kind": "asymmetric",
        "gamma_positive": 1.0,
        "gamma_negative": 4.0,
        "margin": 0.05,
        "families": TERM,
    },
    "asymmetric_no_margin": {
        "kind": "asymmetric",
        "gamma_positive": 0.0,
        "gamma_negative": 0.5,
        "margin": 0.0,
        "families": None,
    },
    "asymmetric_flat": {
        "kind": "asymmetric",
        "gamma_positive": 0.0,
        "gamma_negative": 0.5,
        "margin": 0.2,
        "families": None,
    },
}
SHARES = torch.tensor([0.5, 0.2, 0.0])


def build(section: dict[str, Any], kind: Any = "many", shares: Tensor = SHARES, classes: list[str] = CLASSES) -> Loss:
    params: LossParams = TypeAdapter(LossParams).validate_python(section)
    return build_loss(params, kind, classes, lambda: shares)


def log_odds(*probabilities: float) -> Tensor:
    return torch.tensor([[math.log(p / (1 - p)) for p in probabilities]])


def by_hand(name: str, p: float, y: float, pos_weight: float) -> float:
    """Return the loss of one class of probability p with the hard target y, from the definitions of the papers."""
    yes, no = -math.log(p), -math.log(1 - p)
    match name:
        case "bce":
            return y * yes + (1 - y) * no
        case "balanced":
            return y * pos_weight * yes + (1 - y) * no
        case "focal":
            return y * pos_weight * (1 - p) ** 2 * yes + (1 - y) * p**2 * no
        case "flat_focal":
            return y * (1 - p) ** 0.3 * yes + (1 - y) * p**0.3 * no
        case "asymmetric":
            less = max(p - 0.05, 0)
            return y * (1 - p) * yes - (1 - y) * less**4 * math.log(1 - less)
        case "asymmetric_no_margin":
            return y * yes + (1 - y) * p**0.5 * no
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["bce", "balanced", "focal", "flat_focal", "asymmetric", "asymmetric_no_margin"])
@pytest.mark.parametrize("targets", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.3, 0.0, 0.8]])
def test_binary_losses_are_those_of_their_papers(name: str, targets: list[float]) -> None:
    probabilities, pos_weights = [0.9, 0.03, 0.6], [1.0, 4.0, 1.0]  # a class without positives is not weighted
    loss = build({**LOSSES[name], "families": None})
    found = loss(log_odds(*probabilities), torch.tensor([targets]))
    values = [by_hand(name, p, y, w) for p, y, w in zip(probabilities, targets, pos_weights, strict=True)]
    assert found.item() == pytest.approx(sum(values) / 3, rel=1e-5)
    assert loss.link == "sigmoid"


@pytest.mark.parametrize("name", ["auto", *LOSSES])
def test_a_network_is_built_for_the_link_of_its_loss(name: str) -> None:
    section = {"kind": "auto"} if name == "auto" else LOSSES[name]
    params: LossParams = TypeAdapter(LossParams).validate_python(section)
    assert loss_link(params, "one") == build(section, "one").link
    if name != "cross_entropy":
        assert loss_link(params, "many") == build(section, "many").link


def test_focal_with_gamma_zero_is_binary_cross_entropy() -> None:
    logits, targets = torch.randn(6, 3) * 5, torch.rand(6, 3)
    flat = build({**LOSSES["focal"], "gamma": 0.0, "pos_weight": "none", "families": None})
    torch.testing.assert_close(flat(logits, targets), build(LOSSES["bce"])(logits, targets))


def test_a_confident_false_positive_costs_and_an_easy_negative_does_not() -> None:
    """A weight by 1 - p instead of 1 - p_t would make the confident mistake the cheapest."""
    focal, bce = (build({**LOSSES[name], "pos_weight": "none", "families": None}) for name in ("focal", "bce"))
    absent = torch.zeros(1, 3)
    wrong, easy = torch.full((1, 3), 6.0), torch.full((1, 3), -6.0)
    assert focal(wrong, absent) > 0.95 * bce(wrong, absent)
    assert focal(easy, absent) < 1e-4 * bce(easy, absent)


def test_the_margin_discards_easy_negatives() -> None:
    section = {**LOSSES["asymmetric"], "gamma_negative": 0.0, "families": None}
    logits = log_odds(0.04, 0.01, 0.05).requires_grad_()
    loss = build(section)(logits, torch.zeros(1, 3))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad[0, :2].tolist() == [0, 0]


def test_the_family_term_compares_the_largest_logit_with_the_largest_label() -> None:
    """The families of cello and violin, and of flute; with weight 0.5."""
    logits, targets = log_odds(0.8, 0.3, 0.6), torch.tensor([[0.0, 1.0, 0.0]])
    classes = -(math.log(0.2) + math.log(0.3) + math.log(0.4)) / 3
    families = -(math.log(0.8) + math.log(0.4)) / 2
    assert build(LOSSES["families"])(logits, targets).item() == pytest.approx(classes + 0.5 * families, rel=1e-5)


def test_a_family_with_an_unknown_class_is_unknown_unless_a_class_of_it_is_there() -> None:
    loss = build({**LOSSES["families"], "families": {**TERM, "weight": 1.0}})
    logits = log_odds(0.8, 0.3, 0.6)
    unknown = loss(logits, torch.tensor([[0.0, NAN, 1.0]])).item()
    assert unknown == pytest.approx(-(math.log(0.2) + math.log(0.6)) / 2 - math.log(0.6), rel=1e-5)
    present = loss(logits, torch.tensor([[1.0, NAN, 1.0]])).item()
    classes = -(math.log(0.8) + math.log(0.6)) / 2
    assert present == pytest.approx(classes - (math.log(0.8) + math.log(0.6)) / 2, rel=1e-5)
    nothing = loss(logits, torch.full((1, 3), NAN))
    assert nothing.item() == 0


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_unknown_labels_count_in_no_binary_loss(name: str) -> None:
    loss = build({**LOSSES[name], "families": None})
    logits, targets = torch.randn(2, 3, requires_grad=True), torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, NAN]])
    found = loss(logits, targets)
    found.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, targets.isnan())
    known = loss_without_class(LOSSES[name], 1)(logits[:1, [0, 2]], targets[:1, [0, 2]])
    assert found.item() == pytest.approx(known.item() / 2, rel=1e-6)  # the other clip's loss is 0


def loss_without_class(section: dict[str, Any], left_out: int) -> Loss:
    rows = [row for row in range(3) if row != left_out]
    return build({**section, "families": None}, shares=SHARES[rows], classes=[CLASSES[row] for row in rows])


def test_cross_entropy_takes_the_softmax_over_known_classes() -> None:
    loss = build(LOSSES["cross_entropy"], "one")
    logits = torch.tensor([[1.0, 5.0, 2.0], [1.0, 2.0, 3.0]], requires_grad=True)
    found = loss(logits, torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, NAN]]))
    found.backward()
    assert found.item() == pytest.approx(math.log(1 + math.e) / 2, rel=1e-6)
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert logits.grad[1].abs().sum() == 0
    assert loss.link == "softmax"
    soft = loss(logits[:1], torch.tensor([[0.25, 0.0, 0.75]])).item()
    logs = torch.tensor([1.0, 5.0, 2.0]).log_softmax(0)
    assert soft == pytest.approx(-(0.25 * logs[0] + 0.75 * logs[2]).item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1.0, 40.0, 1e4, 1e30])
def test_losses_and_gradients_are_finite_at_extreme_logits(name: str, size: float) -> None:
    loss = build(LOSSES[name], "one" if name == "cross_entropy" else "many")
    for targets in ([1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [NAN, 1.0, NAN]):
        logits = torch.tensor([[size, -size, 0.0], [-size, size, size]], requires_grad=True)
        found = loss(logits, torch.tensor([targets, targets]))
        found.backward()
        assert torch.isfinite(found)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", ["one", "many"])
def test_auto_is_the_loss_of_the_label_kind_bit_for_bit(kind: Any) -> None:
    logits, targets = torch.randn(5, 3, requires_grad=True), torch.rand(5, 3).softmax(1)
    again = logits.detach().clone().requires_grad_()
    found = build({"kind": "auto"}, kind)(logits, targets)
    if kind == "one":
        expected = -(targets * torch.nn.functional.log_softmax(again, dim=1)).sum(1).mean()
    else:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(again, targets)
    found.backward()
    expected.backward()
    assert torch.equal(found, expected)
    assert logits.grad is not None
    assert again.grad is not None
    assert torch.equal(logits.grad, again.grad)


def test_shares_are_those_of_known_labels_as_often_as_clips_are_drawn() -> None:
    targets = torch.tensor([[1.0, 0.0, NAN], [0.0, 0.0, NAN], [0.0, 1.0, 1.0], [1.0, 0.5, NAN]])
    assert positive_shares(targets).tolist() == [0.5, 0.375, 1.0]
    assert positive_shares(targets, torch.tensor([1.0, 0.0, 0.0, 1.0])).tolist() == [1.0, 0.25, 0.0]
    assert balancing_weights(torch.tensor([0.5, 0.2, 1.0, 0.0])).tolist() == pytest.approx([1, 4, 1, 1])


def test_mix_up_leaves_the_shares_as_they_are() -> None:
    generator = np.random.default_rng(0)
    targets = torch.from_numpy((generator.random((4000, 2)) < [0.1, 0.6]).astype(np.float32))
    weight, partner = torch.rand(4000, 1), torch.randperm(4000)
    mixed = weight * targets + (1 - weight) * targets[partner]
    torch.testing.assert_close(positive_shares(mixed), positive_shares(targets), atol=0.02, rtol=0)


def test_a_loss_that_does_not_fit_the_labels_is_named_with_the_choices() -> None:
    with pytest.raises(
        ParamsError, match=r"train\.loss\.kind: expected one of auto, bce, focal, asymmetric .* found cross_entropy"
    ):
        build(LOSSES["cross_entropy"], "many")
    for name in LOSSES:
        build(LOSSES[name], "one")


def test_a_class_in_no_family_is_named() -> None:
    message = r"families\.csv: expected a family for each of the 3 classes, found none for 1: kazoo; add a row"
    with pytest.raises(ParamsError, match=message):
        build(LOSSES["families"], classes=["cello", "kazoo", "flute"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,group\na,b\n", r"expected the columns class and family, separated by commas, found name, group"),
        ("", r"expected the columns class and family, separated by commas, found no columns"),
        ("class,family\na,b\na,c\n", r"line 3: expected one family for a, found b and c; keep one of the rows"),
        ("class,family\na,\n", r"line 2: expected a family for 'a', found none"),
        (None, r"groups: expected the path of a CSV table .*families\.csv: .*No such file.*metadata/instruments"),
    ],
)
def test_what_is_no_table_of_families_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "families.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ParamsError, match=message):
        family_matrix(path, ["a"])


def family_names() -> list[str]:
    return [line.split(",")[0] for line in FAMILIES.read_text().splitlines()[1:]]


def test_the_published_table_has_the_instruments_of_irmas_and_openmic() -> None:
    irmas = [row.split(",")[2] for row in (REPOSITORY / "metadata/irmas/instruments.csv").read_text().splitlines()[1:]]
    openmic = [name for name in family_names() if name not in ("acoustic guitar", "electric guitar")]
    assert len(openmic) == 20
    for classes, count in ((irmas, 6), (openmic, 7)):
        matrix = family_matrix(FAMILIES, classes)
        assert len(matrix) == count
        assert (matrix.sum(0) == 1).all()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Return changes of the section `train` that a training run in this test takes."""
    changes: dict[str, Any] = {"epochs": 2}
    document = read_params(REPOSITORY / "params.yaml")["train"]
    monkeypatch.setattr(neural, "load_params", lambda *_: TrainParams.model_validate(document | changes))
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    return changes


def test_predictions_of_binary_classifiers_on_one_label_are_sigmoids(tmp_path: Path, settings: dict[str, Any]) -> None:
    """As AST on speech commands: the link is stored with the model and its predictions, and every score uses it."""
    settings["loss"] = LOSSES["bce"]
    paths = make_artifacts(tmp_path)
    assert run_train(paths, AST)["link"] == "sigmoid"
    predictions = open_predictions(run_evaluate(paths))
    expected = 1 / (1 + np.exp(-matrix(predictions, "logits").astype(np.float64)))
    np.testing.assert_allclose(score_clips(predictions, "test").scores, expected, rtol=1e-6)
    classifier = Classifier((Member(open_model(paths.model), None),), np.full(2, 0.5))
    np.testing.assert_allclose(classifier.scores(matrix(predictions, "logits")), expected, rtol=1e-6)
    assert np.abs(expected.sum(axis=1) - 1).max() > 1e-3


def test_a_model_of_another_link_is_refused_in_one_bundle_and_makes_an_ensemble(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    tables, members = [], []
    for name in ("bce", "cross_entropy"):
        settings["loss"] = LOSSES[name]
        paths = make_artifacts(tmp_path / name)
        run_train(paths, AST)
        members.append(Member(open_model(paths.model), None))
        tables.append(open_predictions(run_evaluate(paths)))
    with pytest.raises(SonolexError, match=r"link: expected sigmoid, that of .*found softmax; bundle networks of one"):
        require_members(members)
    mean = (score_clips(tables[0], "test").scores + score_clips(tables[1], "test").scores) / 2
    np.testing.assert_allclose(average_predictions(tables, "test").scores, mean, rtol=1e-12)


def test_what_was_written_before_links_has_that_of_the_label_kind() -> None:
    assert link_of({"label_kind": "one"}) == "softmax"
    assert link_of({"label_kind": "many"}) == "sigmoid"


def test_a_loss_for_one_label_stops_a_corpus_of_many_before_training(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["loss"] = LOSSES["cross_entropy"]
    monkeypatch.setattr(neural, "run_epochs", None)
    with pytest.raises(ParamsError, match=r"train\.loss\.kind: expected one of auto, bce"):
        run_train(make_artifacts(tmp_path, label_kind="many"), AST)


def test_balanced_positives_are_counted_in_the_training_clips(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of clips 0, 1, 2 and 4 the second alone is rain; balanced sampling draws both classes alike."""
    found: list[Loss] = []

    class StopError(Exception): ...

    def stop(model: object, params: object, task: Classification, *_: object, **__: object) -> None:
        found.append(task.loss_function)
        raise StopError

    monkeypatch.setattr(neural, "run_epochs", stop)
    settings["loss"] = LOSSES["balanced"]
    logits, targets = torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])
    for sampling, weight in (("shuffled", (1 / 3 + 3) / 2), ("balanced", 1.0)):
        settings["sampling"] = sampling
        with pytest.raises(StopError):
            run_train(make_artifacts(tmp_path / sampling, label_kind="many"), AST)
        assert found.pop()(logits, targets).item() == pytest.approx(weight * math.log(2), rel=1e-5)


def test_a_changed_table_of_families_trains_networks_again(tmp_path: Path) -> None:
    """DVC compares the digest, and so does a run that would resume."""
    table = tmp_path / "families.csv"
    document = read_params(REPOSITORY / "params.yaml")
    document["train"]["loss"] = {**LOSSES["bce"], "families": {"weight": 1.0, "groups": str(table)}}
    sources = Sources(REPOSITORY)
    found = []
    for family in ("strings", "winds"):
        table.write_text(f"class,family\ncello,{family}\n")
        files = stage_files(document, sources)
        params: LossParams = TypeAdapter(LossParams).validate_python(document["train"]["loss"])
        found.append((files, loss_files(params)))
    (before, digests), (after, others) = found
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"train/ast", "train/token_transformer"}
    assert digests != others


def test_a_missing_table_of_families_and_a_loss_that_does_not_fit_are_found_in_params(tmp_path: Path) -> None:
    document = read_params(REPOSITORY / "params.yaml")
    document["train"]["loss"] = {**LOSSES["bce"], "families": {"weight": 1.0, "groups": "none.csv"}}
    path = tmp_path / "params.yaml"
    YAML().dump(document, path)
    with pytest.raises(ParamsError, match=r"train\.loss\.families\.groups: expected the path of a CSV table"):
        load_experiment(path)
    document["train"]["loss"] = {"kind": "cross_entropy"}
    document["corpus"] = {
        "kind": "beside", "root": "audio", "max_bad_fraction": 0.0, "max_duration": 9.0, "label_kind": "many",
        "ignore": [], "licence": "",
    }  # fmt: skip
    YAML().dump(document, path)
    with pytest.raises(ParamsError, match=r"train\.loss\.kind: expected one of auto, bce, focal, asymmetric"):
        load_experiment(path)


@pytest.mark.parametrize("kind", ["none", "balanced"])
def test_shares_are_computed_for_weights_of_positives_alone(kind: str) -> None:
    asked = []

    def shares() -> Tensor:
        asked.append(kind)
        return SHARES

    section = {"kind": "bce", "pos_weight": kind, "families": None}
    build_loss(TypeAdapter[LossParams](LossParams).validate_python(section), "many", CLASSES, shares)
    assert asked == (["balanced"] if kind == "balanced" else [])

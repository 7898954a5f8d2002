"""`dvc repro` rebuilds what changed and nothing else: stages are run, and what they leave behind is opened and compared.

Everything happens on the small experiment of workspace.py, with a warm run cache.
"""

import shutil
import sys
from pathlib import Path

import pytest
from conftest import documented_metric
from ruamel.yaml import YAML
from workspace import FOLDS, ROOT, artifacts, change_params, run, stage, stages_run

from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.model import read_card
from pipeline.artifacts.settings import SETTINGS
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.execution.code import LEFT_OUT, Sources, reach
from pipeline.params import read_params
from pipeline.stage_code import STAGES, chosen_kinds

pytestmark = pytest.mark.slow

FOLD = FOLDS[0]
ALWAYS = {"code", "corpus"}


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished workspace, its caches included."""
    return shutil.copytree(finished, tmp_path / "workspace", symlinks=True)


def rerun(workspace: Path) -> set[str]:
    """Run `dvc repro` and return the stages that it ran, but for those that always run."""
    return set(stages_run(run(workspace, "dvc", "repro").stdout)) - ALWAYS


def edit(workspace: Path, path: str, old: str, new: str) -> None:
    """Replace the first occurrence of a text in a file of the workspace's copy of the project."""
    file = workspace / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def runs(step: str, *names: str) -> set[str]:
    """Return the addresses of a step's stages for some runs of the experiment, by `ENTRY` or `ENTRY-VOCABULARY`."""
    ids = [RunId.of(*name.split("-")[:1], FOLD, 0, vocabulary="-".join(name.split("-")[1:])) for name in names]
    return {this.stage(step) for this in ids}


NETWORKS = ("ast", "token_transformer-kmeans")


def test_comments_docstrings_and_log_messages_rerun_nothing(copied: Path) -> None:
    edit(copied, "pipeline/errors.py", "class SonolexError", "# A comment.\nclass SonolexError")
    edit(copied, "pipeline/models/encoders/cnn.py", '"""', '"""Edited: ')
    edit(copied, "pipeline/training/loop.py", '"resuming after epoch', '"going on after epoch')
    assert rerun(copied) == set()


def test_new_unused_kinds_rerun_nothing(copied: Path) -> None:
    for what, registry, target in (
        ("encoder", "pipeline/models/registry.py", "pipeline.models.encoders.new:New"),
        ("vocabulary", "pipeline/vocabulary/registry.py", "pipeline.vocabulary.new"),
        ("corpus", "pipeline/corpora/registry.py", "pipeline.corpora.new"),
    ):
        edit(copied, registry, f'    "{what}",\n    {{', f'    "{what}",\n    {{\n        "new": "{target}",')
    folders = {"models/encoders": "conformer", "vocabulary": "kmeans", "corpora": "esc50"}
    for folder, copy in folders.items():
        text = (copied / "pipeline" / folder / f"{copy}.py").read_text()
        text = text.replace(f'Literal["{copy}"]', 'Literal["new"]').replace("class Conformer(", "class New(")
        (copied / "pipeline" / folder / "new.py").write_text(text)
    assert rerun(copied) == set()


def test_a_metric_of_the_report_reruns_the_report_alone(copied: Path) -> None:
    before = artifacts(copied)
    path, source = documented_metric()
    (copied / path).write_text(source)
    assert rerun(copied) == {"report"}
    after = artifacts(copied)
    expected = {"report/index.html", "results/summary.csv", "results/metrics.json"}
    assert {path for path in after if after[path] != before.get(path)} == expected
    assert "cross_entropy" in (copied / "results/metrics.json").read_text()


def test_a_change_of_a_head_reruns_networks_and_what_follows_and_its_undoing_nothing(copied: Path) -> None:
    before = artifacts(copied)
    edit(copied, "pipeline/models/heads/pooled.py", "self.classify = nn.Linear(", "self.classify = nn.Linear(  ")
    assert rerun(copied) == set()  # spaces
    path, line = "pipeline/models/heads/pooled.py", "def forward("
    edit(copied, path, line, f"EDITED = True\n\n    {line}")
    expected = runs("train", *NETWORKS) | runs("evaluate", *NETWORKS) | {"attention@ast"}
    assert expected <= rerun(copied) <= expected | {"report"}
    edit(copied, path, f"EDITED = True\n\n    {line}", line)
    assert rerun(copied) == set()  # from the run cache
    assert artifacts(copied) == before


def test_a_mask_of_networks_retrains_no_classical_model(copied: Path) -> None:
    change_params(copied, {"train.augmentation.frame_masks.width": 8})
    found = rerun(copied)
    assert runs("train", *NETWORKS) <= found
    assert not runs("train", "frame_statistics", "bag_of_tokens-kmeans") & found
    card = read_card(Layout(copied).model(RunId.of("ast", FOLD, 0)))
    assert card[SETTINGS]["train.augmentation.frame_masks.width"] == 8


def test_a_vocabulary_of_another_size_is_fitted_anew_and_back_again(copied: Path) -> None:
    vocabulary, before = Layout(copied).vocabulary("kmeans", FOLD), artifacts(copied)
    for number in (20, 24, 20):
        change_params(copied, {"vocabularies.kmeans.num_tokens": number})
        rerun(copied)
        assert open_vocabulary(vocabulary).num_tokens == number
    change_params(copied, {"vocabularies.kmeans.num_tokens": 16})
    assert rerun(copied) == set()  # all of it from the run cache
    assert open_vocabulary(vocabulary).num_tokens == 16
    assert artifacts(copied) == before


def test_training_again_gives_the_same_bytes_and_ends_there(copied: Path) -> None:
    before = artifacts(copied)
    for name in ("ast", "frame_statistics"):
        run(copied, "dvc", "repro", "--force", "--single-item", RunId.of(name, FOLD, 0).stage("train"))
    assert artifacts(copied) == before
    assert rerun(copied) == set()


def test_an_artifact_of_other_settings_is_refused_by_name(copied: Path) -> None:
    change_params(copied, {"vocabularies.kmeans.num_tokens": 20})
    done = stage(copied, "tokenize", "kmeans", "--fold", FOLD, check=False)
    assert done.returncode == 1
    expected = (
        f"data/vocabulary/kmeans/{FOLD}.zarr: vocabularies.kmeans.num_tokens: expected 20, as in params.yaml, found 16"
    )
    assert expected in done.stderr
    shown = run(copied, "sonolex", "results").stdout
    assert "results have other settings than params.yaml: vocabularies.kmeans.num_tokens 16 (params.yaml: 20)" in shown


@pytest.mark.exhaustive
def test_every_function_that_a_stage_runs_lies_in_its_reach(copied: Path, tmp_path: Path) -> None:
    """Traced, with an empty memo store, so that shards are computed; what cannot change a result is LEFT_OUT by name."""
    shutil.rmtree(copied / ".sonolex")
    document, sources = read_params(copied / "params.yaml"), Sources(copied)
    lock = YAML(typ="safe").load(copied / "dvc.lock")["stages"]
    calls_path = tmp_path / "calls.txt"
    for name, about in STAGES.items():
        found = {entry["cmd"] for entry in lock.values() if f"stages.{name}" in entry["cmd"].split()}
        seen: set[str] = set()
        for command in sorted(found):
            tokens = command.split()[2:]
            entry = tokens[1] if about.lists else ""
            if entry in seen and about.lists:
                continue
            seen.add(entry)
            done = run(copied, sys.executable, str(ROOT / "tests" / "probe_calls.py"), str(calls_path), *tokens)
            assert done.returncode == 0
            kinds = chosen_kinds(document, [section.format(entry=entry) for section in about.sections])
            covered = reach(sources, [(f"stages.{name}", "main")], kinds).definitions
            calls = {tuple(line.split(":")) for line in calls_path.read_text().split()}
            outside = {call for call in calls - covered.keys() if call[0] not in LEFT_OUT}
            assert not outside, f"{name} {entry}: {sorted(outside)}"

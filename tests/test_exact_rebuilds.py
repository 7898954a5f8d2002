"""`dvc repro` rebuilds what changed and nothing else: stages are run, and what they leave behind is opened and compared.

Everything happens on the small experiment of workspace.py, with a warm run cache.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from workspace import FOLDS, change_params, run, stages_run

from pipeline.artifacts.layout import Layout
from pipeline.artifacts.vocabulary import open_vocabulary

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


def artifacts(workspace: Path) -> dict[str, str]:
    """Return path -> digest of every file that stages wrote; what they took (results/stages) apart."""
    layout = Layout(workspace)
    folders = (layout.data, layout.models, layout.predictions, layout.results, layout.page.parent)
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(workspace)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if not file.is_relative_to(layout.stage_reports)
    }


def items(*stages: str) -> set[str]:
    """Return addresses of stages; NAME@ENTRY[-VOCABULARY] stands for the fold and seed of the small experiment."""
    return {
        f"{stage}-{FOLD}-0" if stage.startswith(("train", "evaluate")) else f"{stage}-{FOLD}" if "@" in stage else stage
        for stage in stages
    }


# What an edit reruns


def edit(workspace: Path, path: str, old: str, new: str) -> None:
    file = workspace / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_comments_docstrings_and_unused_files_rerun_nothing(copied: Path) -> None:
    edit(copied, "pipeline/errors.py", "class SonolexError", "# A comment.\nclass SonolexError")
    edit(copied, "pipeline/training/schedules.py", '"""Learning-rate', '"""All learning-rate')
    edit(copied, "pipeline/training/loop.py", "def train(", "# Another comment.\n\n\ndef train(")
    assert rerun(copied) == set()


NEW_KINDS = {
    "model": ("pipeline/models/registry.py", 'MODELS = Registry(\n    "model",\n    {', "pipeline.models.new"),
    "vocabulary": ("pipeline/vocabulary/registry.py", "    {\n", "pipeline.vocabulary.new"),
    "corpus": ("pipeline/corpora/registry.py", "    {\n", "pipeline.corpora.new"),
}


def test_new_unused_kinds_rerun_nothing(copied: Path) -> None:
    copies = {"model": "majority", "vocabulary": "kmeans", "corpus": "esc50"}
    for what, (registry, place, module) in NEW_KINDS.items():
        edit(copied, registry, place, f'{place}\n        "new_{what}": "{module}",\n')
        new = copied.joinpath(*module.split(".")).with_suffix(".py")
        shutil.copy(next(new.parent.rglob(f"{copies[what]}.py")), new)
        new.write_text(new.read_text().replace(f'Literal["{copies[what]}"]', f'Literal["new_{what}"]'))
    assert rerun(copied) == set()


def test_a_vocabulary_of_another_size_is_fitted_anew_and_back_again(copied: Path) -> None:
    vocabulary = Layout(copied).vocabulary("words", FOLD)
    before = artifacts(copied)
    for number in (20, 24, 20):
        change_params(copied, {"vocabularies.words.num_tokens": number})
        rerun(copied)
        assert open_vocabulary(vocabulary).size == number
    change_params(copied, {"vocabularies.words.num_tokens": 16})
    assert rerun(copied) == set()  # all of it from the run cache
    assert open_vocabulary(vocabulary).size == 16
    assert artifacts(copied) == before


# What a stage runs lies within what its digest covers


def commands(workspace: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (stage, arguments) for every stage of the experiment, one fold."""
    for line in run(workspace, "dvc", "stage", "list", "--name-only").stdout.split():
        stage, _, item = line.partition("@")
        yield stage, item.split("-")

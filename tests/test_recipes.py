"""Every recipe ends in a report: composed as its header says, shrunk, and run in a fresh clone on a dozen clips."""

import csv
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import layouts
import pytest
from conftest import REPOSITORY, make_wav_corpus
from layouts import write_sound
from test_parquet_audio import write_parquet
from test_tars import write_tar
from workspace import clone_workspace, make_workspace, run

import stages.corpus
from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout
from pipeline.check_params import load_experiment
from pipeline.corpora.registry import list_corpus
from pipeline.corpora.relabelling import UsedLabels
from pipeline.corpora.splitting import assign_roles
from pipeline.params import validate_params
from tools.compose import compose, dump, list_recipes

RECIPES = REPOSITORY / "recipes"
NAMES = list_recipes(RECIPES)

# The largest value that a setting of this name keeps, wherever it stands; lists are cut value by value.
LARGEST: dict[str, int] = {
    "epochs": 1,
    "batch_size": 4,
    "warmup_steps": 1,
    "first": 1,  # of the epochs that are averaged
    "last": 1,
    "n_mels": 32,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "frames": 64,
    "channels": 8,
    "hidden": 8,
    "embedding_width": 8,
    "num_tokens": 8,
    "sample_frames": 200,
    "iterations": 5,
    "clips_per_class": 5,
    "per_fold": 6,
    "duration": 0.5,  # seconds
    "tokens": 4,  # of the atlas
    "clips": 1,
    "examples": 1,
    "worst": 1,
}
# What is put in the place of a value: weights cannot be fetched here, and half precision is for GPUs.
REPLACED: dict[str, Any] = {"pretrained": None, "precision": "float32", "network": "mobilenetv3_small_050"}


ENCODER = "audio/encoder"  # a tiny one, below the project


def stack_of(name: str) -> str:
    """Return the recipes that one is composed with, as its header says: `sonolex compose esc50+leaderboard ...`."""
    header = re.match(r"(#.*\n)+", (RECIPES / f"{name}.yaml").read_text())
    command = re.search(r"`sonolex compose ([\w+]+)", header[0]) if header else None
    return command[1] if command else name


def shrink(node: Any) -> None:
    """Make a composed experiment small, in place."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == "pretrained" and isinstance(value, dict) and value["kind"] == "waveform_encoder":
            value["source"] = ENCODER  # which such a network has the form of
        elif key in REPLACED and isinstance(value, dict | str):
            node[key] = REPLACED[key]
        elif key in LARGEST and isinstance(value, list):
            node[key] = [min(number, LARGEST[key]) for number in value]
        elif key in LARGEST and isinstance(value, int | float):
            node[key] = min(value, LARGEST[key])
        elif key == "normalisation" and value == "pretrained":
            node[key] = "corpus"
        elif isinstance(value, dict | list):
            shrink(value)


def small(name: str) -> str:
    """Return params.yaml of a recipe, shrunk to its first fold."""
    document, mistakes = compose(stack_of(name), [], RECIPES)
    assert not mistakes
    shrink(document)
    document["experiment"]["folds"] = document["experiment"]["folds"][:1]
    if document["corpus"].get("test_share"):  # five clips of different classes cannot be divided
        document["corpus"] |= {"test_share": 0.0, "parts": {}}
        document["corpus"]["tables"]["eval"] = "eval_segments.csv"
    return dump(document)


# corpora as they are published, where the recipes look for them


def write_audioset(root: Path) -> None:
    """Write tars of the training sets, and folders of the evaluation set; each set has all classes among its clips."""
    with (REPOSITORY / "metadata" / "audioset" / "class_labels_indices.csv").open(newline="") as file:
        mids = [row["mid"] for row in csv.DictReader(file)]
    for number, (table, name) in enumerate(
        {"balanced_train": "bal_train", "unbalanced_train": "unbal_train", "eval": "eval"}.items()
    ):
        videos = [f"{name[:5]:_<10}{clip}" for clip in range(6)]
        files = {
            video: write_sound(root / name / video[:2] / f"{video}.flac", 10 * number + clip)
            for clip, video in enumerate(videos[:-1])  # one vanished
        }
        labels = [mids[clip :: len(files)] for clip in range(len(files))] + [mids[:1]]
        rows = [f'{video}, 0.000, 10.000, "{",".join(own)}"' for video, own in zip(videos, labels, strict=True)]
        (root / f"{table}_segments.csv").write_text("# a\n# b\n# c\n" + "\n".join(rows) + "\n")
        if name != "eval":
            members = [(f"audio/{name}/{video}.flac", path.read_bytes()) for video, path in files.items()]
            shutil.rmtree(root / name)
            (root / "data").mkdir(exist_ok=True)
            write_tar(root / "data" / f"{name}00.tar", *members)


def write_parquet_set(path: Path) -> None:
    """Write a Parquet file of a training set: forty clips, each of Speech and one of four other classes."""
    others = ("/m/0bt9lr", "/m/01yrx", "/m/06mb1", "/m/04rlf")
    videos = [f"{clip:_>11}" for clip in range(40)]
    files = [write_sound(path.parent / f"{video}.flac", clip) for clip, video in enumerate(videos)]
    audio = [(file.name, file.read_bytes()) for file in files]
    for file in files:
        file.unlink()
    labels = [["/m/09x0r", others[clip % len(others)]] for clip in range(len(videos))]
    write_parquet(path, list(audio), group=8, video_id=videos, labels=labels)


@pytest.fixture(scope="session")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder `audio` of a project that has every corpus."""
    project = tmp_path_factory.mktemp("corpora")
    make_wav_corpus(project / "audio" / "ESC-50")
    write_audioset(project / "audio" / "AudioSet")
    for folder, write in layouts.WRITERS.items():
        write(project / "audio" / folder)
    return project / "audio"


def test_headers_say_what_a_recipe_is_laid_over() -> None:
    stacks = {name: stack_of(name) for name in NAMES}
    assert all(name in stack.split("+") for name, stack in stacks.items())
    assert (stacks["demo"], stacks["leaderboard"], stacks["probe"]) == (
        "demo",
        "esc50+leaderboard",
        "esc50+leaderboard+probe",
    )


GUIDES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
OWN_FILES = ("mine.yaml", "small_ast.yaml", "corpus.kind=birds")  # what a reader is told to write first


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_every_command_of_a_guide_composes_without_a_mistake(guide: Path, tmp_path: Path) -> None:
    commands = re.findall(r"^`?sonolex compose ([^`#\n]+)", guide.read_text().replace("\\\n", ""), re.MULTILINE)
    assert len(commands) > 12 or guide.stem != "corpora"
    for command in commands:
        if not any(name in command for name in OWN_FILES):
            recipe, *settings = shlex.split(command)
            document, mistakes = compose(recipe, settings, RECIPES)
            assert not mistakes, command
            (tmp_path / "params.yaml").write_text(dump(document))
            load_experiment(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_finds_its_corpus_and_its_folds(
    name: str, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (audio, REPOSITORY / "metadata"):
        (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(small(name))
    experiment = load_experiment()
    sections = experiment.sections
    stages.corpus.run(sections["corpus"], validate_params(UsedLabels, {"use": ""}, "labels"), Layout().clips)
    clips = open_clips(Layout().clips)
    assert "" not in clips.list("content")
    for fold in sections["experiment"].folds:
        assert {"train", "test"} <= set(assign_roles(clips, fold, sections["split"]))


@pytest.mark.parametrize(
    "name", ["esc50", "urbansound8k", "speech_commands", "fsd50k", "irmas", "openmic2018", "audioset"]
)
def test_a_root_elsewhere_moves_the_tables_of_a_corpus(
    name: str, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, mistakes = compose(name, [f"corpus.root={tmp_path / 'elsewhere'}"], RECIPES)
    assert not mistakes
    (tmp_path / "metadata").symlink_to(REPOSITORY / "metadata")
    (tmp_path / "elsewhere").symlink_to(audio / Path(compose(name, [], RECIPES)[0]["corpus"]["root"]).name)
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(dump(document))
    assert len(list_corpus(load_experiment().sections["corpus"]).table())


class _Page(HTMLParser):
    """Gathers the text of a page, and checks that its elements are closed in order."""

    VOID = ("meta", "link", "img", "br", "hr", "input", "source", "col", "wbr")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, path

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("recipes") / "origin")


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_ends_in_a_report(name: str, audio: Path, origin: Path, tmp_path: Path) -> None:
    workspace = clone_workspace(origin, tmp_path / "clone")
    shutil.copytree(audio, workspace / "audio")
    if name == "waveform_encoder":
        pytest.importorskip("transformers", reason="waveform encoders need the package transformers")
        from test_waveform_encoder import save_encoder

        save_encoder(workspace / ENCODER, "hubert", conv_stride=(5, 8, 8))
    (workspace / "params.yaml").write_text(small(name))
    run(workspace, "dvc", "repro", "-q")
    experiment, layout = load_experiment(workspace / "params.yaml").sections["experiment"], Layout(workspace)
    page = _Page(layout.page)
    ensembles = [ensemble.name for ensemble in experiment.ensembles]
    with layout.summary.open(newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*experiment.models, *ensembles}
    assert all(row["num_clips"] != "0" for row in rows.values())
    assert all(model in page.text for model in rows)
    assert all(vocabulary in _Page(layout.atlas_index).text for vocabulary in experiment.vocabularies)
    shutil.rmtree(workspace)


@pytest.mark.slow
def test_audio_tokens_ends_in_a_report_on_parquet_files_alone(origin: Path, tmp_path: Path) -> None:
    workspace = clone_workspace(origin, tmp_path / "clone")
    write_parquet_set(workspace / "audio" / "AudioSet" / "data" / "bal_train" / "00.parquet")
    document, mistakes = compose("audio_tokens", ["corpus.parts.bal_train=30", "corpus.test_share=0.3"], RECIPES)
    assert not mistakes
    shrink(document)
    (workspace / "params.yaml").write_text(dump(document))
    run(workspace, "dvc", "repro", "-q")
    layout = Layout(workspace)
    clips = open_clips(layout.clips)
    assert (len(clips), len(clips.metadata["classes"]), set(clips.list("fold"))) == (30, 5, {"train", "test"})
    with layout.summary.open(newline="") as file:
        assert len({row["model"] for row in csv.DictReader(file)}) == 7

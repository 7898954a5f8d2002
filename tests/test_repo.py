"""The project itself: which package may import which, and that dvc.yaml, the layout and the README agree with the code."""

import ast
import re
from pathlib import Path

import pytest
import tour
from ruamel.yaml import YAML

from pipeline.artifacts.layout import Layout, ModelId, RunId
from pipeline.check_params import SECTIONS
from pipeline.stage_code import STAGES

ROOT = Path(__file__).parent.parent
GRAPH = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]

# Each layer may import itself and those behind it.
LAYERS = (
    "reporting",
    "inference",
    "evaluation",
    "training",
    "models",
    "vocabulary",
    "duplicates",
    "spectrogram",
    "corpora",
    "execution",
    "artifacts",
)


def imports_of(path: Path) -> set[str]:
    """Return the project's modules that a file imports, inside functions too, or names as the target of a registry."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("pipeline."):
            names = [node.value.partition(":")[0]]
        for name in names:
            parts = name.split(".")
            if parts[0] in ("pipeline", "stages", "tools", "sonolex") and all(parts):
                base = ROOT.joinpath(*parts)
                found |= {name} if base.with_suffix(".py").exists() or base.is_dir() else set()
    return found


def _layer(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_run_downward(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    imported = {name for name in imports_of(path) if name != "pipeline"}
    assert not {name for name in imported if name.split(".")[0] in ("stages", "tools", "sonolex")}
    if len(parts) == 2:  # shared modules, but for those that gather from all layers, and those that name models
        above = {"check_params.py": set(LAYERS), "stage_code.py": set(LAYERS), "grid.py": {"artifacts"}}
        allowed = above.get(parts[1], set())
    else:
        allowed = set(LAYERS[LAYERS.index(parts[1]) :])
    shared = {"errors", "params", "paths", "seeding", "grid", "registry"}
    assert {_layer(name) for name in imported} <= allowed | shared


@pytest.mark.parametrize("folder", ["pipeline", "stages"])
def test_what_dvc_runs_imports_no_dvc(folder: str) -> None:
    """Of the project, `tools` alone knows DVC's classes; DVCLive is imported where `launch.trackers` names it."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {(path.name, name) for name in names if name.split(".")[0] in ("dvc", "dvclive")}
    assert found == set()


RUN = RunId.of("${item.model}", "${item.fold}", 0, vocabulary="${item.vocabulary}")
FRAMES = RunId.of("${item.model}", "${item.fold}", 0)
PRETRAINED = RunId.of("${item.model}", "${item.fold}", 0, vocabulary="${item.vocabulary}", pretrained=True)


def _written(stage: str) -> list[Path]:
    """Return what a stage writes by the layout, with the names that dvc.yaml fills in."""
    layout, fold, vocabulary = Layout(), "${item.fold}", "${item.vocabulary}"
    step, _, form = stage.partition("_")
    run = {"frames": FRAMES, "tokens": RUN, "pretrained": PRETRAINED}.get(form, RUN)
    return {
        "code": [layout.code],
        "corpus": [layout.clips, layout.missing, layout.training_labels],
        "split": [layout.split(fold)],
        "spectrogram": [layout.spectrogram, layout.copies],
        "duplicates": [layout.duplicates],
        "development": [layout.development(fold), layout.targets(fold)],
        "supervision": [layout.training_targets(vocabulary, fold)],
        "network": [layout.network("${item.learned.vocabulary}", fold)],
        "vocabulary": [layout.vocabulary(vocabulary, fold)],
        "tokenize": [layout.tokens(vocabulary, fold), layout.development_tokens(vocabulary, fold)],
        "train": [layout.model(run), layout.curves(run)],
        "evaluate": [layout.prediction(run)],
        "pretrain": [layout.pretrained(RUN), layout.pretraining_curves(RUN)],
        "perplexity": [layout.pseudo_perplexity(RUN)],
        "enhance": [layout.labels(fold)],
        "thresholds": [layout.thresholds],
        "attention": [layout.attention("${item.model}")],
        "ngram": [layout.ngram_perplexity(vocabulary, fold)],
        "attribution": [layout.attribution(ModelId("${item.model}", vocabulary), "${experiment.folds[0]}")],
        "atlas": [layout.atlas(vocabulary)],
        "report": [
            layout.page,
            layout.data_page,
            layout.atlas_index,
            layout.summary,
            layout.vocabulary_statistics,
            layout.bit_rates,
            layout.plots,
        ],
    }[step]


@pytest.mark.parametrize("stage", GRAPH)
def test_dvc_yaml_spells_the_paths_of_the_layout(stage: str) -> None:
    outs = [next(iter(out)) if isinstance(out, dict) else out for out in GRAPH[stage]["outs"]]
    expected = [str(path).replace("/0.", "/${item.seed}.") for path in _written(stage)]
    assert outs == [re.sub("/0$", "/${item.seed}", path) for path in expected]


@pytest.mark.parametrize(
    "stage", ["supervision", "vocabulary", "pretrain", "train_frames", "train_tokens", "train_pretrained"]
)
def test_what_learns_depends_on_nothing_that_test_clips_change(stage: str) -> None:
    layout = Layout()
    others = [layout.clips, layout.splits, layout.spectrogram_index, layout.token_folder]
    deps = [Path(dep) for dep in GRAPH[stage]["deps"]]
    assert layout.development("${item.fold}") in deps
    assert layout.spectrogram not in deps
    assert not [dep for dep in deps for other in others if dep.is_relative_to(other)]
    reads_frames = stage in ("vocabulary", "train_frames")
    assert (layout.spectrogram_metadata in deps) == reads_frames  # the order, and DVC's lock


@pytest.mark.parametrize("stage", [name for name in GRAPH if name != "code"])
def test_a_stage_depends_on_its_own_file_of_code(stage: str) -> None:
    """The file of its program, for the entry that its matrix names, if it has one."""
    module = GRAPH[stage]["cmd"].split()[2].removeprefix("stages.")
    entry = next(
        (f"/${{item.{axis}}}" for axis in ("model", "vocabulary") if axis in GRAPH[stage].get("matrix", {})), ""
    )
    assert [dep for dep in GRAPH[stage]["deps"] if dep.startswith("code/")] == [f"code/{module}{entry}"]
    assert bool(STAGES[module].lists) == bool(entry)


def test_dvc_yaml_can_be_read() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert len(text.splitlines()) <= 370
    assert "How code is tracked" in text


def test_stage_names_are_params_sections() -> None:
    known = {*SECTIONS, "models", "vocabularies"}
    for body in GRAPH.values():
        assert {str(name).split(".")[0] for name in body.get("params", [])} <= known


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.name)
def test_stages_stay_thin(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 150


def test_init_files_are_empty() -> None:
    """What stood in one would run at the import of every module beside it; registries have their own files."""
    for path in (ROOT / "pipeline").rglob("__init__.py"):
        assert not path.read_text(), path


def test_the_tour_gives_every_file_its_line() -> None:
    assert tour.PAGE.read_text() == tour.render(tour.PAGE.read_text()), "run `python tests/tour.py`"

"""The commands and the program of docs/using.md run, in a folder that has the files that they name."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from experiments import run_experiment
from rich.console import Console
from typer.testing import CliRunner

from pipeline.artifacts.layout import Layout
from tools import bundle
from tools.sonolex import app

PAGE = (Path(__file__).parent.parent / "docs" / "using.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line for language, block in BLOCKS if not language for line in block.splitlines() if "sonolex predict" in line
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, recordings and a table of labels."""
    folder = tmp_path_factory.mktemp("using")
    settings = (
        "experiment.frame_models=[frame_statistics]",
        "experiment.token_models=[]",
        "experiment.vocabularies=[]",
    )
    experiment = run_experiment(folder / "experiment", settings)
    params, layout = experiment / "params.yaml", Layout(experiment)
    bundle.run(
        "frame_statistics",
        folder / "my-model",
        folds=(),
        params_path=params,
        layout=layout,
        console=Console(quiet=True),
    )
    (folder / "recordings" / "inner").mkdir(parents=True)
    for number, name in enumerate(("dog.wav", "day.flac", "recordings/a.wav", "recordings/inner/b.flac")):
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, 8 * 16000)
        soundfile.write(folder / name, noise, 16000)
    (folder / "test.csv").write_text(
        "path,label\nrecordings/a.wav,tone\nrecordings/inner/b.flac,noise\ndog.wav,noise\n"
    )
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(folder: Path, command: str) -> None:
    _, _, arguments = command.partition("sonolex ")
    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, shlex.split(arguments, comments=True), input="recordings/a.wav\n")
    assert result.exit_code == 0, result.output
    assert "real-time factor" in result.stderr


def test_the_program_runs(folder: Path) -> None:
    (program,) = [block for language, block in BLOCKS if language == "python" and "predict_files" in block]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(program, "using.md", "exec"), {})
    assert "0.0 5.0 [" in out.getvalue()
    assert "Failure(source='missing.wav', reason='missing'" in out.getvalue()

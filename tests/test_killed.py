"""A stage that is killed, at any moment and as often as one likes, ends with the bytes of an undisturbed run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import soundfile
from conftest import REPOSITORY, make_clips, make_waveform
from ruamel.yaml import YAML

ROUNDS, KILLS_A_ROUND = 10, 5  # after a round the run is let through, compared, and everything forgotten
NUM_CLIPS = 120

# Imports once, then forks a run for every line that it reads: what takes seconds of a run is to start it.
SERVER = """
import os, sys
from stages.spectrogram import main
for line in sys.stdin:
    child = os.fork()
    if not child:
        main()
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Return a workspace whose clips take long enough to be killed among: parts of one stereo recording at 44.1 kHz."""
    audio = tmp_path / "audio"
    audio.mkdir()
    recording = make_waveform("noise", 30.0, 44100)
    soundfile.write(audio / "long.flac", recording.repeat(2).reshape(-1, 2), 44100)
    starts = [0.1 * index for index in range(NUM_CLIPS)]
    columns: dict[str, Any] = {"clip_id": [f"clip{i:03d}" for i in range(NUM_CLIPS)], "start": starts}
    sources = ["long.flac"] * NUM_CLIPS
    make_clips(tmp_path / "data/clips.parquet", audio, sources, duration=[10.0] * NUM_CLIPS, **columns)
    yaml = YAML()
    params = yaml.load(REPOSITORY / "recipes" / "base.yaml")
    params["corpus"]["root"] = "audio"
    params["spectrogram"]["clips_per_shard"] = {"minimum": 3, "average": 5, "maximum": 7}
    params["execution"]["workers"] = 1
    yaml.dump(params, tmp_path / "params.yaml")
    return tmp_path


class Stage:
    """Starts runs of the stage in a workspace."""

    def __init__(self, workspace: Path) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=workspace,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._report = workspace / "results/stages/spectrogram.json"

    def start(self) -> int:
        """Start a run and return its process id."""
        print("go", file=self._server.stdin, flush=True)
        assert self._server.stdout
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """Wait for the run and return its exit status, negative for a signal."""
        assert self._server.stdout
        return int(self._server.stdout.readline())

    def finish(self) -> dict[str, Any]:
        """Let a run through and return its report."""
        self.start()
        assert self.wait() == 0
        report: dict[str, Any] = json.loads(self._report.read_text())
        return report

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.wait()


def _bytes(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def _finished_shards(workspace: Path) -> set[str]:
    return {str(path.parent) for path in (workspace / ".sonolex/memo").glob("*/*/[!.]*/entry.json")}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_fifty_kills_change_nothing(workspace: Path) -> None:
    artifact = workspace / "data" / "spectrogram"
    draw = random.Random(0)
    in_midst = 0
    with closing(Stage(workspace)) as stage:
        stage.finish()
        shutil.rmtree(workspace / ".sonolex")
        started = time.monotonic()
        assert stage.finish()["decoded"] == NUM_CLIPS
        duration = time.monotonic() - started
        whole = _bytes(artifact)
        for _ in range(ROUNDS):
            shutil.rmtree(workspace / ".sonolex")
            shutil.rmtree(artifact, ignore_errors=True)
            for _ in range(KILLS_A_ROUND):
                before = _finished_shards(workspace)
                process = stage.start()
                time.sleep(draw.uniform(0.02, 0.5) * duration)
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                stage.wait()
                after = _finished_shards(workspace)
                assert before <= after
                in_midst += len(before) < len(after)
                assert not artifact.exists() or _bytes(artifact) == whole
            reused = sum(json.loads(Path(shard, "entry.json").read_text())["clips"] for shard in after)
            report = stage.finish()
            assert (report["reused"], report["decoded"]) == (reused, NUM_CLIPS - reused)
            assert _bytes(artifact) == whole
            assert {path.name for path in artifact.parent.iterdir()} == {"clips.parquet", "spectrogram"}
    assert in_midst >= ROUNDS, "the kills came too early or too late to say anything"


@pytest.mark.slow
def test_killed_with_its_workers(workspace: Path) -> None:
    """The same with two worker processes, all killed at once."""
    artifact = workspace / "data" / "spectrogram"
    with closing(Stage(workspace)) as stage:
        stage.finish()
    whole = _bytes(artifact)
    shutil.rmtree(workspace / ".sonolex")
    shutil.rmtree(artifact)
    yaml = YAML()
    params = yaml.load(workspace / "params.yaml")
    params["execution"]["workers"] = 2
    yaml.dump(params, workspace / "params.yaml")
    command = [sys.executable, "-m", "stages.spectrogram"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=workspace, env=environment, start_new_session=True)
    while process.poll() is None and len(_finished_shards(workspace)) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not artifact.exists()
    done = _finished_shards(workspace)
    assert len(done) >= 3
    subprocess.run(command, cwd=workspace, env=environment, check=True)
    assert _bytes(artifact) == whole
    report = json.loads((workspace / "results/stages/spectrogram.json").read_text())
    assert report["reused"] == sum(json.loads(Path(shard, "entry.json").read_text())["clips"] for shard in done)
    assert not list((workspace / "data").rglob("*.partial"))

"""Sharing: results travel through a folder and through S3, and log-mel frames can stay at home."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ruamel.yaml import YAML
from workspace import FOLDS, change_params, clone_workspace, run, stages_run, stale

from benchmarks.remote_increment import pushes

pytestmark = pytest.mark.slow

BUCKET = "sonolex"
SENT = "          push: true\n"  # of data/spectrogram, in dvc.yaml


class Remote(NamedTuple):
    """A DVC remote: where it is, and what it takes to reach it."""

    url: str
    settings: dict[str, str]

    def add(self, workspace: Path) -> None:
        """Make it the workspace's own remote, in the part of DVC's configuration that git does not see."""
        run(workspace, "dvc", "remote", "add", "-q", "--local", "--default", "--force", "shelf", self.url)
        for name, value in self.settings.items():
            run(workspace, "dvc", "remote", "modify", "-q", "--local", "shelf", name, value)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Run an S3 server on this machine's own address, with one empty bucket, and return its endpoint."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    client.create_bucket(Bucket=BUCKET)
    yield endpoint
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    if request.param == "folder":
        return Remote(str(tmp_path / "shelf"), {})
    settings = {
        "endpointurl": request.getfixturevalue("s3"),
        "access_key_id": "tester",
        "secret_access_key": "tester",
        "region": "us-east-1",
    }
    return Remote(f"s3://{BUCKET}/shelf", settings)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished workspace, cache included, to change at will."""
    return Path(shutil.copytree(finished, tmp_path / "copied", symlinks=True))


def _files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _outputs(workspace: Path, stage: str) -> dict[str, str]:
    """Return the digests of a stage's outputs by their paths, as dvc.lock names them."""
    lock = YAML(typ="safe").load(workspace / "dvc.lock")
    return {out["path"]: out["md5"] for out in lock["stages"][stage]["outs"]}


def test_results_travel_and_nothing_is_computed_again(finished: Path, tmp_path: Path, remote: Remote) -> None:
    remote.add(finished)
    assert "pushed" in run(finished, "dvc", "push").stdout
    assert "Everything is up to date" in run(finished, "dvc", "push").stdout
    clone = clone_workspace(finished, tmp_path / "clone")
    remote.add(clone)
    run(clone, "dvc", "pull", "-q")
    assert stages_run(run(clone, "dvc", "repro").stdout) == ["code", "corpus"]  # which compares
    assert stale(clone) == set()
    for folder in ("data", "models", "predictions", "report"):
        assert _files(clone / folder) == _files(finished / folder)
    assert (clone / "results/metrics.json").read_bytes() == (finished / "results/metrics.json").read_bytes()


def test_a_server_that_is_not_there_is_an_error_and_loses_nothing(copied: Path) -> None:
    Remote(
        f"s3://{BUCKET}/shelf",
        {"endpointurl": "http://127.0.0.1:9", "access_key_id": "x", "secret_access_key": "x", "connect_timeout": "1"},
    ).add(copied)
    done = run(copied, "dvc", "push", check=False)
    assert done.returncode != 0
    assert "127.0.0.1:9" in done.stderr
    assert stale(copied) == set()


def test_frames_can_stay_out_of_a_remote_and_are_made_again_on_demand(copied: Path, tmp_path: Path) -> None:
    graph = copied / "dvc.yaml"
    assert graph.read_text().count(SENT) == 1
    graph.write_text(graph.read_text().replace(SENT, SENT.replace("true", "false")))
    assert stale(copied) == set()  # the setting invalidates nothing
    run(copied, "git", "commit", "-qam", "frames stay here")
    remote = Remote(str(tmp_path / "shelf"), {})
    remote.add(copied)
    run(copied, "dvc", "push", "-q")
    frames = _outputs(copied, "spectrogram")["data/spectrogram"]
    sent = {"".join(file.parts[-2:]) for file in (tmp_path / "shelf").rglob("*") if file.is_file()}
    tree = json.loads((copied / ".dvc/cache/files/md5" / frames[:2] / frames[2:]).read_text())
    assert not sent & {frames, *(entry["md5"] for entry in tree)}
    assert set(_outputs(copied, f"vocabulary@kmeans-{FOLDS[0]}").values()) <= sent

    clone = clone_workspace(copied, tmp_path / "clone")
    remote.add(clone)
    run(clone, "dvc", "pull", "--allow-missing")
    assert not (clone / "data/spectrogram").exists()
    assert stages_run(run(clone, "dvc", "repro", "--allow-missing").stdout) == ["code", "corpus"]
    assert (clone / "report/index.html").exists()
    assert not (clone / "data/spectrogram").exists()

    change_params(clone, {"vocabularies.kmeans.num_tokens": 20})
    stages = stages_run(run(clone, "dvc", "repro", f"tokenize@kmeans-{FOLDS[0]}").stdout)
    assert stages == [
        "code",
        "corpus",
        "spectrogram",
        *(f"{stage}@kmeans-{FOLDS[0]}" for stage in ("vocabulary", "tokenize")),
    ]
    assert _outputs(clone, "spectrogram")["data/spectrogram"] == frames  # the same bytes, from the audio
    item = f"ast-{FOLDS[0]}-0"
    assert stages_run(run(clone, "dvc", "repro", f"evaluate_frames@{item}").stdout) == ["code", "corpus"]


def test_a_push_after_the_corpus_grew_sends_the_disturbed_shards_alone(tmp_path: Path) -> None:
    first, at_end, scattered = pushes(tmp_path, num_clips=600, seconds=0.1)
    assert first.frame_objects == first.changed == first.shards >= 5
    assert at_end.frame_objects == at_end.changed <= 2  # what ends the corpus, and what is left over
    assert 1 <= scattered.frame_objects == scattered.changed <= 6  # new clips: as many shards, at most
    for push in (at_end, scattered):
        assert (
            push.objects <= 2 * push.frame_objects + 4
        )  # a shard's frames and shape; index, metadata, folder, manifest
        assert push.size < first.size

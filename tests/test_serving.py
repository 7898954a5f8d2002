"""`sonolex serve`: answers are those of `sonolex.load`, limits have clear answers, and no upload ends the server."""

import gzip
import http.client
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from browser import CHROMIUM, Page, browse_address
from conftest import REPOSITORY, make_waveform
from experiments import run_experiment
from PIL import Image
from rich.console import Console

import sonolex
from benchmarks import serving as serving_load
from pipeline.artifacts.layout import Layout
from pipeline.errors import SonolexError
from tools import bundle, serve
from tools.serving.limits import Gate, Limits, Refusal

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `serve`")
pytest.importorskip("fastapi", reason="needs the extra `serve`")

from tools.serving.app import Service, make_app  # noqa: E402 - they import the extra's packages
from tools.serving.centroids import centroid_frames  # noqa: E402
from tools.serving.models import ServedModel, open_models  # noqa: E402
from tools.serving.observer import HEADERS  # noqa: E402

LIMITS = Limits(max_bytes=400_000, max_seconds=3.0, workers=1)
KMEANS, BANDS, FRAMES = "bag_of_tokens-kmeans", "bag_of_tokens-bands", "frame_statistics"
EXPERIMENT = (
    f"experiment.frame_models=[{FRAMES}]",
    "experiment.token_models=[bag_of_tokens]",
    "experiment.vocabularies=[kmeans, bands]",
    "vocabularies.bands={kind: bands, bands: 4, num_tokens: 8}",
)

# A decoder that does what some uploads tell it to.
SABOTAGED = """
import os, sys, time
from tools.serving.decoder import answer_jobs, read_job

def read(job):
    with open(job["path"], "rb") as file:
        order = file.read(5)
    if order == b"CRASH":
        os.kill(os.getpid(), 9)
    if order == b"STALL":
        time.sleep(60)
    if order == b"NOISE":
        print("an answer that is no JSON", flush=True)
    return read_job(job)

answer_jobs(sys.stdin.buffer, sys.stdout.buffer, read)
"""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A server in a thread of this process."""

    def __init__(self, models: dict[str, ServedModel], limits: Limits = LIMITS, command: list[str] | None = None):
        self.service = Service(models, limits, command)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(make_app(self.service), log_config=None, timeout_graceful_shutdown=5)
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str = "") -> Answer:
        """Send a request, as a POST if it has a body, and return its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        response = connection.getresponse()
        answer = Answer(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        )
        connection.close()
        return answer

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("/metrics").body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@contextmanager
def half_an_upload(port: int, model: str = FRAMES) -> Iterator[socket.socket]:
    """Open a connection that has sent the first half of a sound."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        sound = wav()
        head = f"POST /models/{model}/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sound)}\r\n\r\n"
        connection.sendall(head.encode() + sound[: len(sound) // 2])
        yield connection


def requests_at_work(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    return int(json.loads(connection.getresponse().read())["requests"])


def wav(seconds: float = 0.5, kind: str = "tone", **format_: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, make_waveform(kind, seconds), 16000, **({"format": "WAV"} | format_))
    return file.getvalue()


def form(content: bytes, name: str, field: str = "file") -> tuple[bytes, dict[str, str]]:
    """Return a form with a file, and its headers."""
    head = f'--edge\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of bundles."""
    folder = tmp_path_factory.mktemp("serving")
    experiment = run_experiment(folder / "experiment", EXPERIMENT)
    for name in (FRAMES, KMEANS, BANDS):
        bundle.run(
            name,
            folder / "bundles" / name,
            folds=(),
            params_path=experiment / "params.yaml",
            layout=Layout(experiment),
            console=Console(quiet=True),
        )
    return folder / "bundles"


@pytest.fixture(scope="module")
def models(bundles: Path) -> dict[str, ServedModel]:
    return open_models([str(path) for path in sorted(bundles.iterdir())])


@pytest.fixture(scope="module")
def server(models: dict[str, ServedModel]) -> Iterator[Server]:
    server = Server(models)
    yield server
    server.close()


@pytest.fixture
def start(models: dict[str, ServedModel]) -> Iterator[Any]:
    """Return a function that starts a server of other limits."""
    with ExitStack() as servers:

        def start(limits: Limits, command: list[str] | None = None) -> Server:
            server = Server(models, limits, command)
            servers.callback(server.close)
            return server

        yield start


@pytest.mark.parametrize("model", [FRAMES, KMEANS])
def test_a_prediction_is_that_of_the_library(server: Server, bundles: Path, tmp_path: Path, model: str) -> None:
    (tmp_path / "clip.wav").write_bytes(wav())
    expected = sonolex.load(bundles / model).predict(tmp_path / "clip.wav")
    for body, headers, name in ((*form(wav(), "clip.wav"), "clip.wav"), (wav(), {}, "upload")):
        answer = server.ask(f"/models/{model}/predict?all=true", body, headers).json
        assert {key: answer[key] for key in ("source", "start", "end", "labels")} == {
            "source": name,
            "start": 0.0,
            "end": 0.5,
            "labels": expected.labels,
        }
        assert [(row["name"], row["score"]) for row in answer["scores"]] == [
            (name, pytest.approx(score, abs=1e-6)) for name, score in expected.top(3)
        ]
    assert len(server.ask(f"/models/{model}/predict?top=2", wav()).json["scores"]) == 2


def test_an_embedding_is_that_of_the_library(server: Server, bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(wav())
    expected = sonolex.load(bundles / FRAMES).embed(tmp_path / "clip.wav", layer="textures")
    answer = server.ask(f"/models/{FRAMES}/embed?layer=textures", wav()).json
    np.testing.assert_allclose(answer["embedding"], expected, rtol=1e-5, atol=1e-5)
    refused = server.ask(f"/models/{FRAMES}/embed", wav())  # a classical model has no layers
    assert (refused.status, refused.json["reason"]) == (422, "unusable")
    assert "the layer textures needs no network" in refused.json["message"]


def test_a_timeline_has_each_window_as_a_clip_of_its_own(server: Server, bundles: Path) -> None:
    samples = np.concatenate([make_waveform("tone", 1.0), make_waveform("noise", 1.25)])
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="FLOAT")
    answer = server.ask(f"/models/{KMEANS}/timeline?window=0.5&hop=0.5&spectrogram=true", file.getvalue()).json
    windows, model = answer["windows"], sonolex.load(bundles / KMEANS)
    assert windows["start"] == [0.0, 0.5, 1.0, 1.5, 1.75]
    assert windows["end"] == [0.5, 1.0, 1.5, 2.0, 2.25]
    for row, (start, stop) in enumerate(zip(windows["start"], windows["end"], strict=True)):
        part = model.predict(samples[round(16000 * start) : round(16000 * stop)], 16000)
        expected = [part.scores[part.classes.index(name)] for name in windows["classes"]]
        np.testing.assert_allclose(windows["scores"][row], expected, atol=2e-6)
    assert answer["scores"][0]["score"] == pytest.approx(model.predict(samples, 16000).top(1)[0].score, abs=1e-6)
    np.testing.assert_array_equal(answer["tokens"]["tokens"], model.tokens(samples, 16000))
    width, height = Image.open(io.BytesIO(_data(answer["spectrogram"]))).size
    assert (width, height) == (len(answer["tokens"]["tokens"][0]), 24)
    assert answer["frame_rate"] == answer["tokens"]["rate"] == 100.0
    assert server.ask(f"/models/{FRAMES}/timeline", wav()).json["tokens"] is None


def _data(address: str) -> bytes:
    import base64

    return base64.b64decode(address.partition(",")[2])


FLAC = {"format": "FLAC"}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "reason"),
    [
        (f"/models/{FRAMES}/predict", b"", {}, 400, "no_file"),
        (f"/models/{FRAMES}/predict", *form(wav(), "a.wav", field="sound"), 400, "no_file"),
        (f"/models/{FRAMES}/predict", b"--edge", {"Content-Type": "multipart/form-data"}, 400, "http"),
        ("/models/none/predict", wav(), {}, 404, "no_model"),
        ("/models/..%2F..%2Fetc/predict", wav(), {}, 404, "http"),
        ("/nothing", None, {}, 404, "http"),
        (f"/models/{FRAMES}/tokens/0/0.wav", None, {}, 404, "no_token"),
        (f"/models/{KMEANS}/tokens/0/8.wav", None, {}, 404, "no_token"),
        (f"/models/{KMEANS}/tokens/0/-1.wav", None, {}, 404, "no_token"),
        (f"/models/{KMEANS}/tokens/0/x.wav", None, {}, 422, "invalid"),
        (f"/models/{FRAMES}/predict", wav(10), {}, 413, "too_long"),
        (f"/models/{FRAMES}/predict", wav(60, "silence", **FLAC), {}, 413, "too_long"),
        (f"/models/{FRAMES}/predict", bytes(400_001), {}, 413, "too_many_bytes"),
        (f"/models/{FRAMES}/predict", [bytes(100_000)] * 5, {}, 413, "too_many_bytes"),
        (f"/models/{FRAMES}/predict", *form(bytes(400_001), "a.wav"), 413, "too_many_bytes"),
        (f"/models/{FRAMES}/predict", gzip.compress(wav()), {"Content-Encoding": "gzip"}, 415, "compressed"),
        (f"/models/{FRAMES}/predict", b"no sound at all", {}, 415, "unreadable"),
        (f"/models/{FRAMES}/predict", wav()[:4000], {}, 422, "truncated"),
        (f"/models/{FRAMES}/predict", wav(0.5, "silence"), {}, 422, "silent"),
        (f"/models/{FRAMES}/predict", wav(0.01), {}, 422, "too_short"),
        (f"/models/{FRAMES}/predict?top=0", wav(), {}, 422, "invalid"),
        (f"/models/{FRAMES}/timeline?window=nan", wav(), {}, 422, "invalid"),
        (f"/models/{FRAMES}/timeline?window=0.001", wav(), {}, 422, "short_window"),
        (f"/models/{FRAMES}/timeline?window=0.1&hop=0.001", wav(), {}, 422, "too_many_windows"),
    ],
)
def test_what_cannot_be_answered_is_named(
    server: Server, path: str, body: Any, headers: dict[str, str], status: int, reason: str
) -> None:
    answer = server.ask(path, body, headers)
    assert (answer.status, answer.json["reason"]) == (status, reason), answer.body
    assert answer.json["message"]
    assert "sonolex-serve" not in answer.json["message"]  # the folder of uploads
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_the_advice_for_too_many_windows_works(server: Server) -> None:
    path = f"/models/{FRAMES}/timeline?window=0.1&hop="
    least = re.search(r"at least (\S+) s", server.ask(path + "0.001", wav(2.5)).json["message"])
    assert least
    windows = server.ask(path + least[1], wav(2.5)).json["windows"]
    assert len(windows["start"]) <= LIMITS.windows
    assert windows["end"][-1] == 2.5
    assert (
        len(server.ask(f"/models/{FRAMES}/timeline?window=0.05", wav(2.9)).json["windows"]["start"]) <= LIMITS.windows
    )


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("../../etc/passwd.wav", "passwd.wav"),
        (r"C:\sounds\dog.wav", "dog.wav"),
        ("a/", "upload"),
        ("x" * 500, "x" * 200),
    ],
)
def test_a_clients_file_name_is_a_label_alone(server: Server, name: str, source: str) -> None:
    body, headers = form(wav(), name)
    assert server.ask(f"/models/{FRAMES}/predict", body, headers).json["source"] == source
    body, headers = form(b"no sound", name)
    assert server.ask(f"/models/{FRAMES}/predict", body, headers).json["message"].startswith(f"{source}: expected WAV")


def test_a_crash_or_a_stall_takes_the_decoder_alone(start: Any, tmp_path: Path) -> None:
    (tmp_path / "sabotaged.py").write_text(SABOTAGED)
    server = start(replace(LIMITS, decode_seconds=5.0), [sys.executable, str(tmp_path / "sabotaged.py")])
    path = f"/models/{FRAMES}/predict"
    expected = server.ask(path, wav()).json
    for order in (b"CRASH", b"NOISE"):
        answer = server.ask(path, order)
        assert (answer.status, answer.json["reason"]) == (422, "decoder_died")
        assert server.ask(path, wav()).json == expected
    server.service.limits = replace(LIMITS, decode_seconds=0.3)
    server.service._decoders._limits = server.service.limits
    answer = server.ask(path, b"STALL")
    assert (answer.status, answer.json["reason"]) == (504, "decoding_timeout")
    server.service._decoders._limits = replace(LIMITS, decode_seconds=30.0)
    assert server.ask(path, wav()).json == expected
    assert server.metric('sonolex_lost_decoders_total{cause="died"}') == 2
    assert server.metric('sonolex_lost_decoders_total{cause="timeout"}') == 1


def test_mutated_uploads_are_survived(server: Server) -> None:
    random = np.random.default_rng(0)
    sounds = [wav(), wav(**FLAC), wav(format="OGG"), wav(format="MP3")]
    statuses = set()
    for number in range(80):
        content = np.frombuffer(sounds[number % 4], np.uint8).copy()
        places = random.integers(0, len(content) if number % 8 < 4 else 100, 1 + number // 4)
        content[places] = random.integers(0, 256, len(places))
        statuses.add(server.ask(f"/models/{KMEANS}/timeline", content.tobytes()).status)
    assert statuses <= {200, 413, 415, 422}
    assert {200, 422} <= statuses
    assert server.ask("/health").json == {"status": "ok", "models": [BANDS, KMEANS, FRAMES], "requests": 0}


def test_the_gate_counts_all_and_each_client() -> None:
    gate = Gate(replace(LIMITS, requests=3, requests_of_client=2))
    with gate.admit("a"), gate.admit("a"):
        with pytest.raises(Refusal, match="at most 2 requests at once from one address") as refused, gate.admit("a"):
            pass
        assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
        with gate.admit("b"):
            with pytest.raises(Refusal, match="at most 3 requests at once") as refused, gate.admit("c"):
                pass
            assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        with gate.admit("c"):
            pass
    assert gate.open == 0
    assert not gate._of_client


@pytest.mark.parametrize(("requests", "of_client", "status"), [(2, 9, 503), (9, 2, 429)])
def test_too_many_requests_are_asked_to_come_again(start: Any, requests: int, of_client: int, status: int) -> None:
    server = start(replace(LIMITS, requests=requests, requests_of_client=of_client))
    with half_an_upload(server.port) as first, half_an_upload(server.port):
        while server.ask("/health").json["requests"] < 2:
            pass
        answer = server.ask(f"/models/{FRAMES}/predict", wav())
        assert (answer.status, answer.headers["retry-after"]) == (status, "1")
        first.sendall(wav()[len(wav()) // 2 :])
        assert b"200 OK" in first.recv(1000)
        while server.ask("/health").json["requests"] > 1:
            pass
        assert server.ask(f"/models/{FRAMES}/predict", wav()).status == 200


def test_an_upload_that_does_not_arrive_is_given_up(start: Any) -> None:
    server = start(replace(LIMITS, upload_seconds=0.2))
    with half_an_upload(server.port) as connection:
        assert b"408" in connection.recv(1000)
    assert server.ask("/health").json["requests"] == 0


def test_uploads_are_removed(server: Server) -> None:
    folder = server.service._folder
    with half_an_upload(server.port):
        while not list(folder.iterdir()):
            pass
    for body in (wav(), b"no sound"):
        server.ask(f"/models/{FRAMES}/predict", body)
    while server.ask("/health").json["requests"]:
        pass
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o077 == 0


def test_metrics_have_few_labels(server: Server) -> None:
    for number in range(3):
        server.ask(f"/nothing/{number}")
    server.ask(f"/models/{FRAMES}/predict", wav())
    text = server.ask("/metrics").body.decode()
    routes = set(re.findall(r'sonolex_requests_total\{route="([^"]*)"', text))
    assert "/models/{name}/predict" in routes
    assert "other" in routes
    assert not any("nothing" in route for route in routes)
    assert server.metric(f'sonolex_sound_seconds_total{{model="{FRAMES}"}}') > 0


def test_the_page_is_whole_without_any_other_host(server: Server) -> None:
    page = server.ask("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    linked = re.findall(r'(?:src|href)="([a-z][^":]*)"', page.body.decode())
    assert {"look.css", "page.css", "page.js", "openapi.json"} <= set(linked)
    for name in (*linked, "recorder.js"):
        answer = server.ask(f"/{name}")
        assert answer.status == 200, name
        outside = re.findall(rb"https?://(?!127\.0\.0\.1|www\.w3\.org/2000/svg)[\w.]+", answer.body)
        assert not outside, (name, outside)
    assert server.ask("/", method="HEAD").status == 200


def test_openapi_describes_uploads_and_refusals(server: Server) -> None:
    described = server.ask("/openapi.json").json
    for route in ("predict", "embed", "timeline"):
        post = described["paths"][f"/models/{{name}}/{route}"]["post"]
        assert "multipart/form-data" in post["requestBody"]["content"]
        assert {"200", "400", "408", "413", "415", "422", "429", "503", "504"} <= set(post["responses"])
    operations = [part["operationId"] for path in described["paths"].values() for part in path.values()]
    assert len(set(operations)) == len(operations) == 7
    names = [model["name"] for model in server.ask("/models").json]
    assert names == [BANDS, KMEANS, FRAMES]


def test_a_token_sounds_like_its_centroid(server: Server, models: dict[str, ServedModel]) -> None:
    for name, codebook in ((KMEANS, 0), (BANDS, 2)):
        model = models[name]
        assert model.vocabulary
        sound = server.ask(f"/models/{name}/tokens/{codebook}/5.wav")
        samples, _ = soundfile.read(io.BytesIO(sound.body), dtype="float32")
        assert np.abs(samples).max() == pytest.approx(0.5, abs=0.01)
        front_end = model.classifier.front_end
        wanted = centroid_frames(model.vocabulary, front_end, codebook, 5, 1)[0]
        found = front_end.log_mel(samples)[10:-10].mean(axis=0)
        heard = wanted > wanted.max() - 6  # nepers; what is quieter is noise of the inversion
        assert heard.sum() >= 3
        assert np.corrcoef(wanted[heard], found[heard])[0, 1] > 0.8
    bands = found.reshape(4, 6)
    assert bands.mean(axis=1).argmax() == 2


# ---- starting and ending


def run_serve(*bundles: str, host: str = "127.0.0.1", port: int = 0) -> None:
    serve.run(
        bundles,
        host=host,
        port=port,
        max_bytes=10**6,
        max_seconds=3.0,
        requests=4,
        requests_of_client=4,
        console=Console(quiet=True),
    )


def test_wrong_starts_are_named(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SonolexError, match=r"expected a bundle, a folder with bundle\.json, found nothing"):
        run_serve(str(bundles / "none"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SonolexError, match=rf"127\.0\.0\.1:{port}: .*in use; choose another with --port"):
            run_serve(str(bundles / FRAMES), port=port)
    with pytest.raises(SonolexError, match=r"no\.such\.host\.invalid:0: expected an address to listen on"):
        run_serve(str(bundles / FRAMES), host="no.such.host.invalid")
    with pytest.raises(SonolexError, match=r":99999: expected an address to listen on"):
        run_serve(str(bundles / FRAMES), port=99999)
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "fastapi" else name)
    with pytest.raises(SonolexError, match=r"found no fastapi; .*`pip install -e '\.\[serve\]'`"):
        run_serve(str(bundles / FRAMES))


def test_two_bundles_of_one_name_are_refused_with_advice_that_works(bundles: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundles / FRAMES, tmp_path / FRAMES)
    with pytest.raises(SonolexError, match=r"different names, found another called frame_statistics") as refused:
        open_models([str(bundles / FRAMES), str(other)])
    advised = re.search(r"`sonolex serve (.*)`", str(refused.value))
    assert advised
    assert list(open_models(advised[1].split())) == [FRAMES, f"{FRAMES}-2"]
    with pytest.raises(SonolexError, match="expected FOLDER, or NAME=FOLDER with a name without `/`"):
        open_models([f"a/b={other}"])


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the command, and yield its process and port."""
    with subprocess.Popen(
        [sys.executable, "-m", "tools.sonolex", "serve", *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout
        try:
            found = re.match(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
            assert found
            yield process, int(found[1])
        finally:
            process.kill()


def children(process: subprocess.Popen[str]) -> list[Path]:
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [Path("/proc") / pid for pid in pids]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc, to see the decoders")
def test_sigterm_answers_what_is_at_work_and_leaves_nothing(bundles: Path) -> None:
    with serving(str(bundles / FRAMES)) as (process, port):
        with half_an_upload(port) as connection:
            while not (decoders := children(process)) or not requests_at_work(port):
                pass  # a connection that is not taken yet is refused
            process.send_signal(signal.SIGTERM)
            while True:  # until it listens no more
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=60).close()
                except ConnectionError:
                    break
            connection.sendall(wav()[len(wav()) // 2 :])
            assert b"200 OK" in connection.recv(10_000)
        assert process.wait(60) == 0
        assert not any(path.exists() for path in decoders)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc, to see the decoders")
def test_decoders_end_with_a_server_that_was_killed(bundles: Path) -> None:
    with serving(str(bundles / FRAMES)) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", f"/models/{FRAMES}/predict", wav())
        assert connection.getresponse().status == 200
        decoders = children(process)
        assert decoders
        process.kill()
        process.wait()
        while any(path.exists() for path in decoders):
            pass


@pytest.mark.slow
def test_the_load_test_loses_nothing(bundles: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.wav" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(wav(0.5 + 0.1 * number))
    rows = serving_load.run(bundles / KMEANS, paths, requests=8, mutations=8, repeats=1)
    assert [row["what"].partition(",")[0] for row in rows[:4]] == [
        "bare predict",
        "1 clients",
        "8 clients",
        "32 clients",
    ]
    assert all(row["statuses"] == "5 x 200" and row["other answers"] == 0 for row in rows[:4])
    assert rows[4]["statuses"] == "8 x 200"
    assert rows[5]["what"].endswith("as before")


# ---- the page


def drop(page: Page, content: bytes, name: str) -> None:
    """Choose a file, as if by hand."""
    import base64

    page.run(
        f"""(() => {{
        const bytes = Uint8Array.from(atob("{base64.b64encode(content).decode()}"), letter => letter.charCodeAt(0));
        const held = new DataTransfer(), input = document.getElementById("file");
        held.items.add(new File([bytes], "{name}"));
        input.files = held.files;
        input.dispatchEvent(new Event("change")); }})()"""
    )


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Return the page, with a microphone that hears a real clip where there is one."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: no chromium, chromium-browser or google-chrome on this machine")
    folder = tmp_path_factory.mktemp("page")
    clips = sorted((REPOSITORY.parent / "shared" / "data" / "esc10" / "audio").glob("*"))
    samples, rate = soundfile.read(clips[0]) if clips else (make_waveform("chirp", 5.0, frequency=4000.0), 16000)
    soundfile.write(folder / "microphone.wav", samples, rate, subtype="PCM_16")
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    heard = f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}"
    with browse_address(f"http://127.0.0.1:{server.port}/", folder / "profile", *flags, heard) as page:
        page.resize(1280, 900)
        page.wait("document.querySelectorAll('#model option').length === 3")
        yield page


def text(page: Page, name: str) -> str:
    return str(page.run(f"document.getElementById('{name}').textContent"))


def choose_model(page: Page, name: str) -> None:
    page.run(f"document.getElementById('model').value = '{name}'")


@pytest.mark.slow
def test_a_file_is_shown_played_and_its_tokens_heard(page: Page) -> None:
    choose_model(page, BANDS)
    drop(page, wav(2.0), "tone.wav")
    page.wait("!document.getElementById('result').hidden")
    assert text(page, "source") == "tone.wav, 2.00 s"
    assert text(page, "labels")
    page.run("document.getElementById('player').play()")
    page.wait("document.getElementById('player').ended && document.getElementById('position').value > 1.9")
    assert page.run("[...document.querySelectorAll('#buttons button')].map(node => node.ariaLabel)") == [
        f"Play token {token} of codebook {book + 1}" for book, token in enumerate(_last_tokens(page))
    ]
    page.run("document.querySelectorAll('#buttons button')[1].focus()")
    page.press(" ", "Space")
    page.wait("document.getElementById('heard').textContent.includes('of codebook 2: its centroid')")
    page.run("document.getElementById('position').focus()")
    page.press("Home")
    page.wait("document.getElementById('time').textContent.startsWith('0.00 of')")
    choose_model(page, FRAMES)
    page.run("document.getElementById('model').dispatchEvent(new Event('change'))")
    page.wait("document.getElementById('tokens-here').hidden")
    assert page.errors == []


def _last_tokens(page: Page) -> list[int]:
    found = page.run("[...document.querySelectorAll('#buttons button')].map(node => Number(node.dataset.token))")
    return [int(token) for token in found]


@pytest.mark.slow
def test_the_microphone_is_shown_while_it_records_and_after(page: Page) -> None:
    choose_model(page, KMEANS)
    page.run("document.getElementById('record').focus()")
    page.press(" ", "Space")
    page.wait("document.getElementById('source').textContent.startsWith('microphone')")
    assert text(page, "record") == "Stop"
    page.press(" ", "Space")
    page.wait("document.getElementById('source').textContent.startsWith('recording.wav')")
    page.wait("document.getElementById('player').duration > 0.4")
    assert text(page, "status") == ""
    assert page.errors == []


@pytest.mark.slow
def test_refusals_are_shown(page: Page) -> None:
    drop(page, b"no sound at all", "notes.txt")
    page.wait("document.getElementById('status').className === 'bad'")
    assert text(page, "status").startswith("notes.txt: expected WAV, FLAC, OGG or MP3")
    drop(page, bytes(400_001), "large.wav")
    page.wait("document.getElementById('status').textContent.includes('expected at most 0.4 MB')")


@pytest.mark.slow
def test_the_page_fits_a_desk_and_a_phone_and_all_its_controls_have_names(page: Page) -> None:
    choose_model(page, BANDS)
    drop(page, wav(2.0), "a-very-long-name-without-any-place-to-break-it-as-recorders-write-them.wav")
    page.wait("document.getElementById('source').textContent.startsWith('a-very')")
    for width in (1280, 390):
        page.resize(width, 900)
        assert page.run("document.documentElement.scrollWidth") <= width
        boxes = page.run(
            "[...document.querySelectorAll('select, button, .button')].map(node => node.getBoundingClientRect())"
            ".map(({left, top, right, bottom}) => [left, top, right, bottom])"
        )
        for number, (left, top, right, bottom) in enumerate(boxes):
            for other_left, other_top, other_right, other_bottom in boxes[:number]:
                apart = right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top
                assert apart, (width, boxes)
    nameless = "node => !(node.ariaLabel || node.textContent.trim() || node.labels?.length)"
    assert page.run(f"[...document.querySelectorAll('button, input, select, a')].filter({nameless}).length") == 0
    assert page.errors == []

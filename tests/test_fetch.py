"""Published corpora are downloaded, checked and unpacked, whatever the network, the server or the archive does."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from file_server import FileServer, file_server
from rich.console import Console
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pipeline.errors import SonolexError
from tools import byte_progress, fetch
from tools.byte_progress import ByteCounter
from tools.fetching.catalogue import Corpus, find_corpus, load_catalogue
from tools.fetching.download import Patience, download
from tools.fetching.split_zip import open_zip
from tools.fetching.unpack import Unpacked, unpack
from tools.sonolex import app

CATALOGUE = REPOSITORY / "metadata" / "corpora.yaml"
AT_ONCE = Patience(attempts=3, pause=0.0, timeout=20.0)
CONTENT = bytes(range(256)) * 1024
FILES = {"top/audio/a.wav": b"first" * 1000, "top/meta/list.csv": b"file,label\n"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with file_server() as state:
        yield state


def zip_of(files: dict[str, bytes], **kind: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def corpus_of(server: FileServer, names: Sequence[str] = ("a.zip",), **values: Any) -> Corpus:
    """Return a corpus of one archive, which has the given parts of the server, with their true sizes and checksums."""
    parts = []
    for name in names:
        content = server.files.get(f"/{name}", b"")
        checksum = f"md5:{hashlib.md5(content).hexdigest()}"
        parts.append({"url": f"{server.url}/{name}?download=1", "size": len(content), "checksum": checksum})
        parts[-1] |= {"checksum_from": "published by the test"} | values.pop("part", {})
    archive = {"parts": parts, "strip": values.pop("strip", "top")}
    texts = {"title": "A corpus", "page": "https://example.org", "licence": "CC0", "licence_url": "u", "citation": "c"}
    fields = {"folder": "A", "recipe": "esc50", "max_unpacked": 10**6, "archives": [archive]}
    return Corpus.model_validate(texts | fields | values)


def fetch_it(corpus: Corpus, to: Path, **options: Any) -> str:
    """Fetch with the licence accepted and without pauses; return what is printed."""
    stream = io.StringIO()
    chosen = fetch.Options(to, **{"accepted": True, "patience": AT_ONCE} | options)
    fetch.run("a", corpus, chosen, Console(file=stream, width=200))
    return stream.getvalue()


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".fetched.json"
    }


UNPACKED = {"audio/a.wav": b"first" * 1000, "meta/list.csv": b"file,label\n"}


# The catalogue


def test_the_catalogue_is_complete() -> None:
    corpora = load_catalogue(CATALOGUE)
    assert list(corpora) == ["esc50", "speech_commands", "fsd50k", "urbansound8k", "irmas", "openmic2018"]
    for name, corpus in corpora.items():
        names = [file.name for file in corpus.files]
        assert len({*names}) == len(names), name
        assert all(file.checksum_from for file in corpus.files if file.checksum), name
        assert all("zenodo.org" in file.url for file in corpus.files if file.checksum_from == "published by Zenodo")
        for archive in corpus.archives:
            assert archive.parts[-1].name.endswith((".zip", ".tar.gz", ".tgz"))
            assert [part.name[-4:] for part in archive.parts[:-1]] == [
                f".z{number:02}" for number in range(1, len(archive.parts))
            ]


@pytest.mark.parametrize("name", ["esc50", "speech_commands", "fsd50k", "urbansound8k", "irmas", "openmic2018"])
def test_the_recipe_of_a_corpus_expects_it_where_fetch_puts_it(name: str) -> None:
    corpus = load_catalogue(CATALOGUE)[name]
    path = REPOSITORY / "recipes" / f"{corpus.recipe}.yaml"
    assert YAML(typ="safe").load(path)["corpus"]["root"] == f"audio/{corpus.folder}"


def test_a_wrong_key_of_the_catalogue_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpora.yaml"
    path.write_text(CATALOGUE.read_text().replace("md5:9aa69802", "md5:9AA", 1).replace("citation:", "cite:", 1))
    with pytest.raises(SonolexError) as raised:
        load_catalogue(path)
    message = str(raised.value)
    assert "esc50.citation" in message
    assert "urbansound8k.archives.0.parts.0.checksum" in message


@pytest.mark.parametrize(
    "url", ["https://a.org/..", "https://a.org/%2e%2e", "https://a.org/a%2f..", "file:///etc/passwd"]
)
def test_an_address_is_of_a_file_on_a_server(server: FileServer, url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        corpus_of(server, part={"url": url})


def test_a_wrong_name_lists_the_others() -> None:
    with pytest.raises(SonolexError, match=r"esc50, speech_commands, .*did you mean `sonolex fetch esc50`"):
        find_corpus(load_catalogue(CATALOGUE), "ESC-50")


def test_the_list_shows_names_sizes_and_licences() -> None:
    result = CliRunner().invoke(app, ["fetch", "--list", "--catalogue", str(CATALOGUE)])
    assert result.exit_code == 0
    (row,) = (line for line in result.stdout.splitlines() if "fsd50k" in line)
    assert "24.7 GB" in row
    assert "CC BY 4.0" in row
    assert "size unknown" in result.stdout  # of IRMAS


# The whole command


@pytest.mark.parametrize("keep", [False, True])
def test_a_corpus_is_fetched_and_unpacked(server: FileServer, tmp_path: Path, keep: bool) -> None:
    server.files["/a.zip"] = zip_of(FILES)
    shown = fetch_it(corpus_of(server), tmp_path / "audio", keep=keep)
    assert content_of(tmp_path / "audio" / "A") == UNPACKED
    assert shown.index("licence: CC0") < shown.index("2 files")
    assert f"sonolex compose esc50 corpus.root={tmp_path}/audio/A\n" in shown
    assert (tmp_path / "audio" / ".fetch" / "a" / "a.zip").exists() == keep
    assert (tmp_path / "audio" / ".fetch").exists() == keep


def test_a_second_run_does_nothing(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.zip"] = zip_of(FILES)
    corpus = corpus_of(server)
    fetch_it(corpus, tmp_path)
    server.asked.clear()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    shown = fetch_it(corpus, tmp_path)
    assert "nothing to do" in shown
    assert "sonolex compose esc50" in shown
    assert server.asked == []
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_the_program_fetches_from_a_catalogue(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.zip"] = zip_of(FILES)
    catalogue = tmp_path / "corpora.yaml"
    catalogue.write_text(json.dumps({"mine": corpus_of(server).model_dump()}))
    arguments = ["fetch", "mine", "--catalogue", str(catalogue), "--to", str(tmp_path / "my audio")]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "give it with --yes" in refused.stderr
    assert server.asked == []
    result = CliRunner().invoke(app, [*arguments, "--yes"])
    assert result.exit_code == 0
    assert content_of(tmp_path / "my audio" / "A") == UNPACKED
    assert f"'corpus.root={tmp_path}/my audio/A'" in result.stdout


@pytest.mark.parametrize("answer", [True, False])
def test_the_licence_is_asked_for_on_a_terminal(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    server.files["/a.zip"] = zip_of(FILES)
    monkeypatch.setattr(fetch.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(fetch.typer, "confirm", lambda text: answer)
    if answer:
        fetch_it(corpus_of(server), tmp_path, accepted=False)
    else:
        with pytest.raises(SonolexError, match="nothing was downloaded"):
            fetch_it(corpus_of(server), tmp_path, accepted=False)
    assert bool(server.asked) == answer == (tmp_path / "A").exists()


def test_a_folder_of_ones_own_is_not_touched(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.zip"] = zip_of(FILES)
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "mine.wav").write_bytes(b"mine")
    with pytest.raises(SonolexError, match=r"expected no such folder.*choose another place with --to"):
        fetch_it(corpus_of(server), tmp_path)
    assert content_of(tmp_path / "A") == {"mine.wav": b"mine"}
    assert server.asked == []


def test_an_archive_without_a_checksum_is_named(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.zip"] = zip_of(FILES)
    corpus = corpus_of(server, part={"checksum": None, "checksum_from": None})
    assert "no checksum is known of a.zip" in fetch_it(corpus, tmp_path)
    record = json.loads((tmp_path / "A" / ".fetched.json").read_text())
    assert record == {"a.zip": f"sha256:{hashlib.sha256(server.files['/a.zip']).hexdigest()}"}
    assert "nothing to do" in fetch_it(corpus, tmp_path)


# The network


def download_it(server: FileServer, target: Path, size: int | None = len(CONTENT)) -> list[str]:
    """Download `/file`, and return the ranges that were asked for."""
    server.files.setdefault("/file", CONTENT)
    server.asked.clear()
    download(f"{server.url}/file", target, size, ByteCounter(size, lambda done, total: None), AT_ONCE)
    return [asked for path, asked in server.asked]


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_broken_connection_is_continued(server: FileServer, tmp_path: Path, lengths: bool, size: int | None) -> None:
    server.cuts, server.lengths = [100_000, 50_000], lengths
    assert download_it(server, tmp_path / "file", size) == ["", "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    assert server.agents == {"sonolex"}  # some servers allow less to programs that do not say who they are


@pytest.mark.parametrize("lengths", [True, False])
def test_without_ranges_the_file_is_begun_again(server: FileServer, tmp_path: Path, lengths: bool) -> None:
    server.cuts, server.ranges, server.lengths = [100_000], False, lengths
    assert download_it(server, tmp_path / "file") == ["", "bytes=100000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_progress_counts_bytes_and_not_those_that_were_lost(server: FileServer, tmp_path: Path) -> None:
    server.files["/file"], server.cuts, server.ranges = CONTENT, [100_000], False
    seen: list[tuple[int, int | None]] = []
    counter = ByteCounter(None, lambda done, total: seen.append((done, total)))
    download(f"{server.url}/file", tmp_path / "file", None, counter, AT_ONCE)
    assert [done for done, total in seen] == [0, 100_000, 0, len(CONTENT)]
    assert {total for done, total in seen} == {len(CONTENT)}


def test_progress_is_a_bar_with_a_rate_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    with byte_progress.byte_progress("a.zip", None) as counter:
        counter.start(50_000_000, 100_000_000)
        counter.advance(25_000_000)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(r"a\.zip .*75\.0/100\.0 MB \S+ [A-Za-z]+/s", shown)


def test_progress_is_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(byte_progress, "_SECONDS_BETWEEN_LINES", -1.0)
    caplog.set_level("INFO")
    with byte_progress.byte_progress("a.zip", None) as counter:
        counter.start(500_000_000, 2_000_000_000)
        counter.advance(250_000_000)
    first, second = caplog.messages
    assert first == "a.zip: 0.50 of 2.00 GB, 0.0 MB/s"  # of an earlier run
    assert re.fullmatch(r"a\.zip: 0\.75 of 2\.00 GB, [\d.]+ MB/s", second)


def test_a_server_that_brings_nothing_is_given_up_and_continued_later(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 0, 0]
    with pytest.raises(
        SonolexError, match=r"3 attempts in a row\); 100,000 bytes are in .*/file.part: check the network"
    ):
        download_it(server, tmp_path / "file")
    assert len(server.asked) == 4
    server.cuts.clear()
    assert download_it(server, tmp_path / "file") == ["bytes=100000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(SonolexError, match=r"127\.0\.0\.1:9/a.*refused.*check the network"):
        download("http://127.0.0.1:9/a", tmp_path / "a", None, ByteCounter(None, lambda done, total: None), AT_ONCE)


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.answers = [(503, {}), (429, {"Retry-After": "7"})]
    assert download_it(server, tmp_path / "file") == ["", "", ""]
    assert pauses == [0.0, 7.0]


def test_a_missing_file_is_not_asked_for_again(server: FileServer, tmp_path: Path) -> None:
    server.answers = [(404, {}), (404, {})]
    with pytest.raises(SonolexError, match=r"/file: expected a file, found the answer 404 Not Found; look whether"):
        download_it(server, tmp_path / "file")
    assert len(server.asked) == 1


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_complete_part_needs_no_byte(server: FileServer, tmp_path: Path, size: int | None) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert download_it(server, tmp_path / "file", size) == ([] if size else [f"bytes={len(CONTENT)}-"])
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_part_that_is_too_long_is_discarded(server: FileServer, tmp_path: Path, size: int | None) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    assert download_it(server, tmp_path / "file", size)[-1] == ""
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_range_that_begins_elsewhere_is_not_appended(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    server.answers = [(206, {"Content-Range": f"bytes 0-9/{len(CONTENT)}"})]
    assert download_it(server, tmp_path / "file") == ["bytes=1000-", ""]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_of_another_size_is_refused_before_it_is_downloaded(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(SonolexError, match=r"expected 5 bytes, found 262,144 on the server.*correct size and checksum"):
        download_it(server, tmp_path / "file", 5)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_shorter_than_its_size_is_no_whole_one(server: FileServer, tmp_path: Path) -> None:
    server.lengths = False  # so that only the catalogue knows
    server.files["/file"] = CONTENT[:-1]
    with pytest.raises(SonolexError, match="expected 262,144 bytes, found 262,143 on the server"):
        download_it(server, tmp_path / "file")
    server.ranges = False
    with pytest.raises(SonolexError, match="expected the whole file, found a connection that ended early"):
        download_it(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_an_endless_answer_is_cut_at_the_known_size(server: FileServer, tmp_path: Path) -> None:
    server.lengths = False
    with pytest.raises(SonolexError, match="expected 100 bytes, found more"):
        download_it(server, tmp_path / "file", 100)


def test_a_redirect_is_followed_with_its_range(server: FileServer, tmp_path: Path) -> None:
    server.redirects["/file"] = "/elsewhere"
    server.files["/elsewhere"], server.cuts = CONTENT, [1000]
    assert download_it(server, tmp_path / "file") == ["", "", "bytes=1000-", "bytes=1000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_circle_of_redirects_ends(server: FileServer, tmp_path: Path) -> None:
    server.redirects["/file"] = "/file"
    with pytest.raises(SonolexError, match="redirects"):
        download_it(server, tmp_path / "file")


def test_bytes_are_stored_as_they_are_sent(server: FileServer, tmp_path: Path) -> None:
    """Some servers call a .tar.gz a compressed answer; a client that unpacks it gets another checksum."""
    server.headers = {"Content-Encoding": "gzip"}
    download_it(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


# Checksums, disks and kills


def test_a_wrong_checksum_is_named_and_the_advice_works(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.zip"] = zip_of(FILES)
    corpus = corpus_of(server, part={"checksum": f"md5:{'0' * 32}"})
    with pytest.raises(SonolexError) as raised:
        fetch_it(corpus, tmp_path)
    for text in (f"{tmp_path}/.fetch/a/a.zip", f"md5:{'0' * 32} (published by the test)", f"{server.url}/a.zip"):
        assert text in str(raised.value)
    assert not (tmp_path / "A").exists()
    server.asked.clear()
    server.answers = [(404, {})]
    with pytest.raises(SonolexError, match="404"):
        fetch_it(corpus, tmp_path)
    assert not (tmp_path / ".fetch" / "a" / "a.zip").exists()  # makes room for the new one
    with pytest.raises(SonolexError, match="run the same command again"):
        fetch_it(corpus, tmp_path)
    assert server.asked == [("/a.zip", "")] * 2  # anew
    server.asked.clear()
    fetch_it(corpus_of(server), tmp_path)  # with the checksum corrected
    assert server.asked == []
    assert content_of(tmp_path / "A") == UNPACKED


def test_a_full_disk_keeps_what_has_arrived(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.zip"] = zip_of(FILES | {"top/noise": os.urandom(200_000)})
    part = tmp_path / ".fetch" / "a" / "a.zip.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as raised:
        fetch_it(corpus_of(server), tmp_path)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(part)  # the program prints it, with what to do
    part.unlink()
    part.write_bytes(server.files["/a.zip"][:1000])
    server.asked.clear()
    fetch_it(corpus_of(server), tmp_path)
    assert server.asked == [("/a.zip", "bytes=1000-")]


@pytest.mark.parametrize("free", [100, 20_000])
def test_what_does_not_fit_the_disk_is_said_before(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """Before the download, and before unpacking: the zip is small, and its files are not."""
    server.files["/a.zip"] = zip_of(FILES | {"top/zeros": bytes(500_000)}, compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - free, free))
    with pytest.raises(SonolexError, match="free for the download" if free == 100 else "free to unpack a.zip"):
        fetch_it(corpus_of(server), tmp_path)
    assert bool(server.asked) == (free == 20_000)
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server.asked.clear()
    fetch_it(corpus_of(server), tmp_path)
    assert bool(server.asked) == (free == 100)


@pytest.mark.slow
def test_a_killed_run_is_continued(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.zip"] = zip_of(FILES | {"top/noise": os.urandom(3_000_000)})
    server.hold_after = 2_000_000
    corpus = corpus_of(server, max_unpacked=10**7)
    catalogue, part = tmp_path / "corpora.yaml", tmp_path / "audio" / ".fetch" / "mine" / "a.zip.part"
    catalogue.write_text(json.dumps({"mine": corpus.model_dump()}))
    program = [sys.executable, "-m", "tools.sonolex", "fetch", "mine", "--yes"]
    program += ["--catalogue", str(catalogue), "--to", str(tmp_path / "audio")]
    process = subprocess.Popen(program, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = part.stat().st_size
    assert 0 < there < len(server.files["/a.zip"])
    server.go.set()
    server.asked.clear()
    subprocess.run(program, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    assert server.asked == [("/a.zip", f"bytes={there}-")]
    assert content_of(tmp_path / "audio" / "A").keys() == {*UNPACKED, "noise"}


def test_unpacking_that_was_interrupted_begins_again(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/a.zip"] = zip_of(FILES)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda path, target: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch_it(corpus_of(server), tmp_path)
    assert not (tmp_path / "A").exists()
    staging = tmp_path / ".fetch" / "a" / "unpacked"
    assert not staging.exists()
    staging.mkdir()  # as a kill leaves it
    (staging / "left over").write_bytes(b"")
    server.asked.clear()
    fetch_it(corpus_of(server), tmp_path)
    assert server.asked == []
    assert content_of(tmp_path / "A") == UNPACKED


# Archives


def unpack_it(folder: Path, parts: Sequence[Path], strip: str | None = None, limit: int = 10**6) -> Unpacked:
    unpacked = Unpacked(folder / "out", limit)
    unpacked.folder.mkdir()
    unpack(parts, strip, unpacked, ByteCounter(None, lambda done, total: None))
    return unpacked


UNSAFE = ["../evil", "/tmp/evil", "a/../../evil", "C:/evil", "a\\..\\evil", ".."]


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write = write_zip if kind == "zip" else write_tar
    write(path, {name: b"evil", "a/good": b"good"})
    unpacked = unpack_it(tmp_path, [path])
    assert unpacked.refused == [f"{name!r} (a name that leads out of the folder)"]
    assert content_of(tmp_path / "out") == {"a/good": b"good"}
    assert {path.name for path in tmp_path.iterdir()} == {f"a.{kind}", "out"}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    path.write_bytes(zip_of(files))


def write_tar(path: Path, files: dict[str, bytes], mode: Any = "w:gz") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_of_every_compression_are_unpacked(tmp_path: Path, mode: str) -> None:
    write_tar(tmp_path / "a.tgz", {"./x/1.wav": b"1" * 3_000_000, "y": b""}, mode)
    unpacked = unpack_it(tmp_path, [tmp_path / "a.tgz"], "x", limit=10**7)
    assert content_of(tmp_path / "out") == {"1.wav": b"1" * 3_000_000, "y": b""}
    assert (unpacked.files, unpacked.size, unpacked.refused) == (2, 3_000_000, [])


def test_links_and_devices_of_tars_are_refused(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, kind in enumerate(kinds):
            member = tarfile.TarInfo(f"bad{number}")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("bad0/through a link")
        archive.addfile(member, io.BytesIO())
    unpacked = unpack_it(tmp_path, [tmp_path / "a.tar"])
    assert unpacked.refused == [f"'bad{number}' (a link or a device)" for number in range(len(kinds))]
    assert content_of(tmp_path / "out") == {"bad0/through a link": b""}


def test_links_of_zips_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
        archive.writestr("link/passwd", "evil")
        archive.writestr("plain", "good")
        archive.writestr("plain/below", "no folder")
    unpacked = unpack_it(tmp_path, [tmp_path / "a.zip"])
    assert unpacked.refused == ["'link' (a link or a device)", "'plain/below' (both a file and a folder)"]
    assert content_of(tmp_path / "out") == {"link/passwd": b"evil", "plain": b"good"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_bomb_is_stopped(tmp_path: Path, kind: str) -> None:
    if kind == "zip":
        (tmp_path / "a.zip").write_bytes(zip_of({"zeros": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED))
    else:
        write_tar(tmp_path / "a.tar", {"zeros": bytes(10**7)})
    with pytest.raises(SonolexError, match=r"at most 1,000,000 bytes of unpacked files, found more.*max_unpacked"):
        unpack_it(tmp_path, [tmp_path / f"a.{kind}"])
    written = content_of(tmp_path / "out")
    assert not written if kind == "zip" else len(written["zeros"]) <= 10**6  # a zip says before how much it has


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_damaged_archive_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, {"a": os.urandom(5000)})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(SonolexError, match=rf"{path}: expected an archive that can be read.*downloads anew"):
        unpack_it(tmp_path, [path])


# Split zips


def split_zip(content: bytes, part_size: int) -> list[bytes]:
    """Cut a zip into parts, as programs do that do not mind where: members know their part and the offset in it."""
    signed = b"PK\7\x08" + content
    end = signed.rindex(b"PK\5\6")
    size, start = (int.from_bytes(signed[end + 12 + place :][:4], "little") for place in (0, 4))
    directory = bytearray(signed[start + 4 : start + 4 + size])
    position = 0
    while position < size:
        lengths = [int.from_bytes(directory[position + place :][:2], "little") for place in (28, 30, 32)]
        part, offset = divmod(int.from_bytes(directory[position + 42 :][:4], "little") + 4, part_size)
        directory[position + 34 : position + 36] = part.to_bytes(2, "little")
        directory[position + 42 : position + 46] = offset.to_bytes(4, "little")
        position += 46 + sum(lengths)
    cut = (start + 4) // part_size * part_size  # the directory lies in the last part
    last = len(signed[:cut]) // part_size
    numbers = last.to_bytes(2, "little") * 2
    tail = signed[end + 8 : end + 16] + (start + 4 - cut).to_bytes(4, "little") + signed[end + 20 :]
    parts = [signed[place : place + part_size] for place in range(0, cut, part_size)]
    return [*parts, signed[cut : start + 4] + bytes(directory) + b"PK\5\6" + numbers + tail]


@pytest.mark.parametrize("part_size", [1000, 12_345])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_split_zip_is_read_without_joining_it(tmp_path: Path, part_size: int, compression: int) -> None:
    files = {f"a/{number}.wav": os.urandom(1500) for number in range(20)} | {"empty": b""}
    parts = split_zip(zip_of(files, compression=compression), part_size)
    paths = [tmp_path / f"a.z{number:02}" for number in range(1, len(parts))] + [tmp_path / "a.zip"]
    for path, content in zip(paths, parts, strict=True):
        path.write_bytes(content)
    assert len(paths) > 2
    unpack_it(tmp_path, paths)
    assert content_of(tmp_path / "out") == files
    with pytest.raises(SonolexError, match=f"expected {len(paths)} parts, found {len(paths) - 1}; remove"):
        unpack(paths[1:], None, Unpacked(tmp_path / "out", 10**6), ByteCounter(None, lambda done, total: None))


@pytest.mark.skipif(shutil.which("zip") is None, reason="the program zip is not installed")
@pytest.mark.parametrize("option", [[], ["-fz"]])  # -fz: with 64-bit records
def test_a_split_zip_of_info_zip_is_fetched(server: FileServer, tmp_path: Path, option: list[str]) -> None:
    files = {f"{number}.wav": os.urandom(30_000) for number in range(10)}
    (tmp_path / "top").mkdir()
    for name, content in files.items():
        (tmp_path / "top" / name).write_bytes(content)
    subprocess.run(["zip", "-q", "-r", *option, "-s", "64k", "a.zip", "top"], cwd=tmp_path, check=True)
    names = [*sorted(path.name for path in tmp_path.glob("a.z0*")), "a.zip"]
    assert len(names) > 3
    server.files = {f"/{name}": (tmp_path / name).read_bytes() for name in names}
    fetch_it(corpus_of(server, names), tmp_path / "audio")
    assert content_of(tmp_path / "audio" / "A") == files
    with open_zip([tmp_path / name for name in names]) as archive:
        assert archive.testzip() is None

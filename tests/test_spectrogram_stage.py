"""The stage spectrogram: what it writes is what the front end says, whatever the workers, and bad clips are counted."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from conftest import make_clips, make_waveform

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.errors import ArtifactError, CorpusError, ParamsError
from pipeline.execution.executors import ExecutionParams
from pipeline.params import validate_params
from pipeline.spectrogram.building import Reuse, open_memo, plan_shards, require_few_failed, shard_specs
from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.mel import MelParams
from pipeline.spectrogram.reader import FrameReader
from pipeline.spectrogram.registry import build_front_end
from pipeline.spectrogram.settings import SpectrogramParams
from stages.spectrogram import run

PARAMS: dict[str, Any] = {
    "front_end": {
        "kind": "kaldi",
        "sample_rate": 16000,
        "win_length": 400,
        "hop_length": 160,
        "n_fft": 512,
        "n_mels": 32,
        "f_min": 20.0,
        "f_max": 8000.0,
        "pre_emphasis": 0.97,
    },
    "mix": "mean",
    "silence": "fail",
    "dtype": "float16",
    "uint8_range": {"low": -16.0, "high": 10.0},
    "clips_per_shard": {"minimum": 2, "average": 4, "maximum": 6},
    "copies": [],
}
MEL = {
    "kind": "mel",
    "sample_rate": 8000,
    "n_fft": 256,
    "win_length": 200,
    "hop_length": 100,
    "n_mels": 20,
    "f_min": 0.0,
    "f_max": 4000.0,
    "mel_scale": "slaney",
    "norm": "slaney",
    "log_floor": -100.0,
    **MelParams.unrecorded,
}


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the report goes to results/stages


def _build(
    root: Path,
    path: Path,
    *,
    workers: int = 1,
    max_bad_fraction: float = 0.0,
    max_duration: float = 5.0,
    **changed: Any,
) -> Spectrogram:
    """Run the stage over every file below `root`, in the order of their names, and open what it wrote."""
    sources = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.suffix in (".wav", ".gone"))
    return _build_clips(
        make_clips(path.with_name("clips.parquet"), root, sources),
        *(root, path),
        workers=workers,
        max_bad_fraction=max_bad_fraction,
        max_duration=max_duration,
        **changed,
    )


def _build_clips(
    clips_path: Path,
    root: Path,
    path: Path,
    *,
    workers: int = 1,
    max_bad_fraction: float = 0.0,
    max_duration: float = 5.0,
    **changed: Any,
) -> Spectrogram:
    params = validate_params(SpectrogramParams, PARAMS | changed, "spectrogram")
    corpus: Any = SimpleNamespace(root=root, max_bad_fraction=max_bad_fraction, max_duration=max_duration)
    run(
        params,
        corpus,
        ExecutionParams(executor="local", scheduler="", workers=workers, memo=Path("memo") / path.parent.name),
        clips_path,
        path,
    )
    return open_spectrogram(path)


def _bytes(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("front_end", [PARAMS["front_end"], MEL])
def test_frames_are_those_of_the_front_end(wav_corpus: Path, tmp_path: Path, front_end: dict[str, Any]) -> None:
    spectrogram = _build(wav_corpus, tmp_path / "data" / "spectrogram", dtype="float32", front_end=front_end)
    engine = build_front_end(validate_params(SpectrogramParams, PARAMS | {"front_end": front_end}, "x").front_end)
    clip_ids = spectrogram.index.list("clip_id")
    assert clip_ids == sorted(file.stem for file in (wav_corpus / "audio").iterdir())
    reader = FrameReader(spectrogram)
    for clip_id, frames in zip(clip_ids, reader.read(clip_ids), strict=True):
        waveform = decode(
            wav_corpus / "audio" / f"{clip_id}.wav",
            start=0,
            duration=0,
            sample_rate=front_end["sample_rate"],
            max_duration=5,
        )
        assert len(frames) == reader.num_frames(clip_id) == engine.num_frames(len(waveform))
        np.testing.assert_array_equal(frames, engine.log_mel(waveform))
    unrecorded = MelParams.unrecorded if front_end["kind"] == "mel" else {}
    recorded = {key: value for key, value in front_end.items() if key not in unrecorded}
    assert spectrogram.metadata["params"] == recorded  # enough to build the front end again
    assert spectrogram.metadata["frame_rate"] == front_end["sample_rate"] / front_end["hop_length"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_the_index_holds_the_sums_of_what_a_reader_gets(wav_corpus: Path, tmp_path: Path, dtype: str) -> None:
    spectrogram = _build(wav_corpus, tmp_path / "data" / "spectrogram", dtype=dtype)
    index = spectrogram.index
    for frames, total, squares in zip(
        FrameReader(spectrogram).read(index.list("clip_id")),
        index.list("sum"),
        index.list("sum_of_squares"),
        strict=True,
    ):
        assert total == pytest.approx(frames.sum(dtype=np.float64), rel=1e-12)
        assert squares == pytest.approx(np.square(frames.astype(np.float64)).sum(), rel=1e-12)


def test_the_index_says_what_the_files_are_like(wav_corpus: Path, tmp_path: Path) -> None:
    tone = make_waveform("tone", 0.5, 44100, frequency=2000.0)
    soundfile.write(wav_corpus / "audio" / "1-1000-A-0.wav", np.stack([tone, tone], axis=1), 44100)
    index = _build(wav_corpus, tmp_path / "data" / "spectrogram").index
    first = index.columns.slice(0, 2).to_pylist()
    assert [(row["sample_rate"], row["num_channels"]) for row in first] == [(44100, 2), (16000, 1)]
    assert first[0]["bandwidth"] == pytest.approx(2000, abs=50)
    assert first[1]["bandwidth"] == 8000  # noise


def test_the_artifact_is_the_same_bytes_for_any_workers_and_run(wav_corpus: Path, tmp_path: Path) -> None:
    once, again, two = (tmp_path / name / "spectrogram" for name in ("once", "again", "two"))
    assert len(_build(wav_corpus, once).index.metadata["shards"]) > 2
    _build(wav_corpus, again)
    _build(wav_corpus, two, workers=2)
    assert _bytes(once) == _bytes(again) == _bytes(two)
    assert [entry.name for entry in once.parent.iterdir() if entry.name.endswith(".partial")] == []


def test_a_shard_is_described_by_its_clips(wav_corpus: Path, tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips.parquet", wav_corpus, ["audio/1-1000-A-0.wav", "audio/1-1001-A-1.wav"])
    params = validate_params(SpectrogramParams, PARAMS, "spectrogram")
    manifest, memo = open_clips(clips), open_memo(tmp_path / "memo", params, 5.0)
    todo = Reuse(todo=plan_shards(manifest, params.clips_per_shard))
    (spec,) = shard_specs(manifest, todo, params, root=wav_corpus, max_duration=5.0, memo=memo)
    assert str(spec) == f"shard {spec.name}: 2 clips, audio/1-1000-A-0.wav ... audio/1-1001-A-1.wav"


def test_an_added_clip_leaves_most_shards_as_they_were(wav_corpus: Path, tmp_path: Path) -> None:
    before = _bytes((_build(wav_corpus, tmp_path / "before" / "spectrogram")).frames_path)
    soundfile.write(wav_corpus / "audio" / "1-0-A-0.wav", make_waveform("chirp"), 16000)
    after = _bytes((_build(wav_corpus, tmp_path / "after" / "spectrogram")).frames_path)
    assert len(after.items() - before.items()) < len(after) / 2


def _spoil(root: Path) -> dict[str, str]:
    """Write one file for every reason; return clip id -> reason."""
    folder = root / "audio"
    tone = make_waveform("tone", 1.0)
    (folder / "missing.gone").mkdir()
    (folder / "empty.wav").touch()
    (folder / "unreadable.wav").write_bytes(b"RIFF, but not for long")
    soundfile.write(folder / "truncated.wav", tone, 16000)
    data = (folder / "truncated.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(data[: len(data) // 2])
    soundfile.write(folder / "too_short.wav", tone[:200], 16000)
    soundfile.write(folder / "too_long.wav", np.tile(tone, 6), 16000)
    soundfile.write(folder / "not_finite.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(folder / "overflow.wav", tone * 1e30, 16000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    reasons = ("missing", "empty", "unreadable", "truncated", "too_short", "too_long", "not_finite", "silent")
    return {reason: reason for reason in reasons} | {"overflow": "not_finite"}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_bad_clip_is_recorded_and_the_run_goes_on(wav_corpus: Path, tmp_path: Path, workers: int) -> None:
    expected = _spoil(wav_corpus)
    spectrogram = _build(wav_corpus, tmp_path / "data" / "spectrogram", workers=workers, max_bad_fraction=0.5)
    rows = spectrogram.index.columns.to_pylist()
    failed = {row["clip_id"]: row for row in rows if row["status"] == "failed"}
    assert {clip_id: row["reason"] for clip_id, row in failed.items()} == expected
    assert all(row["message"] and str(tmp_path) not in row["message"] for row in failed.values())
    assert len(FrameReader(spectrogram).ok(spectrogram.index.list("clip_id"))) == 12
    report = json.loads(Path("results/stages/spectrogram.json").read_text())
    assert report["clips"] == 21
    assert report["decoded"] == 12
    assert report["failed"] == dict.fromkeys(sorted(set(expected.values())), 1) | {"not_finite": 2}
    assert report["bytes_written"] == sum(map(len, _bytes(spectrogram.path).values()))


def test_too_many_bad_clips_fail_with_a_table_after_all_were_tried(wav_corpus: Path, tmp_path: Path) -> None:
    _spoil(wav_corpus)
    path = tmp_path / "data" / "spectrogram"
    with pytest.raises(CorpusError) as caught:
        _build(wav_corpus, path, max_bad_fraction=0.42)
    message = str(caught.value)
    assert message.startswith(
        "9 of 21 clips cannot be used: expected at most the fraction corpus.max_bad_fraction 0.42"
    )
    audio = wav_corpus / "audio"
    assert f"  not_finite: 2\n    not_finite: {audio}/not_finite.wav: expected finite samples" in message
    assert f"\n    overflow: {audio}/overflow.wav: expected samples about [-1, 1]" in message  # another cause
    for reason in ("missing", "empty", "unreadable", "truncated", "too_short", "too_long", "silent"):
        assert f"\n  {reason}: 1\n    {reason}: {audio}/{reason}" in message
    assert not path.exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["clips.parquet"]


def test_mix_and_silence_are_settings_that_old_artifacts_need_not_have(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    tone = make_waveform("tone", 1.0)
    soundfile.write(root / "a.wav", np.stack([tone, -tone], axis=1), 16000)
    soundfile.write(root / "b.wav", np.zeros(16000), 16000)
    clips = make_clips(tmp_path / "clips.parquet", root, ["a.wav", "b.wav"])
    execution = ExecutionParams(executor="local", workers=1, scheduler="", memo=tmp_path / "memo")
    corpus: Any = SimpleNamespace(root=root, max_bad_fraction=1.0, max_duration=5.0)
    found = {}
    for mix, silence in (("mean", "fail"), ("left", "keep")):
        params = validate_params(SpectrogramParams, PARAMS | {"mix": mix, "silence": silence}, "spectrogram")
        run(params, corpus, execution, clips, tmp_path / mix)
        spectrogram = open_spectrogram(tmp_path / mix)
        found[mix] = spectrogram.index.list("reason")
        assert {"mix", "silence"} & set(spectrogram.metadata) == (set() if mix == "mean" else {"mix", "silence"})
    assert found == {"mean": ["cancelling", "silent"], "left": ["", ""]}


def test_too_many_bad_clips_have_one_example_for_each_cause_and_suffix() -> None:
    messages = [
        *(f"audio/{name}.wav: expected {name}00 bytes of samples, as its header says, found 7" for name in range(5)),
        "audio/a.mp3: expected whole frames to the end, found the end in the frame at byte 17",
        "audio/b.mp3: expected whole frames to the end, found the end in the frame at byte 99",
        "audio/c.mp3: expected whole frames to the end, found 3 frames of 80",
        "audio/d.ogg: expected 4 samples, as its header says, found 0 before: Error in 'audio/d.ogg'",
    ]
    columns = {"clip_id": [str(number) for number in range(9)], "message": messages}
    rows = pa.table(columns | {"status": ["failed"] * 9, "reason": ["truncated"] * 9})
    with pytest.raises(CorpusError) as caught:
        require_few_failed(rows, 0.5, Path("/corpus"))
    assert str(caught.value).splitlines()[1:] == [
        "  truncated: 9",
        f"    0: /corpus/{messages[0]} (4 more like it)",
        f"    5: /corpus/{messages[5]} (1 more like it)",
        f"    7: /corpus/{messages[7]}",
        f"    8: /corpus/{messages[8]}",
    ]


def test_a_corpus_without_a_usable_clip_makes_an_artifact_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name in "abc":
        soundfile.write(tmp_path / "corpus" / f"{name}.wav", np.zeros(8000), 16000)
    spectrogram = _build(tmp_path / "corpus", tmp_path / "data" / "spectrogram", max_bad_fraction=1.0)
    assert spectrogram.index.list("reason") == ["silent"] * 3
    assert spectrogram.index.metadata["shards"] == {}


def test_parts_of_one_long_recording_are_clips_of_their_own(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    recording = make_waveform("noise", 20.0)
    soundfile.write(root / "long.wav", recording, 16000, subtype="FLOAT")
    clips = make_clips(
        tmp_path / "clips.parquet",
        root,
        ["long.wav"] * 3,
        clip_id=["a", "b", "c"],
        start=[0.0, 10.0, 19.5],
        duration=[1.0, 0.5, 0.0],
    )
    spectrogram = _build_clips(clips, root, tmp_path / "spectrogram", dtype="float32")
    engine = build_front_end(validate_params(SpectrogramParams, PARAMS, "x").front_end)
    parts = [recording[:16000], recording[160000:168000], recording[312000:]]
    for frames, part in zip(FrameReader(spectrogram).read(["a", "b", "c"]), parts, strict=True):
        np.testing.assert_array_equal(frames, engine.log_mel(part))


def test_a_member_that_is_no_longer_in_its_place_is_not_taken_for_another(wav_corpus: Path, tmp_path: Path) -> None:
    source = next((wav_corpus / "audio").iterdir()).relative_to(wav_corpus)
    place = {
        "member": ["inside.wav"],
        "offset": [0],
        "size": [(wav_corpus / source).stat().st_size],
        "content": ["0" * 32],
    }
    clips = make_clips(tmp_path / "clips.parquet", wav_corpus, [str(source)], **place)
    with pytest.raises(CorpusError, match=r"moved: 1\n.*inside\.wav: expected the bytes that the manifest names"):
        _build_clips(clips, wav_corpus, tmp_path / "spectrogram")


@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_a_damaged_shard_is_refused(wav_corpus: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "data" / "spectrogram"
    spectrogram = _build(wav_corpus, path)
    shard = spectrogram.index.list("shard")[0]
    file = path / "frames.zarr" / shard / "c" / "0" / "0"
    if damage == "delete":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(ArtifactError, match=shard):
        FrameReader(open_spectrogram(path)).read(spectrogram.index.list("clip_id"))


def test_values_outside_the_range_of_uint8_are_warned_of(
    wav_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _build(wav_corpus, tmp_path / "data" / "spectrogram", dtype="uint8")
    assert "clipped" not in caplog.text
    _build(wav_corpus, tmp_path / "data" / "spectrogram", dtype="uint8", uint8_range={"low": -5.0, "high": 0.0})
    assert "lay outside spectrogram.uint8_range" in caplog.text


def test_bands_without_a_bin_are_warned_of(wav_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _build(wav_corpus, tmp_path / "data" / "spectrogram", front_end=PARAMS["front_end"] | {"n_mels": 128})
    assert "no FFT bin lies in mel bands [3]" in caplog.text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clips_per_shard": {"minimum": 5, "average": 4, "maximum": 6}}, "minimum 5 <= average 4"),
        ({"uint8_range": {"low": 1.0, "high": 1.0}}, "low 1.0 < high 1.0"),
        ({"dtype": "int8"}, "spectrogram.dtype"),
        ({"front_end": PARAMS["front_end"] | {"n_mel": 3}}, "spectrogram.front_end.n_mel: unknown key"),
    ],
)
def test_a_wrong_setting_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        validate_params(SpectrogramParams, PARAMS | changed, "spectrogram")
    assert message in str(caught.value)


@pytest.mark.slow
def test_esc10_has_no_bad_clip(esc10_root: Path, tmp_path: Path) -> None:
    sources = sorted(f"audio/{file.name}" for file in (esc10_root / "audio").glob("*.ogg"))
    clips = make_clips(tmp_path / "clips.parquet", esc10_root, sources)
    sizes = {"minimum": 16, "average": 64, "maximum": 128}
    spectrogram = _build_clips(
        clips, esc10_root, tmp_path / "spectrogram", workers=2, max_duration=60.0, clips_per_shard=sizes
    )
    assert set(spectrogram.index.list("status")) == {"ok"}
    assert sum(spectrogram.index.list("num_frames")) > 150_000

"""The atlas, from recordings and a vocabulary fitted on them to the page in a browser."""

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser import CHROMIUM, Page, browse
from conftest import REPOSITORY, make_clips, make_development, make_spectrogram, make_waveform

from pipeline.artifacts.clips import CLIPS as CLIPS_TABLE
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import HIDDEN_STATE, SpectrogramMetadata
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.errors import ArtifactError, CorpusError
from pipeline.evaluation.choosing import choose_in_turn
from pipeline.execution.executors import ExecutionParams
from pipeline.params import read_params
from pipeline.reporting.atlas.content import AtlasContent, AtlasPaths, gather_atlas, most_frequent
from pipeline.reporting.atlas.page import atlas_values, write_atlas
from pipeline.reporting.atlas.settings import AtlasParams
from pipeline.reporting.atlas.sounds import Occurrences, log_mel_distance, nearest_occurrences
from pipeline.reporting.atlas.tokens import class_rates, nearest_tokens
from pipeline.reporting.pictures import peaks, sound_address
from pipeline.spectrogram.kaldi import KaldiFrontEnd, KaldiParams
from pipeline.vocabulary.registry import KINDS, validate_vocabulary_params
from stages import atlas, tokenize, vocabulary

CLASSES = ("tone", "noise", "<clicks>")  # the last one must be escaped
FRONT_END = KaldiParams(
    kind="kaldi", sample_rate=16000, win_length=400, hop_length=160, n_fft=512, n_mels=32, f_min=20.0, f_max=8000.0,
    pre_emphasis=0.97,
)  # fmt: skip
PARAMS = AtlasParams(
    tokens=10, snippets=3, seconds=0.2, clips=2, attribution=[], attribution_clips=4, attribution_steps=4
)


def make_waveforms() -> dict[str, np.ndarray]:
    """Return 15 clips of half a second, five of each class; those called x4 are the test clips."""
    waveforms = {}
    for number in range(5):
        hiss = 0.003 * make_waveform("noise", 0.5, seed=number)
        waveforms[f"tone{number}"] = make_waveform("tone", 0.5, frequency=700 + 150 * (number % 4)) + hiss
        waveforms[f"noise{number}"] = make_waveform("noise", 0.5, seed=10 + number)
        waveforms[f"clicks{number}"] = make_waveform("clicks", 0.5) + hiss
    return waveforms


def write_artifacts(data: Path, audio: Path, **tokens: Any) -> None:
    """Write all that the atlas reads, with a vocabulary of the settings `tokens`."""
    audio.mkdir(parents=True)
    waveforms, front_end = make_waveforms(), KaldiFrontEnd(FRONT_END)
    for clip, waveform in waveforms.items():
        soundfile.write(audio / f"{clip}.wav", waveform, 16000, subtype="FLOAT")
    labels = [[["tone", "noise", "clicks"].index(clip[:-1])] for clip in waveforms]
    make_clips(data / "clips.parquet", audio, [f"{clip}.wav" for clip in waveforms], labels=labels)
    table = CLIPS_TABLE.open(data / "clips.parquet")
    CLIPS_TABLE.write(data / "clips.parquet", table.columns, table.metadata | {"classes": list(CLASSES)})
    frames = {clip: front_end.log_mel(waveform) for clip, waveform in waveforms.items()}
    make_spectrogram(data / "spectrogram", frames, front_end=front_end.metadata)
    roles = ["test" if clip.endswith("4") else "train" for clip in waveforms]
    SPLIT.write(
        data / "splits/1.parquet", {"clip_id": list(waveforms), "role": roles}, {"fold": "1", "seed": 0, "rule": ""}
    )
    section = (
        read_params(REPOSITORY / "params.yaml")["vocabularies"]["kmeans"]
        | {"num_tokens": 12, "sample_frames": 1000}
        | tokens
    )
    section = {key: value for key, value in section.items() if key in KINDS[section["kind"]].Params.model_fields}
    params = validate_vocabulary_params("kmeans", section)
    development = make_development(data / "development.parquet", data / "spectrogram", data / "splits/1.parquet")
    vocabulary.run(params, data / "spectrogram", development, data / "vocabulary/kmeans/1.zarr", fold="1")
    execution = ExecutionParams(executor="local", workers=1, scheduler="", memo=data / "memo")
    tokenize.run(
        execution, data / "spectrogram", data / "vocabulary/kmeans/1.zarr", data / "tokens/kmeans/1.parquet", fold="1"
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("atlas")
    write_artifacts(root / "data", root / "audio")
    return root


@pytest.fixture(scope="module")
def content(root: Path) -> AtlasContent:
    return gather_atlas(PARAMS, AtlasPaths.of(Layout(root), "kmeans", "1", audio=root / "audio"))


@pytest.fixture(scope="module")
def page_path(root: Path, content: AtlasContent) -> Path:
    write_atlas(root / "atlas.html", content)
    return root / "atlas.html"


def data_of(page: str) -> dict[str, Any]:
    """Return what the page's script reads."""
    return dict(json.loads(page.partition('id="data">')[2].partition("</script>")[0]))


def test_tokens_are_counted_over_all_clips_and_by_class(root: Path, content: AtlasContent) -> None:
    sequences = token_arrays(open_tokens(root / "data/tokens/kmeans/1.parquet"))
    token = int(sequences["noise0"][0, 0])
    assert content.counts[0, token] == sum((row == token).sum() for row in sequences.values())
    assert content.training_counts.sum() < content.counts.sum() == pytest.approx(content.class_counts.sum())
    of_noise = sum((sequences[f"noise{number}"] == token).sum() for number in range(5))
    assert content.class_counts[0, token, 1] == of_noise
    assert class_rates(content.class_counts)[0, token].argmax() == 1  # noise sounds like no tone


def test_a_tokens_pattern_is_its_centroid_in_the_front_ends_units(root: Path, content: AtlasContent) -> None:
    vocabulary = open_vocabulary(root / "data/vocabulary/kmeans/1.zarr")
    frames = np.concatenate([KaldiFrontEnd(FRONT_END).log_mel(w) for c, w in make_waveforms().items() if c[-1] != "4"])
    tokens = np.concatenate(
        [t[0] for c, t in token_arrays(open_tokens(root / "data/tokens/kmeans/1.parquet")).items() if c[-1] != "4"]
    )
    (book,) = content.codebooks
    assert book.patterns.shape == (vocabulary.num_tokens, 1, 32)
    commonest = int(np.bincount(tokens).argmax())
    np.testing.assert_allclose(book.patterns[commonest, 0], frames[tokens == commonest].mean(axis=0), atol=0.3)


def test_a_snippet_holds_its_token_where_it_says(root: Path, content: AtlasContent) -> None:
    sequences = token_arrays(open_tokens(root / "data/tokens/kmeans/1.parquet"))
    assert len(content.snippets.of_token) == PARAMS.tokens
    for (_, token), snippets in content.snippets.of_token.items():
        assert len({snippet.clip for snippet in snippets}) == len(snippets) <= PARAMS.snippets
        assert [snippet.distance for snippet in snippets] == sorted(snippet.distance for snippet in snippets)
        for snippet in snippets:
            assert snippet.clip[-1] != "4"  # of training clips alone
            frame = round((snippet.time * 16000 - 200) / 160)
            assert sequences[snippet.clip][0, frame] == token
            waveform = make_waveforms()[snippet.clip]
            middle = round(len(content.snippets.waveforms[snippet.sound]) * sum(snippet.mark) / 2)
            around = content.snippets.waveforms[snippet.sound][middle - 50 : middle + 50]
            place = round(snippet.time * 16000)
            np.testing.assert_allclose(around, waveform[place - 50 : place + 50], atol=1e-5)


def test_identical_windows_are_not_repeated(content: AtlasContent) -> None:
    """The clicks are the same in every clip but for their hiss; no two windows are kept that are the same to the bit."""
    assert len({waveform.tobytes() for waveform in content.snippets.waveforms}) == len(content.snippets.waveforms)


def test_whole_clips_are_test_clips_and_log_mel_says_more_than_tokens(content: AtlasContent) -> None:
    assert [clip[-1] for clip in content.resynthesised] == ["4"] * PARAMS.clips
    for resynthesised in content.resynthesised.values():
        assert set(resynthesised.versions) == {"tokens", "snippets", "log_mel"}
        assert resynthesised.distance["log_mel"] < resynthesised.distance["tokens"] < 15
        assert resynthesised.distance["snippets"] < 15
        for waveform in resynthesised.versions.values():
            loudness = np.sqrt((waveform**2).mean() / (resynthesised.original**2).mean())
            assert 0.5 < loudness < 2


def test_a_tone_made_of_tokens_keeps_its_pitch(content: AtlasContent) -> None:
    resynthesised = content.resynthesised["tone4"]
    for name in ("tokens", "snippets"):
        spectrum = np.abs(np.fft.rfft(resynthesised.versions[name][1000:7000] * np.hanning(6000)))
        assert np.argmax(spectrum) * 16000 / 6000 == pytest.approx(700, rel=0.12)


def test_the_page_stands_alone(page_path: Path, content: AtlasContent) -> None:
    page = page_path.read_text()
    markup = re.sub(r'"data:[^"]*"', '""', page).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|@import|<link|src=\"[^\"]", markup)
    assert str(page_path.parent) not in page
    assert "<clicks>" not in page
    data = data_of(page)
    assert len(data["counts"]) == 12
    assert len(data["sounds"]) == len(content.snippets.waveforms) + 4 * PARAMS.clips
    assert all(address.startswith("data:audio/") for address, *_ in data["sounds"])
    for section in ("clips", "tokens", "use", "made"):
        assert f'<section id="{section}">' in page


def test_only_tokens_at_the_floor_are_digital_silence(content: AtlasContent) -> None:
    """The made-up clips hiss throughout; with one token's pattern lowered to the floor, that token is silent."""
    assert atlas_values(content)["data"]["still"] == []
    (book,) = content.codebooks
    lowered = book.patterns.copy()
    lowered[3] = content.spectrogram.metadata["log_floor"]
    silent = replace(content, codebooks=[replace(book, patterns=lowered)])
    assert atlas_values(silent)["data"]["still"] == [3]


def test_pages_of_hidden_states_speak_of_dimensions_and_not_of_hertz(content: AtlasContent, tmp_path: Path) -> None:
    metadata: SpectrogramMetadata = {**content.spectrogram.metadata, "units": HIDDEN_STATE, "log_floor": 0.0}
    states = replace(content.spectrogram, metadata=metadata)
    write_atlas(tmp_path / "atlas.html", replace(content, spectrogram=states, resynthesised={}))
    page = (tmp_path / "atlas.html").read_text()
    shown = re.sub(r"(?s)<(script|style).*?</\1>|base64,[^\"]*", "", page)
    assert "The curve is the hidden state of the token over its dimensions; its height is " in shown
    assert "1 frame of 32 dimensions of hidden states" in shown
    assert not re.search(r"\d Hz(?!, as the front end reads it)| dB|spectr|mel bands|resynthesised", shown)
    data = data_of(page)
    assert data["axis"]["places"] == list(range(32))
    assert data["axis"]["ticks"][:2] == [[0.0, "0"], [6.0, "6"]]
    assert (data["axis"]["before"], data["axis"]["after"], data["axis"]["unit"]) == ("dimension ", "", "")
    assert data["still"] == []


def test_the_same_artifacts_give_the_same_page(root: Path, page_path: Path, tmp_path: Path) -> None:
    atlas.run(
        PARAMS, AtlasPaths.of(Layout(root), "kmeans", "1", audio=root / "audio"), tmp_path / "again.html", fold="1"
    )
    assert (tmp_path / "again.html").read_bytes() == page_path.read_bytes()


def test_without_audio_the_page_has_no_sound_and_says_so(root: Path, tmp_path: Path) -> None:
    report = atlas.run(
        PARAMS, AtlasPaths.of(Layout(root), "kmeans", "1", audio=tmp_path / "gone"), tmp_path / "a.html", fold="1"
    )
    page = (tmp_path / "a.html").read_text()
    assert "Audio not on this machine: this page has no audio." in page
    assert data_of(page)["sounds"] == []
    assert '<section id="clips">' not in page
    assert report.incidents == ["no sound: audio not on this machine"]


def test_tokens_of_another_vocabulary_are_named(root: Path, tmp_path: Path) -> None:
    paths = AtlasPaths.of(Layout(root), "kmeans", "1", audio=root / "audio")
    write_artifacts(tmp_path / "data", tmp_path / "audio", num_tokens=8)
    with pytest.raises(ArtifactError, match=r"tokens/kmeans/1\.parquet: metadata vocabulary: expected .*tokenize"):
        gather_atlas(PARAMS, replace(paths, tokens=tmp_path / "data/tokens/kmeans/1.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "bands", "changes"),
    [
        (
            {
                "kind": "bands",
                "bands": 4,
                "num_tokens": 6,
                "features": {"hidden_states": None, "deltas": 1, "stack": 2, "pca": None, "lda": None},
            },
            [(0, 8), (8, 16), (16, 24), (24, 32)],
            [False] * 4,
        ),
        ({"kind": "residual", "codebooks": 2, "num_tokens": 6}, [(0, 32)] * 2, [False, True]),
        (
            {"kind": "random_projection", "codebooks": 2, "codebook_dim": 8, "num_tokens": 6},
            [(0, 32)] * 2,
            [False, True],
        ),
        (
            {
                "kind": "kmeans",
                "num_tokens": 6,
                "normalisation": "l2",
                "features": {"hidden_states": None, "deltas": 0, "stack": 3, "pca": 8, "lda": None},
            },
            [(0, 32)],
            [False],
        ),
    ],
    ids=["patches of bands", "residual", "random projections", "level-blind stacks"],
)
def test_every_kind_has_an_atlas(
    tmp_path: Path, tokens: dict[str, Any], bands: list[tuple[int, int]], changes: list[bool]
) -> None:
    write_artifacts(tmp_path / "data", tmp_path / "audio", **tokens)
    paths = AtlasPaths.of(Layout(tmp_path), "kmeans", "1", audio=tmp_path / "audio")
    content = gather_atlas(PARAMS.model_copy(update={"clips": 1, "tokens": 5}), paths)
    span = tokens.get("features", {"stack": 1})["stack"]
    assert [(book.first, book.last) for book in content.codebooks] == bands
    assert [book.change for book in content.codebooks] == changes
    assert all(book.patterns.shape == (6, span, book.last - book.first) for book in content.codebooks)
    (resynthesised,) = content.resynthesised.values()
    assert resynthesised.distance["log_mel"] < 5
    assert resynthesised.distance["tokens"] < 20
    sequences = token_arrays(open_tokens(paths.tokens))
    for (codebook, token), snippets in content.snippets.of_token.items():
        for snippet in snippets:
            frame = (snippet.time * 16000 - 200) / 160 - (span - 1) / 2
            assert sequences[snippet.clip][codebook, round(frame / span)] == token
    write_atlas(tmp_path / "atlas.html", content)
    data = data_of((tmp_path / "atlas.html").read_text())
    assert len(data["counts"]) == 6 * len(bands)
    assert [book["frames"] for book in data["codebooks"]] == [span] * len(bands)


def test_a_split_of_another_fold_or_without_training_clips_is_named(root: Path, tmp_path: Path) -> None:
    paths = AtlasPaths.of(Layout(root), "kmeans", "1", audio=root / "audio")
    clips = {"clip_id": ["tone0", "noise4"], "role": ["test", "test"]}
    for fold, error, message in (
        ("2", ArtifactError, "metadata fold: expected 1, found 2"),
        ("1", CorpusError, "found 0 clips"),
    ):
        SPLIT.write(tmp_path / "split.parquet", clips, {"fold": fold, "seed": 0, "rule": ""})
        with pytest.raises(error, match=message):
            gather_atlas(PARAMS, replace(paths, split=tmp_path / "split.parquet"))


def test_merged_tokens_have_an_atlas(tmp_path: Path) -> None:
    """Tokens of base tokens of two codebooks: they differ in length, and may begin or end within a frame."""
    write_artifacts(tmp_path / "data", tmp_path / "audio", kind="bands", bands=2, num_tokens=6, bpe={"num_tokens": 24})
    paths = AtlasPaths.of(Layout(tmp_path), "kmeans", "1", audio=tmp_path / "audio")
    content = gather_atlas(PARAMS.model_copy(update={"clips": 1, "tokens": 8}), paths)
    occurrences, num_frames = content.occurrences, content.spectrogram.index.list("num_frames")[0]
    assert content.counts.shape == (1, 24)
    assert (occurrences.stop - occurrences.start).max() > 1
    assert (occurrences.start >= 0).all()
    for clip in range(len(occurrences.clips)):
        assert occurrences.start[occurrences.clip == clip].min() == 0
        assert occurrences.stop[occurrences.clip == clip].max() == num_frames
    (resynthesised,) = content.resynthesised.values()
    assert resynthesised.distance["tokens"] < 20
    write_atlas(tmp_path / "tokens.html", content)
    assert len(data_of((tmp_path / "tokens.html").read_text())["counts"]) == 24


def test_rates_make_up_for_the_lengths_of_classes_and_for_chance() -> None:
    """Token 0 occurs evenly in a class ten times as long; token 1 in the short one alone; token 2 once."""
    counts = np.array([[[1000, 100], [0, 200], [0, 1], [2000, 0]]])
    rates = class_rates(counts)[0]
    np.testing.assert_allclose(rates.sum(axis=1), 1)
    np.testing.assert_allclose(rates[0], [0.5, 0.5], atol=0.02)
    assert rates[1, 1] > 0.9
    assert rates[2, 1] < 0.9


def test_neighbours_are_the_nearest_others() -> None:
    vectors = np.array([[0.0, 0], [1, 0], [3, 0], [3.5, 0]], dtype=np.float32)
    assert nearest_tokens(vectors, 2).tolist() == [[1, 2], [0, 2], [3, 1], [2, 1]]
    assert nearest_tokens(vectors[:2], 5).tolist() == [[1], [0]]


def test_the_nearest_occurrences_are_one_a_clip() -> None:
    occurrences = Occurrences(
        clips=("a", "b"),
        clip=np.array([0, 0, 0, 1, 1]),
        start=np.arange(5),
        stop=np.arange(1, 6),
        tokens=np.array([[7, 7, 2, 7, 2]]),
        distance=np.array([[1.5, 1.0, 0.5, 2.0, 0.4]]),
        units=np.zeros((1, 4)),
        unit_clip=np.zeros(1, int),
        unit_frame=np.zeros(1, int),
    )
    found = nearest_occurrences(occurrences, 0, np.array([2, 7, 9]), 3)
    assert found == {2: [4, 2], 7: [1, 3], 9: []}
    assert nearest_occurrences(occurrences, 0, np.array([7]), 1) == {7: [1]}


def test_the_most_frequent_tokens_over_all_codebooks() -> None:
    counts = np.array([[5, 0, 3], [4, 6, 0]])
    assert most_frequent(counts, 3).tolist() == [[True, False, False], [True, True, False]]
    assert most_frequent(counts, 100).tolist() == (counts > 0).tolist()


@pytest.mark.parametrize(("sample_rate", "kind"), [(16000, "audio/mpeg"), (12345, "audio/wav")])
def test_sounds_last_as_long_and_are_as_loud_as_they_were(sample_rate: int, kind: str) -> None:
    tone = make_waveform("tone", 0.4, sample_rate)
    head, _, content = sound_address(tone, sample_rate).partition(",")
    assert head == f"data:{kind};base64"
    again, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert (len(again), rate) == (len(tone), sample_rate)
    assert np.sqrt((again**2).mean()) == pytest.approx(np.sqrt((tone**2).mean()), rel=0.05)


def test_outlines_follow_the_peaks() -> None:
    assert peaks(np.array([0.0, 0.1, -0.5, 0.2, 0.25, 0.0]), 3) == "7zi"
    assert peaks(np.zeros(4), 2) == "00"


def test_clips_are_chosen_in_turn_and_never_twice() -> None:
    clips = [("a1", 0), ("a2", 0), ("a3", 0), ("b1", 1)]
    chosen = choose_in_turn(clips, 3, 10)
    assert sorted(chosen) == ["a1", "a2", "a3", "b1"]
    assert {clip[0] for clip in chosen[:2]} == {"a", "b"}
    assert choose_in_turn(clips[::-1], 3, 2) == chosen[:2]


def test_distance_counts_what_can_be_heard() -> None:
    frames = np.array([[0.0, -5.0, -100.0]])
    assert log_mel_distance(frames, frames + np.array([3.0, -3.0, 50.0]), 1.0) == pytest.approx(3)
    assert log_mel_distance(frames, frames + 1, 4.34) == pytest.approx(4.34)


@pytest.fixture(scope="module")
def page(page_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: no chromium, chromium-browser or google-chrome on this machine")
    with browse(page_path, tmp_path_factory.mktemp("profile")) as page:
        page.resize(1280, 900)
        yield page


def names(page: Page) -> list[str]:
    found = page.run("[...document.querySelectorAll('.token h3')].map(node => node.textContent)")
    return [str(name) for name in found]


def choose(page: Page, control: str, value: str) -> None:
    """Set a control of the toolbar, as if by hand."""
    node, event = f"document.getElementById('by-{control}')", "input" if control == "search" else "change"
    page.run(f"{node}.value = '{value}', {node}.dispatchEvent(new Event('{event}'))")


def test_tokens_are_drawn_sorted_and_filtered(page: Page, content: AtlasContent) -> None:
    by_count = np.argsort(-content.counts[0], kind="stable")
    assert names(page) == [f"token {token}" for token in by_count]
    choose(page, "sort", "number")
    assert names(page) == [f"token {token}" for token in range(12)]
    choose(page, "sort", "low")
    brightness = content.codebooks[0].brightness
    assert names(page) == [f"token {token}" for token in np.argsort(brightness, kind="stable")]
    choose(page, "class", "0")
    of_tones = {f"token {w}" for w in np.flatnonzero(class_rates(content.class_counts)[0].argmax(axis=1) == 0)}
    assert set(names(page)) <= of_tones != set()
    choose(page, "class", "")
    choose(page, "search", "token 1")
    assert names(page) == ["token 1"]
    choose(page, "search", "")
    choose(page, "sort", "frequency")
    assert page.run("document.getElementById('found').textContent") == "12 tokens"
    assert page.errors == []


def test_one_sound_plays_at_a_time_and_plays_to_its_end(page: Page) -> None:
    page.run("document.querySelectorAll('.token button[data-sound]')[0].click()")
    page.wait("!player.paused && player.currentTime > 0")
    assert page.run("player.duration") == pytest.approx(PARAMS.seconds, abs=0.06)
    page.run("document.querySelectorAll('.token button[data-sound]')[1].click()")
    assert page.run("document.querySelectorAll('[aria-pressed=true]').length") == 1
    page.wait("playing === null")  # the end
    assert page.run("document.querySelectorAll('[aria-pressed=true]').length") == 0


def test_keys_go_from_token_to_token_and_play(page: Page) -> None:
    page.run("document.querySelector('.token').focus()")
    page.press("ArrowRight")
    assert page.run("document.activeElement === document.querySelectorAll('.token')[1]")
    page.press(" ", "Space")
    page.wait("playing && playing.closest('.token') === document.activeElement")
    page.press("Escape")
    assert page.run("playing") is None
    page.press("/", "Slash")
    assert page.run("document.activeElement.id") == "by-search"
    page.run("document.activeElement.blur()")


def test_neighbours_are_links_to_their_tokens(page: Page) -> None:
    choose(page, "search", "token 1")  # so that its neighbours are filtered away
    page.run("document.querySelector('.token .near a').click()")
    page.wait("location.hash && document.activeElement.id === location.hash.slice(1)")
    assert page.errors == []


def test_everything_that_can_be_pressed_has_a_name(page: Page) -> None:
    nameless = "n => !(n.ariaLabel || n.textContent.trim() || n.labels?.length)"
    assert page.run(f"[...document.querySelectorAll('button, input, select, a')].filter({nameless}).length") == 0


def test_a_phone_shows_it_without_scrolling_sideways(page: Page) -> None:
    page.resize(390, 800)
    assert page.run("document.documentElement.scrollWidth") <= 390
    page.resize(1280, 900)

"""External tokens: tables of other programs' tokens, from the file to predictions, pages and refusals."""

import contextlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import REPOSITORY, make_wav_corpus
from experiments import run_experiment
from rich.console import Console
from test_reporting import report

from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.model import open_model
from pipeline.artifacts.predictions import open_predictions
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.check_params import load_experiment
from pipeline.errors import CorpusError, ParamsError, SonolexError
from pipeline.execution.code import Sources, snapshot
from pipeline.grid import ExperimentParams
from pipeline.inference.bundle import require_members
from pipeline.inference.classifier import Member
from pipeline.inference.torch_module import sound_classifier
from pipeline.models.inputs.tokens import Tokens, TokensParams
from pipeline.params import load_params
from pipeline.reporting.atlas.content import AtlasPaths, gather_atlas
from pipeline.reporting.atlas.page import write_atlas
from pipeline.reporting.atlas.settings import AtlasParams
from pipeline.reporting.bit_rates import read_bit_rates
from pipeline.reporting.report_settings import ReportParams
from pipeline.stage_code import _files, stage_files
from pipeline.vocabulary.external import Params
from pipeline.vocabulary.external_artifact import write_external_vocabulary
from pipeline.vocabulary.rebuilding import rebuild, token_spectra
from pipeline.vocabulary.registry import validate_vocabulary_params
from pipeline.vocabulary.spectra import middle_frames
from pipeline.vocabulary.token_tables import read_token_table, read_vectors, require_clips, write_token_table
from stages import ngram_perplexity
from tools import bundle, stability
from tools.compose import compose, dump
from tools.corpus_check import token_table_mistakes

BOOKS, SIZE, RATE = 2, 16, 40.0
CLIPS = {"a": np.array([[0, 1, 2], [3, 4, 5]]), "b": np.array([[6, 7], [8, 15]])}


def params_of(path: Path, **changes: Any) -> Params:
    section = {"kind": "external", "table": str(path), "num_tokens": SIZE, "codebooks": BOOKS}
    params: Params = validate_vocabulary_params("codec", section | {"frame_rate": RATE, "vectors": None} | changes)
    return params


def write_rows(path: Path, ids: list[Any], tokens: list[Any], kind: pa.DataType | None = None) -> Path:
    pq.write_table(pa.table({"clip_id": ids, "tokens": pa.array(tokens, kind)}), path)
    return path


def test_a_table_comes_back_as_written(tmp_path: Path) -> None:
    write_token_table(tmp_path / "t.parquet", CLIPS)
    lines = [json.dumps({"clip_id": clip, "tokens": codes.tolist(), "note": 1}) for clip, codes in CLIPS.items()]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("t.parquet", "t.jsonl"):
        table = read_token_table(params_of(tmp_path / name))
        assert table.rows == {"a": 0, "b": 1}
        for clip, codes in CLIPS.items():
            assert table.clips[table.rows[clip]].dtype == np.uint16
            np.testing.assert_array_equal(table.clips[table.rows[clip]], codes)
    write_rows(tmp_path / "flat.parquet", ["a"], [[1, 2, 3]])
    table = read_token_table(params_of(tmp_path / "flat.parquet", codebooks=1))
    assert table.clips[0].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("ids", "tokens", "message"),
    [
        (
            ["a", "b", "a"],
            [[[1], [2]]] * 3,
            r"row 3 \(clip_id a\): expected each clip once, found it in row 1 too; keep one",
        ),
        (
            ["a", "b"],
            [[[1], [2]], [[1], [16]]],
            r"row 2 \(clip_id b\): expected tokens from 0 to 15, found 16 in codebook 2, pos",
        ),
        (["a"], [[[1], [-1]]], r"row 1 \(clip_id a\): expected tokens from 0 to 15, found -1 .*; correct num_tokens"),
        (["a"], [[[1], [2], [3]]], r"row 1 \(clip_id a\): expected 2 lists of tokens, found 3; .* correct codebooks"),
        (["a"], [[[1, 2], [2]]], r"row 1 \(clip_id a\): expected lists of one length, above 0, found lengths 2, 1"),
        (
            ["a", "b"],
            [[[1], [1]], [[], []]],
            r"row 2 \(clip_id b\): expected lists of one length, above 0, found lengths 0, 0",
        ),
        (["a"], [[[1], [None]]], r"row 1 \(clip_id a\): expected integers, found null"),
        (["a"], [[[1.0], [2.0]]], r"tokens: expected lists of integers, one for each of 2 codebooks, found list<"),
        (["a"], [[1, 2]], r"tokens: expected lists of integers, one for each of 2 codebooks, found list<"),
        ([1], [[[1], [2]]], r"clip_id: expected text, found int64; write the ids as text"),
        (["a", None], [[[1], [2]]] * 2, r"row 2: clip_id: expected a value, found none"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_row(
    ids: list[Any], tokens: list[Any], message: str, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "t.parquet", ids, tokens)
    with pytest.raises(CorpusError, match=rf"t\.parquet: {message}"):
        read_token_table(params_of(path))


def test_files_that_are_no_tables_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("clip_id,tokens\n")
    (tmp_path / "t.parquet").write_bytes(b"no Parquet")
    (tmp_path / "t.jsonl").write_text("{")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "u.parquet")
    for name, message in {
        "none.parquet": "expected the table of tokens, found no file; write it",
        "t.csv": r"expected Parquet \(.parquet\) or JSON lines \(.jsonl\), found the suffix .csv",
        "t.parquet": r"expected Parquet \(.parquet\) or JSON lines",
        "t.jsonl": r"expected Parquet \(.parquet\) or JSON lines",
        "u.parquet": "expected the columns clip_id and tokens, found id; rename or add clip_id",
    }.items():
        with pytest.raises(CorpusError, match=rf"{name}: {message}"):
            read_token_table(params_of(tmp_path / name))


def test_clips_and_their_lengths_are_compared(tmp_path: Path) -> None:
    params = params_of(tmp_path / "t.parquet")
    write_token_table(tmp_path / "t.parquet", {"a": np.zeros((2, 41), int), "b": np.zeros((2, 30), int)})
    table = read_token_table(params)
    require_clips(table, {"a": 1.0}, params)  # a token more than 40 is within what encoders pad
    with pytest.raises(CorpusError, match=r"expected a row for each of 3 clips, found none for 2 \(c, d\); add them"):
        require_clips(table, {"a": 1.0, "c": 1.0, "d": 1.0}, params)
    message = (
        r"row 2 \(clip_id b\): expected about 40 tokens in each codebook \(1.00 s at frame_rate 40\), found 30; correct"
    )
    with pytest.raises(CorpusError, match=message):
        require_clips(table, {"a": 1.0, "b": 1.0}, params)


def test_vectors_have_a_row_a_token(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    params = params_of(tmp_path / "t.parquet", vectors=str(path))
    np.save(path, np.ones((BOOKS, SIZE, 3)))
    found = read_vectors(params)
    assert found is not None
    assert (found.shape, found.dtype) == ((BOOKS, SIZE, 3), np.float32)
    assert read_vectors(params_of(path)) is None
    for values, message in (
        (np.ones((BOOKS, SIZE)), r"expected floating-point numbers \(2, 16, feature\), found float64 \(2, 16\)"),
        (np.ones((BOOKS, SIZE, 3), int), "found int64"),
        (np.full((BOOKS, SIZE, 3), np.nan), "expected finite vectors"),
    ):
        np.save(path, values)
        with pytest.raises(CorpusError, match=message):
            read_vectors(params)
    path.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"v\.npy: expected an array of numbers as numpy.save writes it"):
        read_vectors(params)
    with path.open("wb") as file:
        np.savez(file, vectors=np.ones((BOOKS, SIZE, 3)))
    with pytest.raises(CorpusError, match=r"expected an array of numbers as numpy.save writes it, found an archive"):
        read_vectors(params)
    path.unlink()
    with pytest.raises(CorpusError, match=r"v\.npy: expected an array of numbers as numpy.save writes it"):
        read_vectors(params)


def test_stability_says_that_nothing_is_fitted(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ran)
    with pytest.raises(ParamsError, match="expected a kind that is fitted, found external"):
        stability.main("codec", "1", [0, 1])


def test_frames_in_the_middle_of_tokens() -> None:
    assert middle_frames(4, 8, 2.0).tolist() == [1, 3, 5, 7]
    assert middle_frames(5, 8, 2.0).tolist() == [1, 3, 5, 7, 7]  # an encoder that pads
    assert middle_frames(4, 2, 0.5).tolist() == [0, 0, 1, 1]


SECTION = f"{{kind: external, table: tokens.parquet, num_tokens: {SIZE}, codebooks: {BOOKS}, frame_rate: {RATE}}}"
OVERRIDES = (
    f"vocabularies.codec={SECTION}",
    "experiment.vocabularies=[codec]",
    "experiment.frame_models=[]",
    "experiment.token_models=[bag_of_tokens, token_transformer]",
    "models.token_transformer.input.embedding=random",
    "report.headline=[bag_of_tokens-codec]",
)
EMPTY = ("report.attention=[]", "experiment.ensembles=[]")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment on a generated table: a clip's first codebook says its class, the second is noise."""
    root = tmp_path_factory.mktemp("external")
    generator = np.random.default_rng(0)
    audio = make_wav_corpus(root / "listed")
    rows = (audio / "meta" / "esc50.csv").read_text().splitlines()
    head = rows[0].split(",")
    clips = {}
    for row in rows[1:]:
        cells = dict(zip(head, row.split(","), strict=True))
        first = np.full(20, int(cells["target"]) % SIZE)
        clips[Path(cells["filename"]).stem] = np.stack([first, generator.integers(0, SIZE, 20)])
    write_token_table(root / "tokens.parquet", clips)
    section = SECTION.replace("tokens.parquet", str(root / "tokens.parquet"))
    return run_experiment(root / "run", [f"vocabularies.codec={section}", *OVERRIDES[1:]])


def test_models_read_the_tokens_of_the_table(ran: Path) -> None:
    layout = Layout(ran)
    table = read_token_table(params_of(ran.parent / "tokens.parquet"))
    for path in (layout.tokens("codec", "1"), layout.development_tokens("codec", "1")):
        opened = open_tokens(path)
        assert opened.metadata["frame_rate"] == RATE
        for clip, tokens in token_arrays(opened).items():
            np.testing.assert_array_equal(tokens, table.clips[table.rows[clip]])
    predictions = open_predictions(layout.prediction(RunId.of("bag_of_tokens", "1", 0, vocabulary="codec")))
    logits, targets = (np.array(predictions.list(name)) for name in ("logits", "targets"))
    assert (logits.argmax(axis=1) == targets.argmax(axis=1)).all()
    assert layout.prediction(RunId.of("token_transformer", "1", 0, vocabulary="codec")).exists()


def test_tokens_are_shown_by_the_mean_of_their_frames_and_not_rebuilt(ran: Path) -> None:
    vocabulary = open_vocabulary(Layout(ran).vocabulary("codec", "1"))
    assert (vocabulary.external, vocabulary.frame_rate, vocabulary.num_codebooks) == (True, RATE, BOOKS)
    spectra = token_spectra(vocabulary, 0)
    assert spectra.shape == (SIZE, vocabulary.metadata["front_end"]["n_mels"])
    assert np.ptp(spectra[vocabulary.counts[0] > 0], axis=0).max() > 1  # classes sound unlike
    with pytest.raises(SonolexError, match="kind external has no frames that tokens stand for"):
        rebuild(vocabulary, np.zeros((BOOKS, 3), np.uint16))


def test_vectors_are_what_embeddings_start_from(ran: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(BOOKS, SIZE, 3)).astype(np.float32)
    np.save(tmp_path / "v.npy", values)
    params = params_of(ran.parent / "tokens.parquet", vectors=str(tmp_path / "v.npy"))
    spectrogram, split = open_spectrogram(Layout(ran).spectrogram), open_split(Layout(ran).split("1"))
    path = tmp_path / "vocabulary.zarr"
    write_external_vocabulary(path, params, spectrogram, clips_of(split, "train"), name="codec", fold="1")
    vocabulary = open_vocabulary(path)
    metadata: Any = {"vocabulary_size": SIZE, "num_codebooks": BOOKS, "bands": vocabulary.bands}
    section = {"kind": "tokens", "embedding": "centroids", "embedding_rate": 0.0, "embedding_width": 4}
    tokens = Tokens(TokensParams.model_validate(section), metadata)
    tokens.load_codebooks(vocabulary.token_vectors())
    found = tokens(torch.tensor([[[1, 2], [3, 4]]]))
    np.testing.assert_allclose(found[0].numpy(), values[0, [1, 2]] + values[1, [3, 4]], rtol=1e-6)


def test_tokens_without_vectors_have_no_nearest_tokens(ran: Path) -> None:
    vocabulary = open_vocabulary(Layout(ran).vocabulary("codec", "1"))
    metadata: Any = {"vocabulary_size": SIZE, "num_codebooks": BOOKS, "bands": vocabulary.bands}
    section = {"kind": "tokens", "embedding": "random", "embedding_rate": 1.0, "embedding_width": 4}
    tokens = Tokens(TokensParams.model_validate(section), metadata)
    tokens.load_codebooks(vocabulary.token_vectors())
    assert (tokens.neighbours[:, :, 0] == torch.arange(SIZE + 3)).all()
    assert tokens.neighbours.shape[2] == 1


def test_the_atlas_has_snippets_and_no_resynthesis(ran: Path) -> None:
    paths = AtlasPaths.of(Layout(ran), "codec", "1", audio=ran / "corpus")
    content = gather_atlas(
        AtlasParams(
            tokens=8, snippets=2, seconds=0.2, clips=2, attribution=[], attribution_clips=4, attribution_steps=4
        ),
        paths,
    )
    assert content.resynthesised == {}
    assert any(content.snippets.of_token.values())
    assert content.silent == ""
    write_atlas(ran / "atlas.html", content)
    page = (ran / "atlas.html").read_text()
    assert "read from a table" in page
    assert "cannot be resynthesised" in page


def test_the_report_has_their_bit_rate_and_no_reconstruction(ran: Path) -> None:
    with contextlib.chdir(ran):
        ngram_perplexity.main("codec", "1")
        params, experiment = load_params(ReportParams, "report"), load_params(ExperimentParams, "experiment")
    page = report(ran, params, experiment)
    assert "read from a table, the same in every fold" in page
    assert "Reconstruction from the tokens" not in page
    assert 'data-label="Unexplained variance">n/a' in page
    rates = {row.model: row for row in read_bit_rates(Layout(ran).bit_rates)}
    found = rates["bag_of_tokens-codec"]
    assert (found.num_codebooks, found.num_tokens, found.tokens_per_second) == (BOOKS, SIZE, BOOKS * RATE)
    assert found.bits_per_second == BOOKS * RATE * 4


def test_a_model_on_such_tokens_is_not_handed_over(ran: Path) -> None:
    layout = Layout(ran)
    model = open_model(layout.model(RunId.of("token_transformer", "1", 0, vocabulary="codec")))
    vocabulary = open_vocabulary(layout.vocabulary("codec", "1"))
    with pytest.raises(SonolexError, match=r"found a vocabulary of kind external, .* cannot predict other sounds"):
        require_members([Member(model, vocabulary)])
    console = Console()
    for retrain in (False, True):  # before anything is trained
        with pytest.raises(SonolexError, match=r"^token_transformer-codec: expected tokens .* of kind external"):
            bundle.run(
                "token_transformer-codec", ran / "out", retrain=retrain, params_path=ran / "params.yaml", layout=layout,
                console=console,
            )  # fmt: skip
    with pytest.raises(SonolexError, match=r"found a vocabulary of kind external, .*--input tokens"):
        sound_classifier(model, vocabulary)
    sound_classifier(model, vocabulary, "tokens")


def test_a_check_looks_into_the_table(ran: Path, tmp_path: Path) -> None:
    with contextlib.chdir(ran):
        assert token_table_mistakes(load_experiment(), Layout(), Path("params.yaml")) == []
    text = (ran / "params.yaml").read_text().replace(f"num_tokens: {SIZE}", "num_tokens: 2")
    (tmp_path / "params.yaml").write_text(text)
    with contextlib.chdir(ran):
        (mistake,) = token_table_mistakes(load_experiment(tmp_path / "params.yaml"), Layout(), Path("params.yaml"))
    assert "params.yaml: vocabularies.codec: " in mistake
    assert "expected tokens from 0 to 1, found" in mistake


def mistakes_of(folder: Path, *overrides: str) -> str:
    """Return what a check says of settings on external tokens."""
    document, unread = compose("demo", [*EMPTY, *OVERRIDES, *overrides], REPOSITORY / "recipes")
    assert not unread
    (folder / "params.yaml").write_text(dump(document))
    with pytest.raises(ParamsError) as caught:
        load_experiment(folder / "params.yaml")
    return str(caught.value)


def test_the_example_of_the_docs_writes_a_table_that_is_read(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeEncodec:
        """Codes of the shape that EncodecModel has, of the samples that it is given."""

        @classmethod
        def from_pretrained(cls, name: str) -> "FakeEncodec":
            return cls()

        def encode(self, samples: torch.Tensor, *, bandwidth: float) -> types.SimpleNamespace:
            assert samples.shape[:2] == (1, 1)
            codes = torch.full((1, 1, 8, -(-samples.shape[2] // 320)), 1023)  # at 24 kHz 75 a second
            return types.SimpleNamespace(audio_codes=codes)

    text = (REPOSITORY / "docs/vocabularies.md").read_text().partition("## Tokens of another program")[2]
    example = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(EncodecModel=FakeEncodec))
    monkeypatch.chdir(ran)
    Path("audio").mkdir()
    Path("audio/ESC-50").symlink_to(ran / "corpus")
    exec(example, {})
    params = params_of(ran / "encodec.parquet", num_tokens=1024, codebooks=8, frame_rate=75.0)
    index = open_spectrogram(Layout(ran).spectrogram).index
    seconds = dict(zip(index.list("clip_id"), (frames / 100 for frames in index.list("num_frames")), strict=True))
    require_clips(read_token_table(params), seconds, params)


def test_centroids_need_vectors(tmp_path: Path) -> None:
    found = mistakes_of(tmp_path, "models.token_transformer.input.embedding=centroids")
    assert "token_transformer cannot read codec: input.embedding: expected random" in found
    assert "vectors to a file of vectors" in found
    assert "bag_of_tokens cannot" not in found


def test_texture_statistics_need_frames(tmp_path: Path) -> None:
    textures = ["experiment.token_models=[token_textures]", "report.headline=[token_textures-codec]"]
    assert "found kind external, whose codes do not add up" in mistakes_of(tmp_path, *textures)


def test_augmented_frames_have_no_such_tokens(tmp_path: Path) -> None:
    found = mistakes_of(tmp_path, "train.augmentation.retokenize=true")
    assert "train.augmentation.retokenize: expected false with vocabulary codec of kind external" in found


def test_settings_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"vocabularies\.codec\.normalisation"):
        params_of(tmp_path / "t.parquet", normalisation="none")


def test_another_table_reruns_the_stages_that_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, _ = compose("demo", [*EMPTY, *OVERRIDES], REPOSITORY / "recipes")
    plain = json.loads(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    write_token_table(tmp_path / "tokens.parquet", CLIPS)
    before = _files(plain)["vocabularies.codec.table"]
    write_token_table(tmp_path / "tokens.parquet", {"a": CLIPS["a"]})
    assert before != _files(plain)["vocabularies.codec.table"] != ""
    monkeypatch.chdir(REPOSITORY)
    files = stage_files(plain, Sources(Path(), snapshot()))
    for stage in ("vocabulary", "tokenize"):
        assert json.loads(files[f"{stage}/codec"])["files"] == {"vocabularies.codec.table": ""}
    assert "files" not in json.loads(files["ngram_perplexity/codec"])

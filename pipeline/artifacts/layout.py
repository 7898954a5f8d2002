"""Paths of all artifacts below a project's folder, and the identity of a training run.

`dvc.yaml` spells the same paths, since DVC needs them written out; a test compares the two. They are spelled nowhere else.

Conventions: a *model* of the experiment is an entry of `models`, with the vocabulary that it reads where it reads tokens,
and whether it starts from masked-token pretraining. Its name, `<entry>[-<vocabulary>[-pretrained]]`, is what tables show. A
*run* is a model trained on one fold with one seed. Names are joined and never parsed: ExperimentParams checks that joined
names are unique. A *variant* of a model is another prediction by the same runs, where these keep epochs: tables show it as
`<model> (<variant>)`, and it has no artifact of its own.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

ALL_SEEDS = "all"  # in the place of a seed: all of them averaged, as an ensemble's run is
PRETRAINED_SUFFIX = "-pretrained"  # of models' names; no entry of `models` or `vocabularies` has it
STORED_WEIGHTS, MEAN_OF_WEIGHTS = "stored_weights", "mean_of_weights"
VARIANTS = (STORED_WEIGHTS, MEAN_OF_WEIGHTS)  # of models whose runs keep epochs, `pipeline/evaluation/variants.py`


@dataclass(frozen=True, order=True)
class ModelId:
    """One model of an experiment."""

    entry: str  # of `models`
    vocabulary: str = ""  # entry of `vocabularies`; empty = the model reads frames
    pretrained: bool = False  # starts from the weights that `pretrain` wrote
    variant: str = ""  # one of VARIANTS; empty = the model itself

    @property
    def name(self) -> str:
        """Return the name in tables, and without a variant in paths."""
        model = "-".join(filter(None, (self.entry, self.vocabulary))) + PRETRAINED_SUFFIX * self.pretrained
        return f"{model} ({self.variant.replace('_', ' ')})" if self.variant else model

    @property
    def plain(self) -> "ModelId":
        """Return the model itself, of which this may be a variant."""
        return replace(self, variant="")

    @property
    def variants(self) -> list["ModelId"]:
        """Return the variants that the model has where its runs keep epochs."""
        return [replace(self, variant=name) for name in VARIANTS]

    @property
    def reads(self) -> str:
        """Return the kind of the model's input: "frames" or "tokens"."""
        return "tokens" if self.vocabulary else "frames"

    def stage(self, step: str) -> str:
        """Return the stage of dvc.yaml that runs a step ("train" or "evaluate") for models of this form."""
        return f"{step}_{'pretrained' if self.pretrained else self.reads}"


@dataclass(frozen=True, order=True)
class RunId:
    """One training run: a model on a fold with a seed."""

    model: ModelId
    fold: str
    seed: int

    @classmethod
    def of(cls, entry: str, fold: str, seed: int, *, vocabulary: str = "", pretrained: bool = False) -> Self:
        """Return the run of a model that is given by its parts."""
        return cls(ModelId(entry, vocabulary, pretrained), fold, seed)

    @property
    def path(self) -> Path:
        """Return `<model>/<fold>/<seed>`, the path of the run below every folder of runs."""
        return Path(self.model.plain.name, self.fold, str(self.seed))

    @property
    def name(self) -> str:
        """Return `<model>-<fold>-<seed>`, the name in stage reports and messages."""
        return f"{self.model.name}-{self.fold}-{self.seed}"

    @property
    def item(self) -> str:
        """Return DVC's name of the run in a matrix: `<entry>[-<vocabulary>]-<fold>-<seed>`."""
        return "-".join(filter(None, (self.model.entry, self.model.vocabulary, self.fold, str(self.seed))))

    def stage(self, step: str) -> str:
        """Return the address of the stage that runs a step ("train" or "evaluate") for this run."""
        return f"{self.model.stage(step)}@{self.item}"


def address_of(stage: str, folder: Path) -> str:
    """Return the address of the stage that writes the folder of a run, `<anywhere>/<model>/<fold>/<seed>`.

    `stage` may be a pattern such as "train_*"; the address is then a pattern too.
    """
    model, fold, seed = folder.parts[-3:]
    plain = model.removesuffix(PRETRAINED_SUFFIX)
    form = stage if plain == model else stage.replace("*", "pretrained")
    return f"{form}@{plain}-{fold}-{seed}"


def report_name(stage: str, item: str = "") -> str:
    """Return the name of a stage report; an item may be the path of a run."""
    return f"{'-'.join(filter(None, (stage, item.replace('/', '-'))))}.json"


@dataclass(frozen=True)
class Layout:
    """Paths of all artifacts below a project's folder."""

    root: Path = Path()

    @property
    def code(self) -> Path:
        """Return the folder of code digests, see `pipeline/execution/code.py`."""
        return self.root / "code"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def clips(self) -> Path:
        return self.data / "clips.parquet"

    @property
    def missing(self) -> Path:
        """Return the table of the clips without audio, beside the manifest."""
        return self.clips.with_name("missing.parquet")

    @property
    def training_labels(self) -> Path:
        """Return the table of labels that replace published ones in training, beside the manifest."""
        return self.clips.with_name("training_labels.parquet")

    @property
    def spectrogram(self) -> Path:
        return self.data / "spectrogram"

    @property
    def spectrogram_index(self) -> Path:
        return self.spectrogram / "index.parquet"

    @property
    def spectrogram_metadata(self) -> Path:
        """Return the file of the frames' metadata alone, which is the same whatever clips there are."""
        return self.spectrogram / "frames.zarr" / "zarr.json"

    @property
    def copies(self) -> Path:
        """Return the folder with one spectrogram per entry of `spectrogram.copies`, of copies of all clips."""
        return self.data / "copies"

    @property
    def duplicates(self) -> Path:
        """Return the table of pairs of near-duplicates."""
        return self.data / "duplicates.parquet"

    @property
    def splits(self) -> Path:
        """Return the folder with one table per fold."""
        return self.data / "splits"

    @property
    def token_folder(self) -> Path:
        """Return the folder with one folder per vocabulary, and in it one table per fold."""
        return self.data / "tokens"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def predictions(self) -> Path:
        """Return the folder with one table per run."""
        return self.root / "predictions"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def stage_reports(self) -> Path:
        """Return the folder of stage reports (durations, memory), which DVC does not track."""
        return self.results / "stages"

    def stage_report(self, stage: str, item: str = "") -> Path:
        """Return the report of a stage's last run, of an item of its matrix where it has one."""
        return self.stage_reports / report_name(stage, item)

    @property
    def summary(self) -> Path:
        """Return the table of runs."""
        return self.results / "summary.csv"

    @property
    def metrics(self) -> Path:
        """Return the file of scalars that `dvc metrics` and `dvc exp show` read."""
        return self.results / "metrics.json"

    @property
    def thresholds(self) -> Path:
        """Return the table of thresholds of decisions."""
        return self.results / "thresholds.parquet"

    @property
    def vocabulary_statistics(self) -> Path:
        return self.results / "vocabularies.csv"

    @property
    def bit_rates(self) -> Path:
        """Return the table of scores on tokens and on frames by bit rate."""
        return self.results / "bit_rates.csv"

    @property
    def plots(self) -> Path:
        """Return the folder of data for `dvc plots`."""
        return self.results / "plots"

    @property
    def page(self) -> Path:
        return self.root / "report" / "index.html"

    @property
    def data_page(self) -> Path:
        """Return the page about the corpus, beside the report."""
        return self.root / "report" / "data.html"

    @property
    def atlas_index(self) -> Path:
        return self.root / "report" / "atlas.html"

    def found_copies(self) -> tuple[Path, ...]:
        """Return the spectrograms of all copies on disk."""
        return tuple(sorted(path.parent for path in self.copies.glob("*/index.parquet")))

    def found_splits(self) -> list[Path]:
        """Return the tables of roles of all folds on disk."""
        return sorted(self.splits.glob("*.parquet"))

    def found_tokens(self) -> list[Path]:
        """Return the tables of token sequences of all vocabularies and folds on disk."""
        return sorted(self.token_folder.glob("*/*.parquet"))

    def found_predictions(self) -> list[Path]:
        """Return the tables of predictions of all runs on disk."""
        return sorted(self.predictions.glob("*/*/*.parquet"))

    def split(self, fold: str) -> Path:
        return self.splits / f"{fold}.parquet"

    def development(self, fold: str) -> Path:
        """Return the table of a fold's development set; see `pipeline/artifacts/development.py`."""
        return self.data / "development" / "clips" / f"{fold}.parquet"

    def targets(self, fold: str) -> Path:
        """Return the table of labels of a fold's development set."""
        return self.data / "development" / "targets" / f"{fold}.parquet"

    def development_tokens(self, name: str, fold: str) -> Path:
        """Return the table of token sequences of a fold's development set."""
        return self.data / "development" / "tokens" / name / f"{fold}.parquet"

    def supervision(self, name: str, fold: str) -> Path:
        """Return the folder of labels, or of the network, that a fold's vocabulary is fitted on, if any."""
        return self.data / "supervision" / name / fold

    def training_targets(self, name: str, fold: str) -> Path:
        return self.supervision(name, fold) / "targets.parquet"

    def network(self, name: str, fold: str) -> Path:
        """Return the folder of the network whose hidden states a fold's vocabulary quantises."""
        return self.supervision(name, fold) / "network"

    def vocabulary(self, name: str, fold: str) -> Path:
        return self.data / "vocabulary" / name / f"{fold}.zarr"

    def tokens(self, name: str, fold: str) -> Path:
        return self.token_folder / name / f"{fold}.parquet"

    def source(self, model: ModelId, fold: str) -> Path:
        """Return the path of a model's input: the spectrogram, or a fold's tokens."""
        return self.tokens(model.vocabulary, fold) if model.vocabulary else self.spectrogram

    def training_source(self, model: ModelId, fold: str) -> Path:
        """Return the path of a model's input in training: the spectrogram, or the tokens of a fold's development set."""
        return self.development_tokens(model.vocabulary, fold) if model.vocabulary else self.spectrogram

    def labels(self, fold: str) -> Path:
        return self.data / "labels" / f"{fold}.parquet"

    def pretrained(self, run: RunId) -> Path:
        """Return the folder of pretrained weights that a run starts from."""
        plain = RunId(ModelId(run.model.entry, run.model.vocabulary), run.fold, run.seed)
        return self.data / "pretrained" / plain.path

    def model(self, run: RunId) -> Path:
        return self.models / run.path

    def curves(self, run: RunId) -> Path:
        return self.results / "train" / run.path

    def pretraining_curves(self, run: RunId) -> Path:
        return self.results / "pretrain" / run.path

    def prediction(self, run: RunId) -> Path:
        return self.predictions / run.path.with_suffix(".parquet")

    def pseudo_perplexity(self, run: RunId) -> Path:
        return self.results / "perplexity" / run.path.with_suffix(".csv")

    def attention(self, entry: str) -> Path:
        """Return the attention maps of a model that reads frames."""
        return self.results / "attention" / f"{entry}.parquet"

    def ngram_perplexity(self, vocabulary: str, fold: str) -> Path:
        return self.results / "ngram_perplexity" / vocabulary / f"{fold}.csv"

    def attributions(self, vocabulary: str, fold: str) -> Path:
        """Return the folder of attributions to a fold's tokens, a table per model; empty without `atlas.attribution`."""
        return self.results / "attribution" / vocabulary / fold

    def attribution(self, model: ModelId, fold: str) -> Path:
        """Return the table of attributions of a model that reads tokens."""
        return self.attributions(model.vocabulary, fold) / f"{model.entry}.parquet"

    def atlas(self, vocabulary: str) -> Path:
        return self.root / "report" / "atlas" / f"{vocabulary}.html"

    @property
    def folders_read_whole(self) -> tuple[Path, ...]:
        """Return the folders that a stage of dvc.yaml depends on as a whole; some may be empty in an experiment."""
        names = ("vocabulary", "tokens", "splits")
        of_results = ("train", "attention", "ngram_perplexity")
        return (*(self.data / name for name in names), self.predictions, *(self.results / name for name in of_results))

"""Mixtures adapter: polyphonic clips made of another corpus's clips with one label, in which each label is known.

<root>/<digest>.flac     mono, 24-bit PCM; the name is a digest of what a file is made of, so that it is made once

A mixture is drawn from clips of different classes in one fold of the source, and has the labels of all: no sound is in two
folds. Every fold is one group, since its clips share sounds, so that validation clips are whole folds. Where the source
publishes no folds, `num_folds` are drawn by its groups, evenly for each class.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from pipeline.corpora.base import AdapterParams, ClipRow, CorpusAdapter, CorpusListing, reject
from pipeline.corpora.mixture_audio import source_digest, write_sounds
from pipeline.corpora.mixture_drawing import Mixture, Source, SourceRow, assign_folds, draw_mixtures
from pipeline.corpora.spelling import tidied
from pipeline.corpora.splitting import USES, Use
from pipeline.registry import Registry

# Corpora of files with one label each.
SOURCES: Registry[CorpusAdapter] = Registry(
    "source corpus",
    {
        "demo": "pipeline.corpora.demo",
        "esc50": "pipeline.corpora.esc50",
        "folder": "pipeline.corpora.folder",
        "pattern": "pipeline.corpora.pattern",
        "table": "pipeline.corpora.table",
        "urbansound8k": "pipeline.corpora.urbansound8k",
    },
)

Kind = Literal["singles", "mixtures", "both"]

_MARKS = {use: mark for mark, use in USES.items()}


class Params(AdapterParams):
    kind: Literal["mixtures"]
    source: Annotated[AdapterParams, SOURCES.params]  # corpus of the clips that are mixed
    train_on: Kind  # the source's clips one by one, mixtures, or both
    validate_on: Kind | None  # null = as train_on
    test_on: Kind
    sounds: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]  # least and most in a mixture
    per_fold: PositiveInt  # mixtures of each fold
    gain: NonNegativeFloat  # dB, largest level of a sound above or below the others' mean power
    num_folds: Annotated[int, Field(ge=2)]  # drawn where the source publishes none
    sample_rate: PositiveInt  # Hz, of the files
    seed: NonNegativeInt

    layout: ClassVar[str] = "nothing: missing files are mixed of the source's"
    makes_audio: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_sounds(self) -> Self:
        if not 2 <= self.sounds[0] <= self.sounds[1]:
            raise ValueError(f"sounds: expected at least 2, and the least first, found {list(self.sounds)}")
        return self

    def _choosing(self) -> dict[str, object]:
        own = super()._choosing() | {"source": self.source._choosing()}
        return {key: value for key, value in own.items() if key != "validate_on" or value is not None}


def list_clips(params: Params) -> CorpusListing:
    """List singles and mixtures, and write files that are missing. Raises CorpusError for sources that cannot be mixed."""
    listing = tidied(SOURCES[params.source.kind].list_clips(params.source), params.source.root)
    sources = _sources(params, listing)
    folds = sorted({source.fold for source in sources})
    mixtures = {
        fold: draw_mixtures(
            [source for source in sources if source.fold == fold], fold,
            count=params.per_fold, sounds=params.sounds, gain=params.gain, seed=params.seed,
        )
        for fold in folds
    }  # fmt: skip
    reject(params.source.root, {"folds with sounds of fewer than two classes": [f for f in folds if not mixtures[f]]})
    wanted = [Mixture(source.clip_id, source.fold, (source,), (0.0,), (0.0,)) for source in sources]
    wanted = [single for single in wanted if _fold_of(params, single)]
    wanted += [mixture for drawn in mixtures.values() for mixture in drawn if _fold_of(params, mixture)]
    files = write_sounds(params.root, wanted, params.sample_rate, params.max_duration)
    clips = [
        ClipRow(
            sound.clip_id, name, tuple(dict.fromkeys(source.label for source in sound.sources)),
            group=f"fold {sound.fold}", fold=_fold_of(params, sound),
        )
        for sound, name in zip(wanted, files, strict=True)
    ]  # fmt: skip
    return CorpusListing(listing.classes, "many", listing.licence, clips, left_out=listing.left_out)


def _sources(params: Params, listing: CorpusListing) -> list[Source]:
    """Return the source's clips, each with its fold."""
    rows: list[SourceRow] = listing.table().to_pylist()
    problems = {
        "source clips without exactly one label, of which no mixture's labels follow": [
            row["clip_id"] for row in rows if len(row["labels"]) != 1
        ],
        "source clips in tar or Parquet files, which are not mixed; unpack them": [
            row["clip_id"] for row in rows if row["member"]
        ],
    }
    reject(params.source.root, problems)
    root = params.source.root
    digests = [source_digest(root / row["source"]) for row in rows]
    folds = assign_folds(rows, digests, params.num_folds, params.seed, root)
    return [
        Source(row["clip_id"], root / row["source"], digest, row["start"], row["duration"], row["labels"][0], fold)
        for row, digest, fold in zip(rows, digests, folds, strict=True)
    ]


def _fold_of(params: Params, sound: Mixture) -> str:
    """Return the fold of a clip, with what it is used for where that is not all; empty where it is not used."""
    kind = "singles" if len(sound.sources) == 1 else "mixtures"
    chosen = params.train_on, params.validate_on or params.train_on, params.test_on
    use = Use(*(choice in (kind, "both") for choice in chosen))
    return sound.fold + _MARKS[use] if any(use) else ""

"""Sounds of the atlas: real snippets of training clips for each token, and whole clips made of their tokens alone.

Conventions: frames (frame, mel) float32 in the front end's units, tokens (codebook, position), waveforms (sample,) float32
at the front end's rate. Distances are decibels, root mean square over bands. An *occurrence* of a token is a position of a
clip.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.artifacts.spectrogram import DECIBELS
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.errors import CorpusError
from pipeline.reporting.atlas.tokens import CodebookPatterns, token_places
from pipeline.reporting.recordings import Recordings
from pipeline.spectrogram.concatenation import choose_units, join_units, match_gains
from pipeline.spectrogram.front_end import FrontEnd
from pipeline.spectrogram.inversion import Inverter
from pipeline.spectrogram.log_mel import log_mel_part
from pipeline.spectrogram.reader import FrameReader
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.rebuilding import rebuild

_FRAMES_LISTENED_TO = 200_000  # of training clips, drawn by hash: where snippets are looked for
_CLIP_RANGE = 40_000  # of these frames, the first ones: what token sequences are resynthesised with
_FRAMES_PER_BATCH = 1 << 15
_FADE = 0.004  # seconds, at both ends of a snippet, so that cutting does not click
_AUDIBLE = 60.0  # dB below a clip's loudest band; what is quieter does not count in distances
_SEED = 0  # of the first phases of Griffin and Lim's method


@dataclass(frozen=True)
class Occurrences:
    """The tokens of some training clips, with how near each frame is to what its token stands for."""

    clips: tuple[str, ...]
    clip: np.ndarray  # (position,) which of `clips`
    start: np.ndarray  # (position,) first frame of the token in its clip
    stop: np.ndarray  # (position,) the frame behind its last
    tokens: np.ndarray  # (codebook, position)
    distance: np.ndarray  # (codebook, position) dB, float32
    units: np.ndarray  # (unit, mel) float32: frames of the first clips, one after the other
    unit_clip: np.ndarray  # (unit,) which of `clips`
    unit_frame: np.ndarray  # (unit,) which frame of it


@dataclass(frozen=True)
class Snippet:
    """A short window around one occurrence of a token."""

    clip: str
    time: float  # seconds from the start of the clip to the middle of the token
    sound: int  # position in `Snippets.waveforms`
    mark: tuple[float, float]  # where the token is, as parts of the window
    distance: float  # dB


@dataclass
class Snippets:
    """Snippets of tokens by (codebook, token), the nearest first; windows that several tokens share are there once."""

    of_token: dict[tuple[int, int], list[Snippet]] = field(default_factory=dict)
    waveforms: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class ResynthesisedClip:
    """A clip's sound, and what can be made of less than it."""

    original: np.ndarray
    versions: dict[str, np.ndarray]  # name -> waveform
    frames: dict[str, np.ndarray]  # name -> the version's own log-mel
    distance: dict[str, float]  # name -> dB from the original's log-mel


def decibels(metadata: Mapping[str, object]) -> float:
    """Return how many dB one of a front end's units is."""
    return DECIBELS.get(str(metadata["units"]), 1.0)


def collect_occurrences(
    reader: FrameReader,
    clips: Sequence[str],
    sequences: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    codebooks: Sequence[CodebookPatterns],
    unit: float,
) -> Occurrences:
    """Go through the first of `clips` and compare their frames with what their tokens stand for; `unit` is in dB.

    Raises CorpusError when none of them has frames and tokens.
    """
    usable = [name for name in reader.ok(clips) if name in sequences and sequences[name].shape[1]]
    if not usable:
        raise CorpusError(
            f"atlas: expected training clips with frames and tokens, found {len(clips)} clips without; see the index of the "
            "spectrogram for the reasons, and the split for the roles"
        )
    ends = np.cumsum([reader.num_frames(name) for name in usable])
    usable = usable[: max(1, int(np.searchsorted(ends, _FRAMES_LISTENED_TO)))]
    metadata = vocabulary.metadata["front_end"]
    starts, stops, tokens, units = (list[np.ndarray]() for _ in range(4))
    distance: list[list[np.ndarray]] = []  # by clip, then by codebook
    held = 0
    for batch in clip_batches(usable, reader.num_frames, frames_per_batch=_FRAMES_PER_BATCH):
        for name, values in zip(batch, reader.read(batch), strict=True):
            frames = log_mel_part(values, metadata)
            start, stop = token_places(vocabulary, sequences[name])
            whole = int((stop <= len(frames)).sum())  # a clip's last frames may not fill a token
            errors = _squared_errors(vocabulary, frames, sequences[name], start, codebooks)
            distance.append(
                [_by_token(error, b, start[:whole], stop[:whole]) for error, b in zip(errors, codebooks, strict=True)]
            )
            tokens.append(sequences[name][:, :whole])
            starts.append(start[:whole])
            stops.append(stop[:whole])
            if held < _CLIP_RANGE:
                units.append(frames.copy())
                held += len(frames)
    lengths = [len(frames) for frames in units]
    return Occurrences(
        clips=tuple(usable),
        clip=np.repeat(np.arange(len(usable)), [len(start) for start in starts]),
        start=np.concatenate(starts),
        stop=np.concatenate(stops),
        tokens=np.concatenate(tokens, axis=1),
        distance=unit * np.concatenate(distance, axis=1),
        units=np.concatenate(units),
        unit_clip=np.repeat(np.arange(len(units)), lengths),
        unit_frame=np.concatenate([np.arange(length) for length in lengths]),
    )


def _squared_errors(
    vocabulary: Vocabulary, frames: np.ndarray, tokens: np.ndarray, start: np.ndarray, books: Sequence[CodebookPatterns]
) -> list[np.ndarray]:
    """Return for each codebook the squared differences (frame, mel) of a clip's frames from what its tokens stand for.

    Some stand for nothing: their mean frames, `patterns`, take the place, each from its first frame on.
    """
    if not vocabulary.decodable:
        of_frame = np.searchsorted(start, np.arange(len(frames)), side="right") - 1
        return [np.square(frames - b.patterns[row, 0][of_frame]) for b, row in zip(books, tokens, strict=True)]
    rebuilt = log_mel_part(rebuild(vocabulary, tokens)[: len(frames)], vocabulary.metadata["front_end"])
    return [np.square(frames - rebuilt)] * len(books)


def _by_token(error: np.ndarray, book: CodebookPatterns, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Return the root mean square of squared errors (frame, mel) over a codebook's bands and each token's frames."""
    sums = np.append(0.0, np.cumsum(error[:, book.first : book.last].mean(axis=1, dtype=np.float64)))
    return np.asarray(np.sqrt((sums[stop] - sums[start]).clip(0) / (stop - start)), dtype=np.float32)


def nearest_occurrences(
    occurrences: Occurrences, codebook: int, wanted: np.ndarray, count: int
) -> dict[int, list[int]]:
    """Return the `count` positions nearest to each of the `wanted` tokens of a codebook, one a clip: token -> positions."""
    tokens, distance = occurrences.tokens[codebook], occurrences.distance[codebook]
    order = np.lexsort((distance, tokens))
    starts = np.searchsorted(tokens[order], wanted, side="left")
    stops = np.searchsorted(tokens[order], wanted, side="right")
    found = {}
    for token, start, stop in zip(wanted.tolist(), starts, stops, strict=True):
        _, firsts = np.unique(occurrences.clip[order[start:stop]], return_index=True)  # the nearest of each clip
        found[token] = order[start + np.sort(firsts)[:count]].tolist()
    return found


def cut_snippets(
    occurrences: Occurrences,
    nearest: Mapping[tuple[int, int], Sequence[int]],
    recordings: Recordings,
    inverter: Inverter,
    *,
    seconds: float,
    count: int,
) -> Snippets:
    """Cut windows of `seconds` around occurrences, (codebook, token) -> positions; at most `count` different ones a token.

    Every clip is decoded once. Where the audio is not at hand, a token has no snippet.
    """
    cuts = _cut_windows(
        occurrences, sorted({p for some in nearest.values() for p in some}), recordings, inverter, seconds
    )
    snippets, places = Snippets(), dict[str, int]()
    for (codebook, token), positions in nearest.items():
        taken: dict[str, Snippet] = {}
        for position in positions:
            if position not in cuts or len(taken) == count:
                continue
            start, middle, waveform = cuts[position]
            content = hashlib.sha256(waveform.tobytes()).hexdigest()
            if content in taken:
                continue
            if content not in places:
                places[content] = len(snippets.waveforms)
                snippets.waveforms.append(waveform)
            reach = (occurrences.stop[position] - occurrences.start[position]) * inverter.hop_length / 2
            mark = ((middle - reach - start) / len(waveform), (middle + reach - start) / len(waveform))
            name, time = occurrences.clips[occurrences.clip[position]], middle / inverter.sample_rate
            distance = float(occurrences.distance[codebook, position])
            taken[content] = Snippet(name, time, places[content], (max(0.0, mark[0]), min(1.0, mark[1])), distance)
        snippets.of_token[codebook, token] = list(taken.values())
    return snippets


def _cut_windows(
    occurrences: Occurrences, positions: Sequence[int], recordings: Recordings, inverter: Inverter, seconds: float
) -> dict[int, tuple[int, float, np.ndarray]]:
    """Return position -> first sample, sample in the middle of the token, and window; clips are visited one by one."""
    length, fade = round(seconds * inverter.sample_rate), round(_FADE * inverter.sample_rate)
    ramp = np.minimum(1, (np.arange(length) + 1) / fade) if fade else np.ones(length)
    cuts = {}
    for position in positions:  # ascending, so clip after clip
        waveform, _ = recordings.read(occurrences.clips[occurrences.clip[position]])
        if not len(waveform):
            continue
        middle = inverter.middle((occurrences.start[position] + occurrences.stop[position] - 1) / 2)
        start = int(max(0, min(middle - length / 2, len(waveform) - length)))
        window = waveform[start : start + length]
        cuts[position] = start, middle, window * ramp[: len(window)] * ramp[: len(window)][::-1]
    return cuts


class Resynthesiser:
    """Makes clips of tokens."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        front_end: FrontEnd,
        inverter: Inverter,
        occurrences: Occurrences,
        recordings: Recordings,
    ) -> None:
        """Take the units to speak with from what was heard."""
        self._vocabulary, self._front_end, self._inverter = vocabulary, front_end, inverter
        self._metadata = front_end.metadata
        self._occurrences, self._recordings = occurrences, recordings
        self._scale = np.maximum(occurrences.units.std(axis=0), 1e-3)
        self._follows = np.append(False, np.diff(occurrences.unit_clip) == 0)
        self._unit_levels = inverter.band_powers(occurrences.units).sum(axis=1)

    def synthesise(
        self, original: np.ndarray, frames: np.ndarray, tokens: np.ndarray, unit: float
    ) -> ResynthesisedClip:
        """Return a clip with log-mel `frames` beside what its `tokens` alone, and its log-mel alone, sound like."""
        rebuilt = log_mel_part(rebuild(self._vocabulary, tokens)[: len(frames)], self._metadata)
        versions = {
            "tokens": self._inverter.waveform(rebuilt, seed=_SEED),
            "snippets": self.join(rebuilt),
            "log_mel": self._inverter.waveform(frames, seed=_SEED),
        }
        own = {
            name: log_mel_part(self._front_end.log_mel(waveform), self._metadata) for name, waveform in versions.items()
        }
        return ResynthesisedClip(
            original=original,
            versions=versions,
            frames={"original": frames} | own,
            distance={name: log_mel_distance(frames, again, unit) for name, again in own.items()},
        )

    def join(self, rebuilt: np.ndarray) -> np.ndarray:
        """Return rebuilt frames (frame, mel) resynthesised with frames of other clips, each as loud as the rebuilt one."""
        chosen = choose_units(rebuilt / self._scale, self._occurrences.units / self._scale, self._follows)
        wanted = self._inverter.band_powers(rebuilt).sum(axis=1)
        recordings = [
            self._recordings.read(self._occurrences.clips[clip])[0] for clip in self._occurrences.unit_clip[chosen]
        ]
        return join_units(
            recordings,
            [round(self._inverter.middle(frame)) for frame in self._occurrences.unit_frame[chosen]],
            match_gains(wanted, self._unit_levels[chosen]),
            hop_length=self._inverter.hop_length,
            before=self._inverter.before,
        )


def log_mel_distance(frames: np.ndarray, again: np.ndarray, unit: float) -> float:
    """Return the root mean square difference in dB where `frames` (frame, mel), in units of `unit` dB, can be heard."""
    length = min(len(frames), len(again))
    audible = frames[:length] > frames.max() - _AUDIBLE / unit
    return unit * float(np.sqrt(np.square(frames[:length] - again[:length])[audible].mean()))

"""Folder of sounds for background noise: its files with their digest, and their log-mel frames. Imports no torch.

Frames are computed by the front end of the training clips and kept in `.sonolex/noise`, a memo store of their own, under
what they follow from: the content of the files, the front end, and its code. `sonolex gc` bounds it like shards.

Conventions: frames (frame, mel) float32 in the front end's units.
"""

import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.corpora.content import content_digests
from pipeline.corpora.walking import audio_files
from pipeline.errors import SonolexError
from pipeline.execution.memo import Entry, Memo
from pipeline.execution.threads import map_ahead, usable_threads
from pipeline.paths import shared_path
from pipeline.spectrogram.computing import computing_version
from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.front_end import FrontEnd
from pipeline.spectrogram.registry import recorded_front_end
from pipeline.spectrogram.sources import BadClip

log = logging.getLogger(__name__)

SETTING = "train.augmentation.background.folder"  # for messages
CACHE = Path(".sonolex/noise")  # memo store of frames: one entry for each content of a folder

_STAGE, _FRAMES = "background", "frames.npz"
_MOST_SECONDS = 36_000.0  # of all sounds: 2 GB of frames in memory with 128 bands at 100 frames/s
_NAMED = 3  # files in a message


class Sounds(NamedTuple):
    """Audio files below a folder."""

    folder: Path
    paths: list[Path]
    digest: str  # of the names and contents of the files


def find_sounds(folder: Path) -> Sounds:
    """Return the audio files below a folder. Raises SonolexError where there are none."""
    if not folder.is_dir():
        raise SonolexError(
            f"{SETTING}: expected a folder of sounds, found none at {folder}; name another, or set "
            "train.augmentation.background.probability to 0"
        )
    names = audio_files(folder).paths
    if not names:
        raise SonolexError(
            f"{SETTING}: expected audio files below {folder}, found none; name another folder, or set "
            "train.augmentation.background.probability to 0"
        )
    paths = [folder / name for name in names]
    found = [f"{name}\x1f{digest}" for name, digest in zip(names, content_digests(paths).digests, strict=True)]
    return Sounds(folder, paths, hashlib.sha256("\x1e".join(found).encode()).hexdigest()[:32])


def sound_frames(sounds: Sounds, metadata: SpectrogramMetadata) -> list[np.ndarray]:
    """Return the frames of the files, but for those that cannot be used, which are named in a warning.

    Raises SonolexError where no file can be used, or all together are longer than the most that is kept in memory.
    """
    front_end = recorded_front_end(metadata)
    params = {"front_end": metadata["params"], "mix": metadata.get("mix", "mean")}
    memo = Memo(shared_path(CACHE), _STAGE, params=params, code=computing_version(front_end))
    memo.mark_used([sounds.digest])
    known = _read(memo.find(sounds.digest, thorough=True))
    if known is None:
        known = _compute(sounds, front_end, metadata)
        with memo.writing(sounds.digest, clips=len(known), computed=len(known)) as folder:
            np.savez(folder / _FRAMES, frames=np.concatenate(known), lengths=[len(frames) for frames in known])
    return known


def _read(entry: Entry | None) -> list[np.ndarray] | None:
    if entry is None:
        return None
    try:
        with np.load(entry.path / _FRAMES) as file:
            return np.split(file["frames"], np.cumsum(file["lengths"])[:-1])
    except FileNotFoundError:  # a clean-up has just removed it
        return None


def _compute(sounds: Sounds, front_end: FrontEnd, metadata: SpectrogramMetadata) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    bad: list[str] = []
    most = _MOST_SECONDS * metadata["frame_rate"]
    for frames in map_ahead(partial(_frames, front_end=front_end, metadata=metadata), sounds.paths, usable_threads()):
        if isinstance(frames, BadClip):
            bad.append(str(frames))
            continue
        found.append(frames)
        if sum(map(len, found)) > most:
            raise SonolexError(
                f"{SETTING}: expected at most {_MOST_SECONDS / 3600:.0f} hours of sound, found more in {sounds.folder}; "
                "name a folder with fewer files"
            )
    _report_bad(sounds, bad, usable=len(found))
    return found


def _frames(path: Path, front_end: FrontEnd, metadata: SpectrogramMetadata) -> np.ndarray | BadClip:
    try:
        waveform = decode(
            path,
            start=0.0,
            duration=0.0,
            sample_rate=metadata["sample_rate"],
            max_duration=_MOST_SECONDS,
            min_samples=front_end.min_samples,
            mix=metadata.get("mix", "mean"),
        )
    except BadClip as error:
        return error
    return front_end.log_mel(waveform)


def _report_bad(sounds: Sounds, bad: Sequence[str], *, usable: int) -> None:
    examples = "; ".join(bad[:_NAMED])
    if not usable:
        raise SonolexError(
            f"{SETTING}: expected sounds that can be decoded in {sounds.folder}, found none of {len(bad)}: {examples}"
        )
    if bad:
        log.warning("%s: left out %d of %d files: %s", SETTING, len(bad), len(bad) + usable, examples)

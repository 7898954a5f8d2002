"""Demo corpus adapter: synthetic clips that need no download, see `pipeline/corpora/synthesis.py`.

<root>/<settings>/<clip_id>.wav     mono, 16-bit PCM
<root>/<settings>/settings.json     settings and program digest of the files; those of another version are made again

Experiments with different settings, which may run side by side, have separate folders.
"""

import json
import wave
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.artifacts.files import file_digest, locked, replacing
from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing

SAMPLE_RATE = 16_000  # Hz


class Params(AdapterParams):
    kind: Literal["demo"]
    clips_per_class: PositiveInt
    duration: PositiveFloat  # seconds of every clip
    seed: NonNegativeInt

    layout: ClassVar[str] = "nothing: missing files are synthesised"
    makes_audio: ClassVar[bool] = True
    published_folds: ClassVar[tuple[str, ...]] = ("1", "2", "3", "4", "5")


def list_clips(params: Params) -> CorpusListing:
    """List the demo's clips and synthesise those whose file is missing."""
    # Imported here, since SciPy behind it takes longer to start than any stage that only names a corpus.
    from pipeline.corpora import synthesis

    clips = synthesis.demo_clips(params.clips_per_class, params.seed)
    name = f"{params.duration}s-seed{params.seed}"
    folder = params.root / name
    with locked(folder):
        _discard_others(params, folder, Path(synthesis.__file__), synthesis.CLASSES)
        for clip in clips:
            path = folder / f"{clip.clip_id}.wav"
            if not path.exists():
                sound = synthesis.synthesise(clip, duration=params.duration, sample_rate=SAMPLE_RATE, seed=params.seed)
                _write_wav(path, sound)
    rows = [
        ClipRow(
            c.clip_id, f"{name}/{c.clip_id}.wav", (synthesis.CLASSES[c.class_index],), group=c.group, fold=str(c.fold)
        )
        for c in clips
    ]
    return CorpusListing(synthesis.CLASSES, "one", "CC0: synthesised by Sonolex", rows)


def _discard_others(params: Params, folder: Path, program: Path, classes: tuple[str, ...]) -> None:
    """Remove demo clips made by another version of the program; safe to repeat after a kill."""
    made_with = {"duration": params.duration, "sample_rate": SAMPLE_RATE, "seed": params.seed}
    stamp, expected = folder / "settings.json", json.dumps(made_with | {"program": file_digest(program)}) + "\n"
    if stamp.exists() and stamp.read_text() == expected:
        return
    stamp.unlink(missing_ok=True)
    for path in folder.glob("*.wav"):
        if path.stem.rpartition("-")[0] in classes:  # never a file that the demo did not write
            path.unlink()
    with replacing(stamp) as partial:
        partial.write_text(expected)


def _write_wav(path: Path, waveform: np.ndarray) -> None:
    """Write (sample,) float32 in [-1, 1] as 16-bit PCM."""
    with replacing(path) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(np.clip(waveform, -1.0, 1.0) * 32767).astype("<i2").tobytes())

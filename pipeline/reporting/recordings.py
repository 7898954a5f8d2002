"""The sound of clips as the front end hears it, for pages: decoded from the corpus, where it is on this machine."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.artifacts.clips import ClipRecord
from pipeline.artifacts.spectrogram import Mix

_LONGEST_SECONDS = 3600.0  # of a clip that is decoded for a page
_KEPT = 256  # clips that are in memory, the last ones asked for


class Recordings:
    """Decodes clips of the manifest at one sample rate, and keeps some."""

    def __init__(self, clips: Mapping[str, ClipRecord], audio_path: Path, sample_rate: int, mix: Mix = "mean") -> None:
        """Take rows of the manifest by clip id, the corpus root, which may be missing, a rate in Hz, a mix."""
        self._mix: Mix = mix
        self._clips, self._audio_path, self._sample_rate = clips, audio_path, sample_rate
        self._kept: dict[str, tuple[np.ndarray, str]] = {}

    def read(self, clip: str) -> tuple[np.ndarray, str]:
        """Return a clip's waveform (sample,), or an empty one and the reason in words."""
        if clip not in self._kept:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[clip] = self._decode(clip)
        return self._kept[clip]

    def _decode(self, clip: str) -> tuple[np.ndarray, str]:
        from pipeline.spectrogram.decoding import decode
        from pipeline.spectrogram.sources import BadClip, PackedAudio

        nothing, row = np.empty(0, dtype=np.float32), self._clips[clip]
        if not (self._audio_path / row["source"]).is_file():
            return nothing, "audio not on this machine"
        try:
            waveform = decode(
                self._audio_path / row["source"],
                start=row["start"],
                duration=row["duration"],
                sample_rate=self._sample_rate,
                max_duration=_LONGEST_SECONDS,
                member=PackedAudio.of(row),
                content=row["content"],
                mix=self._mix,
                allow_silence=True,
            )
        except BadClip as error:
            return nothing, f"audio cannot be read now ({error.reason})"
        return waveform, ""

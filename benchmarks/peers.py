"""Peers of `benchmarks/features.py`: other libraries that compute log-mel frames of audio files and store them.

    python -m benchmarks.peers NAME FOLDER OUT --clips 240 --processes 1

Each does the same work in its usual way: 16 kHz, 128 mel bands, 25 ms windows every 10 ms; mono from two channels.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

SAMPLE_RATE, NUM_MELS = 16000, 128


def torchaudio_loop(paths: list[Path], out: Path, processes: int) -> None:
    """Run a loop over soundfile, torchaudio's resampler and its Kaldi filterbank; one .npy of float16 per clip."""
    out.mkdir()
    if processes == 1:
        _torchaudio_part(paths, out)
        return
    parts = [paths[number::processes] for number in range(processes)]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(_torchaudio_part, parts, [out] * processes))


def _torchaudio_part(paths: list[Path], out: Path) -> None:
    import soundfile
    import torch
    import torchaudio

    torch.set_num_threads(1)
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        waveform = torch.from_numpy(samples).mean(dim=1)[None]
        waveform = torchaudio.functional.resample(waveform, rate, SAMPLE_RATE)
        frames = torchaudio.compliance.kaldi.fbank(
            waveform - waveform.mean(),
            htk_compat=True,
            sample_frequency=SAMPLE_RATE,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=NUM_MELS,
            dither=0.0,
        )
        np.save(out / f"{path.stem}.npy", frames.numpy().astype(np.float16))


def lhotse_fbank(paths: list[Path], out: Path, processes: int) -> None:
    """Run lhotse: a CutSet mixed down and resampled on the fly, its own Fbank, its default storage."""
    import torch
    from lhotse import CutSet, Fbank, FbankConfig, Recording

    torch.set_num_threads(1)
    recordings = [Recording.from_file(path) for path in paths]
    cuts = CutSet.from_cuts(
        recording.to_cut().to_mono(mono_downmix=True).resample(SAMPLE_RATE) for recording in recordings
    )
    extractor = Fbank(FbankConfig(sampling_rate=SAMPLE_RATE, num_filters=NUM_MELS))
    cuts.compute_and_store_features(extractor, out, num_jobs=processes, progress_bar=False)


def transformers_map(paths: list[Path], out: Path, processes: int) -> None:
    """Run Hugging Face's ASTFeatureExtractor in `datasets.map`, with audio read by soundfile and soxr."""
    import datasets
    import soundfile
    import soxr
    import torch
    from transformers import ASTFeatureExtractor

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    extractor = ASTFeatureExtractor(sampling_rate=SAMPLE_RATE, num_mel_bins=NUM_MELS)  # type: ignore[no-untyped-call]

    def extract(row: dict[str, Any]) -> dict[str, Any]:
        samples, rate = soundfile.read(row["path"], dtype="float32", always_2d=True)
        waveform = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)
        return {"input_values": extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_values"][0]}

    rows = datasets.Dataset.from_dict({"path": [str(path) for path in paths]})
    mapped = rows.map(extract, num_proc=processes if processes > 1 else None, cache_file_name=f"{out}.arrow")
    if len(mapped) != len(paths):
        raise RuntimeError(f"expected {len(paths)} rows, found {len(mapped)}")


PEERS: dict[str, tuple[Callable[[list[Path], Path, int], None], str]] = {
    "torchaudio": (torchaudio_loop, "torchaudio"),
    "lhotse": (lhotse_fbank, "lhotse"),
    "transformers": (transformers_map, "transformers"),
}


def missing() -> Iterator[str]:
    """Yield the names of peers that are not installed (`requirements-bench.lock` has them)."""
    from importlib.util import find_spec

    yield from (name for name, (_, package) in PEERS.items() if find_spec(package) is None)


def main(
    name: str,
    folder: Path,
    out: Path,
    clips: Annotated[int, typer.Option()],
    processes: Annotated[int, typer.Option()] = 1,
) -> None:
    """Run one peer over the first `clips` files of a folder."""
    PEERS[name][0](sorted(folder.glob("*.flac"))[:clips], out, processes)


if __name__ == "__main__":
    typer.run(main)

"""Fit vocabularies of every kind and tokenise with them, for test_threads.py: `probe_vocabularies.py SOURCE FOLDER WORKERS`.

SOURCE holds a spectrogram and a development set. Spawned workers import this file, so it imports little.
"""

import sys
from pathlib import Path

COMMON = {
    "num_tokens": 128,
    "normalisation": "none",
    "features": {"hidden_states": None, "deltas": 0, "stack": 1, "pca": None, "lda": None},
    "sample_frames": 20000,
    "bpe": None,
    "seed": 0,
}
CLUSTERING = {"iterations": 8, "restarts": 1, "exact": False}
VOCABULARIES = {
    "kmeans": {
        **CLUSTERING,
        "kind": "kmeans",
        "restarts": 2,
        "features": {"hidden_states": None, "deltas": 1, "stack": 1, "pca": 100, "lda": None},
    },
    "bands": {
        **CLUSTERING,
        "kind": "bands",
        "bands": 2,
        "features": {"hidden_states": None, "deltas": 0, "stack": 2, "pca": None, "lda": None},
    },
    "residual": {**CLUSTERING, "kind": "residual", "codebooks": 2, "exact": True, "sample_frames": 5000},
    "soft_kmeans": {**CLUSTERING, "kind": "soft_kmeans", "nearest": 3, "bpe": {"num_tokens": 400}},
    "random_projection": {"kind": "random_projection", "codebooks": 2, "codebook_dim": 16},
    "neural": {
        "kind": "neural",
        "quantiser": "residual",
        "codebooks": 2,
        "levels": None,
        "codebook_dim": 8,
        "hidden": [32],
        "steps": 40,
        "batch_size": 512,
        "learning_rate": 2e-3,
        "commitment": 0.25,
    },
}


def main(source: Path, folder: Path, workers: int) -> None:
    from pipeline.execution.executors import ExecutionParams
    from pipeline.vocabulary.registry import validate_vocabulary_params
    from stages import tokenize, vocabulary

    execution = ExecutionParams(executor="local", scheduler="", workers=workers, memo=folder / "memo")
    for name, own in VOCABULARIES.items():
        params = validate_vocabulary_params(name, COMMON | own)
        fitted = folder / "vocabulary" / name / "1.zarr"
        vocabulary.run(params, source / "spectrogram", source / "development.parquet", fitted, fold="1")
        tokenize.run(execution, source / "spectrogram", fitted, folder / "tokens" / name / "1.parquet", fold="1")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

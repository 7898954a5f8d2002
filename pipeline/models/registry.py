"""The registry of models: what `models.<name>.kind` may say, and the module behind each.

A model's module holds `Params` (its section, with `kind`), `READS` ("frames" or "tokens"), and either `build` (a
torch module, trained by `pipeline.training.loop`) or `fit` and `predict` (a classical baseline; see
`pipeline/models/baseline.py`). `PRETRAINS` says that it can learn from sentences without labels first, `ATTENTION_MAPS` that
it attends to frames. Modules are imported when asked for, so that a baseline starts without torch.
"""

from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError
from pipeline.params import PARAMS_PATH, Params, read_params, validate_params
from pipeline.registry import Registry

MODELS = Registry(
    "model",
    {
        "ast": "pipeline.models.ast",
        "token_transformer": "pipeline.models.token_transformer",
        "lstm": "pipeline.models.lstm",
        "frames_lstm": "pipeline.models.frames_lstm",
        "cnn": "pipeline.models.cnn",
        "token_cnn": "pipeline.models.token_cnn",
        "mlp": "pipeline.models.mlp",
        "psla": "pipeline.models.psla",
        "bag_of_embeddings": "pipeline.models.bag_of_embeddings",
        "bag_of_tokens": "pipeline.models.bag_of_tokens",
        "ngram": "pipeline.models.ngram",
        "frame_statistics": "pipeline.models.frame_statistics",
        "frame_textures": "pipeline.models.frame_textures",
        "token_textures": "pipeline.models.token_textures",
        "majority": "pipeline.models.majority",
    },
)

# Kinds that are fitted in one go and read none of `train` but the number of threads.
BASELINES = frozenset({"bag_of_tokens", "ngram", "frame_statistics", "frame_textures", "token_textures", "majority"})


def model_module(kind: str) -> Any:
    """Return the module of a kind of model."""
    return MODELS[kind]


def is_neural(kind: str) -> bool:
    """Say whether a kind is trained by gradient descent, rather than fitted in one go."""
    return kind not in BASELINES


def can_pretrain(kind: str) -> bool:
    """Say whether a kind can learn from sentences without labels, as `pipeline.training.word_predictor` has it."""
    return bool(getattr(model_module(kind), "PRETRAINS", False))


def has_attention_maps(kind: str) -> bool:
    """Say whether a kind attends to frames, so that its attention is a map over time and frequency."""
    return bool(getattr(model_module(kind), "ATTENTION_MAPS", False))


def load_model_params(name: str, path: Path = PARAMS_PATH) -> Params:
    """Load the section `models.<name>` as the Params of its kind. Raises ParamsError."""
    models = read_params(path).get("models") or {}
    if name not in models:
        raise ParamsError(f"{path}: models.{name}: expected a section of this name, found only: {', '.join(models)}")
    return validate_model_params(name, models[name], path)


def validate_model_params(name: str, value: Any, path: Path = PARAMS_PATH) -> Params:
    """Check one model's plain section."""
    kind = str(value.get("kind", "")) if isinstance(value, dict) else ""
    if kind not in MODELS:
        raise ParamsError(f"{path}: models.{name}.kind: expected one of {', '.join(MODELS)}, found {kind!r}")
    params: Params = validate_params(model_module(kind).Params, value, f"models.{name}", path)
    return params

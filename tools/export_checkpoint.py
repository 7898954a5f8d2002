"""Export of networks as checkpoints: the format of AST's authors, or a folder of Hugging Face.

Only for networks with AST's architecture. The file is read again, and must give the model's logits.
"""

import json
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.artifacts.clips import link_of
from pipeline.artifacts.files import replacing
from pipeline.artifacts.model import InputMetadata, TrainedModel
from pipeline.errors import SonolexError
from pipeline.evaluation.network_prediction import build_network
from pipeline.evaluation.prediction import describe_model
from pipeline.models.checkpoint_formats import huggingface, original
from pipeline.models.checkpoint_formats.ast_checkpoint import AstCheckpoint, AstForm, ast_form
from pipeline.models.checkpoint_formats.checkpoint import front_end_differences
from pipeline.models.network import Network, NetworkParams
from pipeline.models.registry import CHECKPOINT_FORMATS, validate_model_params
from tools.export_report import Export, require_same

CheckpointTarget = Literal["original", "huggingface"]

TOLERANCE = 1e-4  # of the logits


def write_checkpoint(model: TrainedModel, target: CheckpointTarget, out: Path) -> Export:
    """Write the model, and compare its logits with those of the file. Raises SonolexError."""
    params, form = _published_form(model)
    network = build_network(model)
    metadata = model.metadata["input"]
    normalisation = metadata["normalisation"]
    epsilons = metadata.get("pretrained", {}).get("norm_epsilons", list(AstCheckpoint.norm_epsilons))
    remarks = []
    section: dict[str, object] = {"kind": target, "source": str(out), "digest": None, "classes": None}
    if target == "original":
        section |= {
            "frames": form.positions.frames,
            "mean": normalisation["mean"],
            "std": normalisation["std"] * normalisation["std_scale"] / 2,
        }
        with replacing(out) as partial:
            torch.save(original.to_file(network.state_dict()), partial)
        kept = list(AstCheckpoint.norm_epsilons)
        remarks.append(
            f"the file does not include the normalisation of frames: (x - {section['mean']}) / (2 * {section['std']})"
        )
    else:
        _write_folder(model, form, network, epsilons[0], out)
        kept = [epsilons[0], epsilons[0]]
        differences = front_end_differences(model.metadata["front_end"], metadata["n_mels"])
        if differences:
            remarks.append(
                f"use Sonolex's frames: the feature extractor of transformers computes others ({'; '.join(differences)})"
            )
    if epsilons != kept:
        remarks.append(f"layer norms have epsilons {epsilons} here and {kept} there")
    reader = validate_model_params("written", params.model_dump(mode="json") | {"pretrained": section})
    assert isinstance(reader, NetworkParams)
    return Export(_difference(reader, form, network, metadata, len(model.metadata["classes"])), remarks)


def _published_form(model: TrainedModel) -> tuple[NetworkParams, AstForm]:
    """Return the model's params, and the sections of AST's architecture.

    Raises SonolexError where the checkpoint formats cannot hold such a model.
    """
    params = validate_model_params("exported", model.metadata["params"], model.path / "model.json")
    form = ast_form(params) if isinstance(params, NetworkParams) else None
    if not isinstance(params, NetworkParams) or form is None or form.stem.frames != form.stem.bands:
        raise SonolexError(
            f"{model.path}: expected a network that reads frames, with square patches, learned positions, a transformer "
            f"and class and distillation token, found {describe_model(model)}; export it --to onnx, or train one of "
            "recipes/ast_*.yaml"
        )
    if params.input.normalises_by_clip:
        raise SonolexError(
            f"{model.path}: input.normalisation: expected one mean and std for all clips, found clip; export it --to onnx"
        )
    return params, form


def _write_folder(model: TrainedModel, form: AstForm, network: nn.Module, epsilon: float, out: Path) -> None:
    metadata, n_mels = model.metadata, model.metadata["input"]["n_mels"]
    config = huggingface.config_of(form, n_mels, metadata["classes"], link_of(metadata), epsilon)
    sample_rate = metadata["front_end"]["sample_rate"]
    preprocessor = huggingface.preprocessor_of(form, n_mels, sample_rate, metadata["input"]["normalisation"])
    tensors = huggingface.HuggingFaceCheckpoint.to_format(network.state_dict())
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        contiguous = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial / huggingface.WEIGHTS, metadata={"format": "pt"})
        for name, values in ((huggingface.CONFIG, config), (huggingface.PREPROCESSOR, preprocessor)):
            (partial / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _difference(
    params: NetworkParams, form: AstForm, network: nn.Module, metadata: InputMetadata, num_classes: int
) -> float:
    """Load the file into a new network, and compare its logits of noise with those of the model."""
    assert params.pretrained is not None
    checkpoint = CHECKPOINT_FORMATS[params.pretrained.kind](params.pretrained)
    other = Network(params, {**metadata, "pretrained": checkpoint.metadata}, num_classes).eval()
    other.load_weights(params, checkpoint)
    frames = torch.randn(2, form.positions.frames, metadata["n_mels"])
    with torch.no_grad():
        found = float((other(frames, None) - network(frames, None)).abs().max())
    return require_same(found, TOLERANCE, params.pretrained.source)

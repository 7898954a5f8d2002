"""`sonolex export`: write a trained network in the format of AST's authors, of Hugging Face, or as ONNX.

    sonolex export models/ast/1/0 --to huggingface --out ast-esc50

The file is read again and must reproduce the model's logits. The two checkpoint formats are only for networks with AST's
architecture; ONNX is for all networks except LSTMs, and includes normalisation: its input is frames in the front end's
units, or tokens.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.artifacts.files import replacing
from pipeline.artifacts.model import InputMetadata, Normalisation, TrainedModel, open_model
from pipeline.errors import SonolexError
from pipeline.evaluation.network_prediction import build_network
from pipeline.evaluation.prediction import describe_model
from pipeline.models.base import SMALLEST_STD, normalisation_unit
from pipeline.models.checkpoint_formats import huggingface, original
from pipeline.models.checkpoint_formats.ast_checkpoint import AstCheckpoint, AstForm, ast_form, front_end_differences
from pipeline.models.network import Network, NetworkParams
from pipeline.models.registry import BASELINES, CHECKPOINT_FORMATS, validate_model_params

Target = Literal["original", "huggingface", "onnx"]

TOLERANCE = 1e-4  # of the logits
_BATCHES = (2, 3)  # numbers of clips in the comparison


class Export(NamedTuple):
    difference: float  # largest difference of a logit between model and file
    remarks: list[str]


def run(model_path: Path, target: Target, out: Path) -> Export:
    """Write the model, and return the largest difference of logits. Raises SonolexError, ArtifactError."""
    model = open_model(model_path)
    if out.exists():
        raise SonolexError(f"{out}: expected no file of this name, found one; choose another --out, or remove it")
    if target == "onnx":
        return _to_onnx(model, out)
    params, form = _published_form(model)
    network = build_network(model)
    metadata = model.metadata["input"]
    normalisation = metadata["normalisation"]
    epsilons = metadata.get("pretrained", {}).get("norm_epsilons", list(AstCheckpoint.norm_epsilons))
    remarks = []
    section: dict[str, object] = {"kind": target, "source": str(out), "digest": None}
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
    config = huggingface.config_of(form, n_mels, metadata["classes"], metadata["label_kind"], epsilon)
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
    return _within(found, params.pretrained.source)


def _to_onnx(model: TrainedModel, out: Path) -> Export:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise SonolexError(
            f"{error.name}: expected the package to be installed, found it missing; pip install onnx onnxscript onnxruntime"
        ) from None
    if model.metadata["params"]["kind"] in BASELINES:
        raise SonolexError(f"{model.path}: expected a network, found {describe_model(model)}")
    network = build_network(model)
    if any(isinstance(module, nn.LSTM) for module in network.modules()):
        raise SonolexError(
            f"{model.path}: expected a model without a recurrent network, found {describe_model(model)}: "
            "torch.export unrolls an LSTM for clips of one length; export a transformer or a convolutional network"
        )
    whole = _Whole(network, model.metadata["input"]["normalisation"]).eval()
    examples = [_noise(model, network, clips) for clips in _BATCHES]
    axis = examples[0].ndim - (2 if model.metadata["reads"] == "frames" else 1)
    dynamic = {0: torch.export.Dim.DYNAMIC, axis: torch.export.Dim.DYNAMIC}
    name = model.metadata["reads"]
    program = torch.onnx.export(
        whole,
        (examples[0],),
        dynamo=True,
        dynamic_shapes=(dynamic,),
        input_names=[name],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None  # as with dynamo=False alone
    program.model.metadata_props["classes"] = json.dumps(model.metadata["classes"])
    program.model.metadata_props["front_end"] = json.dumps(model.metadata["front_end"])
    with replacing(out) as partial:
        program.save(str(partial))
        session = onnxruntime.InferenceSession(str(partial))
        found = 0.0
        with torch.no_grad():
            for example in examples:
                (logits,) = session.run(None, {name: example.numpy()})
                found = max(found, float(np.abs(logits - whole(example).numpy()).max()))
        _within(found, str(out))
    shape = ", ".join(str(size) for size in session.get_inputs()[0].shape)
    return Export(found, [f"reads `{name}` of the shape ({shape}), all clips of a batch equally long"])


class _Whole(nn.Module):
    """A model that includes the normalisation of its input."""

    def __init__(self, network: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.network, self.normalisation = network, normalisation

    def forward(self, inputs: Tensor) -> Tensor:
        metadata = self.normalisation
        if metadata["kind"] == "clip":
            mean, std = inputs.mean((1, 2), keepdim=True), inputs.std((1, 2), correction=0, keepdim=True)
            inputs = (inputs - mean) / (metadata["std_scale"] * std.clamp(min=SMALLEST_STD))
        elif metadata["kind"] != "none":
            inputs = (inputs - metadata["mean"]) / normalisation_unit(metadata)
        logits: Tensor = self.network(inputs, None)
        return logits


def _noise(model: TrainedModel, network: Network, clips: int) -> Tensor:
    """Return a batch of noise for the model; the length of clips depends on the size of the batch."""
    metadata, stem = model.metadata["input"], network.stem
    frames = max((stem.max_frames or 100) - 2 * clips, stem.min_frames + clips)
    if model.metadata["reads"] == "frames":
        normalisation = metadata["normalisation"]
        frames_of_noise: Tensor = torch.randn(clips, frames, metadata["n_mels"])
        return frames_of_noise * float(normalisation["std"]) + float(normalisation["mean"])
    return torch.randint(0, metadata["vocabulary_size"], (clips, metadata["num_codebooks"], frames))


def _within(difference: float, where: str) -> float:
    if not difference <= TOLERANCE:
        raise SonolexError(
            f"{where}: expected the logits of the model within {TOLERANCE}, found them {difference:.2g} away; do not use it"
        )
    return difference

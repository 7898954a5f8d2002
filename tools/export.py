"""Write a trained model as other programs read it: the layout of AST's authors, that of Hugging Face, or ONNX.

    sonolex export models/ast/1/0 --to huggingface --out ast-esc50

What was written is read again and must give the model's logits. The two layouts are for models of the published form alone;
ONNX takes every neural model but LSTMs, with the normalisation inside: it reads frames in the front end's units, or tokens.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.artifacts.files import replacing
from pipeline.artifacts.model import TrainedModel, open_model
from pipeline.errors import SonolexError
from pipeline.evaluation.prediction import build_network
from pipeline.models.ast import build, norm_epsilons, start_from
from pipeline.models.encoder import NORM_EPSILON
from pipeline.models.heads import HEAD_NORM_EPSILON
from pipeline.models.layouts import huggingface, original
from pipeline.models.registry import is_neural, validate_model_params
from pipeline.models.start import front_end_differences, read_start

Target = Literal["original", "huggingface", "onnx"]

TOLERANCE = 1e-4  # of the logits
_BATCHES = (2, 3)  # clips that are tried


class Export(NamedTuple):
    difference: float  # largest of a logit, between the model and what was written
    remarks: list[str]


def run(model_path: Path, target: Target, out: Path) -> Export:
    """Write the model and return how far its logits are from the model's. Raises SonolexError, ArtifactError."""
    model = open_model(model_path)
    if out.exists():
        raise SonolexError(f"{out}: expected nothing of this name, found something; name another --out, or remove it")
    if target == "onnx":
        return _to_onnx(model, out)
    params = _published_form(model)
    network = build_network(model)
    facts = model.facts["input"]
    epsilons, normalisation = norm_epsilons(facts), facts["normalisation"]
    remarks = []
    if target == "original":
        start: dict[str, Any] = {
            "frames": params.positions.frames,
            "mean": normalisation["mean"],
            "deviation": normalisation["deviation"] * normalisation["deviations"] / 2,
        }
        with replacing(out) as partial:
            torch.save(original.to_file(network.state_dict()), partial)
        kept = [NORM_EPSILON, HEAD_NORM_EPSILON]
        remarks.append(
            f"the file does not say how frames are normalised: (x - {start['mean']}) / (2 * {start['deviation']})"
        )
    else:
        start = {}
        _write_folder(model, params, network, epsilons[0], out)
        kept = [epsilons[0], epsilons[0]]
        differences = front_end_differences(model.facts["front_end"], facts["n_mels"])
        if differences:
            remarks.append(
                f"give it Sonolex's frames: the extractor of transformers makes others ({'; '.join(differences)})"
            )
    if epsilons != kept:
        remarks.append(f"layer norms have epsilons {epsilons} here and {kept} there")
    start |= {"kind": target, "source": str(out), "digest": None}
    return Export(_difference(params, network, start, facts, len(model.facts["classes"])), remarks)


def _published_form(model: TrainedModel) -> Any:
    """Return the model's params. Raises SonolexError where the layouts have no place for such a model."""
    section = model.facts["params"]
    params: Any = None
    if section["kind"] == "ast":
        params = validate_model_params("exported", section, model.path / "model.json")
    stem = section.get("stem", {})
    published = params is not None and params.positions is not None and params.pooling == "class_distillation"
    if not published or stem["frames"] != stem["bands"]:
        raise SonolexError(
            f"{model.path}: expected an ast with square patches, learned positions and pooling class_distillation, found "
            f"kind {section['kind']}, stem {stem.get('kind', 'none')}, pooling {section.get('pooling', 'none')}; export it "
            "--to onnx, or train one of recipes/ast_*.yaml"
        )
    if section["normalisation"] == "clip":
        raise SonolexError(
            f"{model.path}: normalisation: expected one mean and deviation for all clips, found clip; export it --to onnx"
        )
    return params


def _write_folder(model: TrainedModel, params: Any, network: nn.Module, epsilon: float, out: Path) -> None:
    facts, n_mels = model.facts, model.facts["input"]["n_mels"]
    config = huggingface.config_of(params, n_mels, facts["classes"], facts["label_kind"], epsilon)
    sample_rate = facts["front_end"]["sample_rate"]
    preprocessor = huggingface.preprocessor_of(params, n_mels, sample_rate, facts["input"]["normalisation"])
    tensors = huggingface.to_layout(network.state_dict())
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        contiguous = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial / huggingface.WEIGHTS, metadata={"format": "pt"})
        for name, values in ((huggingface.CONFIG, config), (huggingface.PREPROCESSOR, preprocessor)):
            (partial / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _difference(
    params: Any, network: nn.Module, start: dict[str, Any], facts: dict[str, Any], num_classes: int
) -> float:
    """Start a model from what was written and compare its logits of noise with those of the model."""
    section = params.model_dump(mode="json") | {"start": start}
    reader: Any = validate_model_params("written", section)
    checkpoint = read_start(reader.start)
    other = build(reader, facts | {"start": checkpoint.facts}, num_classes).eval()
    start_from(other, reader, checkpoint)
    frames = torch.randn(2, params.positions.frames, facts["n_mels"])
    with torch.no_grad():
        found = float((other(frames, None) - network(frames, None)).abs().max())
    return _within(found, start["source"])


def _to_onnx(model: TrainedModel, out: Path) -> Export:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise SonolexError(
            f"{error.name}: expected it to be installed, found it is not; pip install onnx onnxscript onnxruntime"
        ) from None
    if not is_neural(model.facts["params"]["kind"]):
        raise SonolexError(f"{model.path}: expected a neural model, found the kind {model.facts['params']['kind']}")
    network = build_network(model)
    if any(isinstance(module, nn.LSTM) for module in network.modules()):
        raise SonolexError(
            f"{model.path}: expected a model without a recurrent network, found the kind {model.facts['params']['kind']}: "
            "torch.export unrolls an LSTM for clips of one length; export a transformer or a convolutional network"
        )
    whole = _Whole(network, model.facts["input"]["normalisation"]).eval()
    examples = [_noise(model, clips) for clips in _BATCHES]
    axis = examples[0].ndim - (2 if model.facts["reads"] == "frames" else 1)
    dynamic = {0: torch.export.Dim.DYNAMIC, axis: torch.export.Dim.DYNAMIC}
    name = model.facts["reads"]
    program: Any = torch.onnx.export(
        whole,
        (examples[0],),
        dynamo=True,
        dynamic_shapes=(dynamic,),
        input_names=[name],
        output_names=["logits"],
        verbose=False,
    )
    program.model.metadata_props["classes"] = json.dumps(model.facts["classes"])
    program.model.metadata_props["front_end"] = json.dumps(model.facts["front_end"])
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
    """A model with the normalisation of its input inside."""

    def __init__(self, network: nn.Module, normalisation: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.normalisation = network, normalisation

    def forward(self, inputs: Tensor) -> Tensor:
        facts = self.normalisation
        if facts["kind"] == "clip":
            mean, deviation = inputs.mean((1, 2), keepdim=True), inputs.std((1, 2), correction=0, keepdim=True)
            inputs = (inputs - mean) / (facts["deviations"] * deviation.clamp(min=1e-6))
        elif facts["kind"] != "none":
            inputs = (inputs - facts["mean"]) / (facts["deviations"] * max(facts["deviation"], 1e-6))
        logits: Tensor = self.network(inputs, None)
        return logits


def _noise(model: TrainedModel, clips: int) -> Tensor:
    """Return a batch that the model could read; batches of other sizes have other lengths too."""
    facts = model.facts["input"]
    params = model.facts["params"]
    stem = params.get("stem", {})
    frames = stem.get("positions", {}).get("frames", params.get("frames", 100)) - 2 * clips
    frames = max(frames, stem.get("frames", 1) + clips)
    if model.facts["reads"] == "frames":
        normalisation = facts["normalisation"]
        frames_of_noise: Tensor = torch.randn(clips, frames, facts["n_mels"])
        return frames_of_noise * float(normalisation["deviation"]) + float(normalisation["mean"])
    return torch.randint(0, facts["vocabulary_size"], (clips, facts["num_codebooks"], frames))


def _within(difference: float, where: str) -> float:
    if not difference <= TOLERANCE:
        raise SonolexError(
            f"{where}: expected the logits of the model within {TOLERANCE}, found them {difference:.2g} away; do not use it"
        )
    return difference

"""Export of any model as a graph, ONNX or torch's .pt2, that starts from the waveform, or from frames or tokens.

The file is read again by the program that runs it, and compared with the model on noise of several lengths. A model whose
tokens are searched also returns them: where rounding decides between two codes, tokens and then logits may differ, so logits
are compared under the graph's own tokens.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artifacts.clips import link_of
from pipeline.artifacts.files import replacing
from pipeline.artifacts.model import TrainedModel
from pipeline.errors import SonolexError
from pipeline.inference.torch_module import SoundClassifier, Start
from pipeline.models.base import NOT_NORMALISED
from pipeline.spectrogram.torch_front_end import StoredFrames
from tools.export_onnx import write_onnx
from tools.export_report import Export, quiet, require_same

GraphTarget = Literal["onnx", "torch"]
Runner = Callable[[Tensor], list[np.ndarray]]  # a written file: the graph's outputs from its input

# Largest difference of logits. A frame that lies between two steps of the stored type may get the other one.
TOLERANCES: dict[Start, float] = {"waveform": 1e-3, "frames": 1e-4, "tokens": 1e-4}
OTHER_TOKENS = 2e-3  # largest fraction of tokens that rounding may decide otherwise

_CLIPS = (2, 3)  # of the batches that are compared
_FRAMES = 300  # of noise, for models that read any number
_LEVEL = 0.1  # of noise, against a full scale of 1


class Graph(nn.Module):
    """The module that is exported: logits, and the tokens where they are searched."""

    def __init__(self, classifier: SoundClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.searches = not isinstance(classifier.search, nn.Identity)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        encoded = self.classifier.encode(inputs)
        logits: Tensor = self.classifier.classifier(encoded)
        return (logits, encoded) if self.searches else (logits,)


def write_graph(
    model: TrainedModel, classifier: SoundClassifier, start: Start, target: GraphTarget, out: Path, *, int8: bool
) -> Export:
    """Write the graph, and compare it with the classifier. Raises SonolexError."""
    graph, axes = Graph(classifier).eval(), _axes(model, classifier, start)
    examples = [_noise(model, classifier, start, clips) for clips in _CLIPS]
    with replacing(out) as partial:
        if target == "onnx":
            run: Runner = write_onnx(graph, examples[0], axes, _properties(model, classifier), partial, int8=int8)
        else:
            run = _write_torch(graph, examples[0], axes[start], partial)
        difference = max(_difference(classifier, run, example, out) for example in examples)
        if not int8:
            require_same(difference, TOLERANCES[start], str(out))
    return Export(difference, _remarks(model, classifier, axes[start]))


def _axes(model: TrainedModel, classifier: SoundClassifier, start: Start) -> dict[str, list[str | int]]:
    """Return the names of input and outputs, and of their axes; those of one size have it instead."""
    metadata = model.metadata
    axes: dict[str, list[str | int]] = {
        "waveform": ["batch", "samples"],
        "frames": ["batch", "frames", metadata["front_end"]["n_mels"]],
        "tokens": ["batch", metadata["input"].get("num_codebooks", 0), "tokens"],
        "logits": ["batch", len(metadata["classes"])],
    }
    searched = not isinstance(classifier.search, nn.Identity)
    return {name: axes[name] for name in (start, "logits", *(["tokens"] if searched else []))}


def _properties(model: TrainedModel, classifier: SoundClassifier) -> dict[str, object]:
    """Return what the file says of itself."""
    card, front_end = model.metadata, classifier.front_end
    about = {"model": card["model"], "fold": card["fold"], "seed": card["seed"], "front_end": card["front_end"]}
    about |= {"classes": card["classes"], "label_kind": card["label_kind"], "link": link_of(card)}
    if isinstance(front_end, StoredFrames):
        about |= {"sample_rate": card["front_end"]["sample_rate"]}
        about |= {"min_samples": front_end.samples_of(classifier.lengths.least)}
    return about


def _write_torch(graph: nn.Module, example: Tensor, axes: list[str | int], path: Path) -> Runner:
    """Write a .pt2 file, and return what it holds."""
    any_size = {number: torch.export.Dim.DYNAMIC for number, axis in enumerate(axes) if isinstance(axis, str)}
    with quiet():
        program = torch.export.export(graph, (example,), dynamic_shapes=(any_size,))
        with path.open("wb") as file:  # the temporary name does not end in .pt2, of which torch would warn
            torch.export.save(program, file)
        with path.open("rb") as written:
            module = torch.export.load(written).module()

    def run(inputs: Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in module(inputs)]

    return run


def _noise(model: TrainedModel, classifier: SoundClassifier, start: Start, clips: int) -> Tensor:
    """Return a batch of noise that the classifier reads; the length of clips depends on the size of the batch."""
    metadata, (least, most) = model.metadata["input"], classifier.lengths
    frames = max((most or _FRAMES) - 2 * clips, least + clips)
    generator = torch.Generator().manual_seed(clips)
    if start == "tokens":
        shape = (clips, metadata["num_codebooks"], frames)
        return torch.randint(0, metadata["vocabulary_size"], shape, generator=generator)
    if start == "frames":
        normalisation = metadata.get("normalisation", NOT_NORMALISED)
        frames_of_noise = torch.randn(clips, frames, model.metadata["front_end"]["n_mels"], generator=generator)
        return frames_of_noise * float(normalisation["std"]) + float(normalisation["mean"])
    assert isinstance(classifier.front_end, StoredFrames)
    return torch.randn(clips, classifier.front_end.samples_of(frames), generator=generator) * _LEVEL


def _difference(classifier: SoundClassifier, run: Runner, inputs: Tensor, where: Path) -> float:
    """Return the largest difference of a logit between a file and the classifier, under the same tokens."""
    logits, *tokens = run(inputs)
    with torch.no_grad():
        encoded = classifier.encode(inputs)
        for found in tokens:
            others = float((encoded.numpy() != found).mean())
            if others > OTHER_TOKENS:
                raise SonolexError(
                    f"{where}: expected the model's tokens but for {OTHER_TOKENS:.1%}, found {others:.1%} others; "
                    "do not use it"
                )
            encoded = torch.from_numpy(found)
        return float(np.abs(logits - classifier.classifier(encoded).numpy()).max())


def _remarks(model: TrainedModel, classifier: SoundClassifier, axes: list[str | int]) -> list[str]:
    remarks = [f"reads clips of one length in a batch, of the shape ({', '.join(map(str, axes))})"]
    if isinstance(classifier.front_end, StoredFrames):
        remarks.append(f"waveforms are mono float32 in [-1, 1] at {model.metadata['front_end']['sample_rate']} Hz")
    least, most = classifier.lengths
    if most is not None:
        remarks.append(f"clips have {least} to {most} {'tokens' if 'tokens' in axes else 'frames'}; cut longer ones")
    return remarks

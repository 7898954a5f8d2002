"""`sonolex export`: write a trained model as ONNX or for torch.export, Hugging Face or AST's program.

    sonolex export models/ast/1/0 --to onnx --out ast.onnx

ONNX files and torch's .pt2 files start from the waveform, with the front end inside and, for models of tokens, the search of
the vocabulary; or from frames or tokens. The two checkpoint formats are only for networks with AST's architecture. What is
written is read again and must reproduce the model's logits.
"""

from pathlib import Path
from typing import Literal, cast, get_args

from pipeline.artifacts.layout import Layout
from pipeline.artifacts.model import TrainedModel, open_model
from pipeline.artifacts.vocabulary import Vocabulary, open_vocabulary
from pipeline.errors import SonolexError
from pipeline.inference.torch_module import Start as Start
from pipeline.inference.torch_module import sound_classifier
from pipeline.params import PARAMS_PATH
from tools.export_checkpoint import CheckpointTarget, write_checkpoint
from tools.export_graph import GraphTarget, write_graph
from tools.export_report import Export

Target = Literal[CheckpointTarget, GraphTarget]
TARGETS: tuple[Target, ...] = (*get_args(CheckpointTarget), *get_args(GraphTarget))
STARTS: tuple[Start, ...] = get_args(Start)


def run(
    model_path: Path,
    target: Target,
    out: Path,
    *,
    start: Start = "waveform",
    vocabulary: Path | None = None,
    int8: bool = False,
) -> Export:
    """Write the model, and return the largest difference of logits. Raises SonolexError, ArtifactError.

    Graphs read `start`; `vocabulary` is the path of the model's vocabulary, by default that of the project. `int8` quantises
    the weights of an ONNX file.
    """
    model = open_model(model_path)
    if out.exists():
        raise SonolexError(f"{out}: expected no file of this name, found one; choose another --out, or remove it")
    if int8 and target != "onnx":
        raise SonolexError(f"--int8: expected --to onnx, found {target}; leave it out, or export --to onnx")
    if target in get_args(CheckpointTarget):
        return write_checkpoint(model, cast(CheckpointTarget, target), out)
    searched = find_vocabulary(model, vocabulary) if model.metadata["reads"] == "tokens" and start != "tokens" else None
    classifier = sound_classifier(model, searched, start)
    return write_graph(model, classifier, start, cast(GraphTarget, target), out, int8=int8)


def find_vocabulary(model: TrainedModel, path: Path | None) -> Vocabulary | None:
    """Return the vocabulary at a path, or the one of the model's project that it was trained on; None if there is none."""
    if path is not None:
        return open_vocabulary(path)
    for root in (*model.path.resolve().parents, Path.cwd()):
        if not (root / PARAMS_PATH).is_file():
            continue
        pattern = Layout().vocabulary("*", model.metadata["fold"])
        for found in sorted(root.glob(str(pattern))):
            opened = open_vocabulary(found)
            if opened.digest() == model.metadata["source"]:
                return opened
    return None

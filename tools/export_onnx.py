"""Writing and running of ONNX files, in float32 or with the classifier's weights in int8.

Only products with the classifier's weights are quantised: with eight bits the front end and the search of the vocabulary
would compute other frames and tokens.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import SonolexError
from tools.export_report import quiet

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_QUANTISED = ["MatMul", "Gemm"]  # convolutions in int8 are slower than in float32 on most processors
_SCOPES = "pkg.torch.onnx.name_scopes"  # property of a node: names of the modules that it is in
_CLASSIFIER = "'classifier.classifier'"  # among these, of a `Graph` (`tools/export_graph.py`)


class OnnxFile:
    """An ONNX file, run by onnxruntime on the processor."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self._session: InferenceSession = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Tensor) -> list[np.ndarray]:
        (source,) = self._session.get_inputs()
        outputs: list[np.ndarray] = self._session.run(None, {source.name: inputs.numpy()})
        return outputs


def write_onnx(
    module: nn.Module,
    example: Tensor,
    axes: Mapping[str, Sequence[str | int]],
    properties: Mapping[str, object],
    path: Path,
    *,
    int8: bool = False,
) -> OnnxFile:
    """Write a module as an ONNX file with these properties, as JSON, and open it.

    `axes` names the input and the outputs, and the axes of each that have any size; others are given by their size. With
    `int8` the products of the classifier are quantised (`SoundClassifier.classifier`).
    """
    _require_packages()
    import onnx_ir

    name, *outputs = axes
    any_size = {number: axis for number, axis in enumerate(axes[name]) if isinstance(axis, str)}
    with quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=(any_size,),
            input_names=[name],
            output_names=outputs,
            verbose=False,
        )
    assert program is not None  # as with dynamo=False alone
    for output in program.model.graph.outputs:
        output.shape = onnx_ir.Shape(axes[str(output.name)])
    program.model.metadata_props.update({key: json.dumps(value) for key, value in properties.items()})
    program.save(str(path))
    if int8:
        _quantise(path)
    return OnnxFile(path)


def _quantise(path: Path) -> None:
    """Replace an ONNX file by one with the weights of the classifier's products in int8, one scale per output."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes of what is quantised would contradict those that are inferred
    scopes = {
        node.name: entry.value for node in model.graph.node for entry in node.metadata_props if entry.key == _SCOPES
    }
    kept = [name for name, modules in scopes.items() if _CLASSIFIER not in modules]
    with quiet():
        quantize_dynamic(model, path, op_types_to_quantize=_QUANTISED, per_channel=True, nodes_to_exclude=kept)


def _require_packages() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise SonolexError(
            f"{error.name}: expected the package to be installed, found it missing; pip install onnx onnxscript onnxruntime"
        ) from None

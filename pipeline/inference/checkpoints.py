"""Published checkpoints of AST and PSLA (Gong et al., 2021) as classifiers, without training.

Four layouts, which the files themselves tell apart:

- a Hugging Face folder: config.json, preprocessor_config.json and weights state all there is to know;
- the authors' `.pth`: frames, strides and normalisation follow from the shapes of its tensors; classes it has none, those of
  AudioSet are in `metadata/`, others are given as a list;
- PSLA's `.pth`: sizes follow from the shapes of its tensors; frames and classes from the number of classes, 527 of AudioSet
  or 200 of FSD50K, both of which are in `metadata/`;
- timm's DeiT, which AST starts from: it knows photographs, and is refused.

Frames are Kaldi's, of 25 ms every 10 ms, in float32; clips are padded or cut to the frames of the training, as in the
authors' programs. Nothing is fetched from a network.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.model import ModelCard, TrainedModel
from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.corpora.audioset_files import read_classes
from pipeline.errors import SonolexError
from pipeline.evaluation.metric_functions import DECISION_THRESHOLD
from pipeline.inference.bundle import require_members
from pipeline.inference.classifier import Classifier, Member
from pipeline.inference.opening import CONFIG, SUFFIXES, is_checkpoint
from pipeline.models.checkpoint_formats import huggingface, imagenet, original, psla
from pipeline.models.checkpoint_formats.ast_checkpoint import published_network
from pipeline.models.checkpoint_formats.checkpoint import Checkpoint
from pipeline.models.checkpoint_formats.files import read_tensors
from pipeline.models.network import Network, NetworkParams, fit_normalisation
from pipeline.models.registry import CHECKPOINT_FORMATS, validate_model_params
from pipeline.spectrogram.kaldi import KaldiFrontEnd, KaldiParams

_METADATA = Path(__file__).parents[2] / "metadata"
AUDIOSET_CLASSES = _METADATA / "audioset" / "class_labels_indices.csv"

_NUM_AUDIOSET_CLASSES = 527
# Of the authors' runs of PSLA, by corpus; FSD50K's files are known by their 200 classes.
_FSD50K_CLASSES, _NUM_FSD50K_CLASSES = _METADATA / "fsd50k" / "class_labels_indices.csv", 200
_AUDIOSET_FRAMES, _FSD50K_FRAMES = 1056, 3000
_SAMPLE_RATE = 16000  # Hz, of the authors' runs
_WINDOW, _HOP = 0.025, 0.010  # seconds
_F_MIN = 20.0  # Hz


class _Published(NamedTuple):
    """A checkpoint's files as they describe it."""

    section: dict[str, object]  # of `models`
    n_mels: int
    sample_rate: int  # Hz
    classes: list[str] | None  # None = not named in the files
    problem: str | None  # `problem_type` of config.json


def open_checkpoints(paths: Sequence[Path], classes: Path | None = None) -> Classifier:
    """Open several published checkpoints as an ensemble, the mean of whose probabilities predicts, as in AST and PSLA.

    They may differ in network, strides and normalisation, and must have the same classes. Raises SonolexError.
    """
    opened = [open_checkpoint(path, classes) for path in paths]
    members = tuple(member for classifier in opened for member in classifier.members)
    require_members(members)
    return Classifier(members, opened[0].thresholds)


def open_checkpoint(path: Path, classes: Path | None = None) -> Classifier:
    """Open a published checkpoint: a Hugging Face folder, or a file in the layout of AST's authors.

    `classes` is a list for those whose files do not name their classes (`read_class_list`). Raises SonolexError.
    """
    try:
        return _open(path, classes)
    except SonolexError as error:
        message = str(error).removeprefix("pretrained: ")  # the section of params.yaml that checkpoints are opened for
        raise SonolexError(message) from None


def _open(path: Path, classes: Path | None) -> Classifier:
    if not is_checkpoint(path):
        found = "a folder without it" if path.is_dir() else "another file" if path.exists() else "nothing"
        raise SonolexError(
            f"{path}: expected a folder with {CONFIG}, or a file of weights ({', '.join(SUFFIXES)}), found {found}; "
            "give the path of a published checkpoint"
        )
    published = _read_folder(path) if _in_folder(path) else _read_file(path)
    params = validate_model_params("published", published.section, path)
    assert isinstance(params, NetworkParams)
    assert params.pretrained is not None
    checkpoint = CHECKPOINT_FORMATS[params.pretrained.kind](params.pretrained)
    names, label_kind = _classes_of(path, published, checkpoint, classes)
    model = _trained_model(path, published, params, checkpoint, names, label_kind)
    return Classifier((Member(model, None),), np.full(len(names), DECISION_THRESHOLD))


def _in_folder(path: Path) -> bool:
    """Return whether the path is a Hugging Face folder, or the file of weights in one."""
    return path.is_dir() or (path.parent / CONFIG).is_file()


def _read_folder(path: Path) -> _Published:
    folder = huggingface.read_folder(path if path.is_dir() else path.parent)
    section = published_network(
        folder.sizes, {"kind": "huggingface", "source": str(path), "digest": None, "classes": None}
    )
    return _Published(section, folder.sizes.n_mels, folder.sample_rate, folder.classes, folder.problem)


def _read_file(path: Path) -> _Published:
    tensors = {name.removeprefix(original.PREFIX): tensor for name, tensor in read_tensors(path).items()}
    if psla.SIGNATURE in tensors:
        return _read_psla(path, tensors)
    if original.OriginalCheckpoint.signature not in tensors:
        raise _foreign(path, tensors)
    run, sizes = original.published_run(tensors, str(path))
    statistics = {"frames": run.frames, "mean": run.mean, "std": run.std}
    section = published_network(
        sizes, {"kind": "original", "source": str(path), "digest": None, "classes": None, **statistics}
    )
    return _Published(section, sizes.n_mels, _SAMPLE_RATE, None, None)


def _read_psla(path: Path, tensors: dict[str, Tensor]) -> _Published:
    sizes = psla.published_sizes(tensors, str(path))
    statistics = {"mean": psla.MEAN, "std": psla.STD}
    pretrained = {"kind": "psla", "source": str(path), "digest": None, **statistics}
    is_fsd50k = sizes.num_classes == _NUM_FSD50K_CLASSES
    section = psla.published_section(sizes, _FSD50K_FRAMES if is_fsd50k else _AUDIOSET_FRAMES, pretrained)
    classes = read_class_list(_FSD50K_CLASSES) if is_fsd50k and _FSD50K_CLASSES.is_file() else None
    return _Published(section, psla.N_MELS, _SAMPLE_RATE, classes, "multi_label_classification")


def _foreign(path: Path, tensors: dict[str, Tensor]) -> SonolexError:
    if imagenet.ImageNetCheckpoint.signature in tensors:
        return SonolexError(
            f"{path}: expected an AST trained on sounds, found a DeiT trained on photographs, without classes of sound; "
            f"train from it: `sonolex compose esc50+ast_base384 corpus.root=PATH models.ast.pretrained.source={path}`"
        )
    if huggingface.HuggingFaceCheckpoint.signature in tensors:
        return SonolexError(
            f"{path}: expected {CONFIG} and {huggingface.PREPROCESSOR} beside weights of a Hugging Face folder, "
            "found neither; put the weights back into their folder, and name the folder"
        )
    found = ", ".join(list(tensors)[:3]) or "no tensors"
    return SonolexError(
        f"{path}: expected weights of an AST or PSLA in their authors' layouts, with {original.NAMES.class_token} or "
        f"{psla.SIGNATURE}, found {found}, ...; "
        "of a model trained here `sonolex bundle MODEL` makes a bundle"
    )


def _classes_of(
    path: Path, published: _Published, checkpoint: Checkpoint, listed: Path | None
) -> tuple[list[str], LabelKind]:
    """Return the names of the classes and the kind of labels that the model was trained on."""
    count = checkpoint.num_classes
    if count is None:
        raise SonolexError(
            f"{path}: expected a classifier among the tensors, found none: a model for other tasks; take one that "
            "classifies, or train one from it (docs/models.md)"
        )
    names, where = _named_classes(path, published, count, listed)
    if len(names) != count:
        raise SonolexError(
            f"{where}: expected the {count} classes of the classifier in {checkpoint.where}, found {len(names)}; pass "
            "the list of the corpus that it was trained on: --classes FILE"
        )
    stated: dict[str | None, LabelKind] = {"single_label_classification": "one", "multi_label_classification": "many"}
    return names, stated.get(published.problem, "many" if len(names) == _NUM_AUDIOSET_CLASSES else "one")


def _named_classes(path: Path, published: _Published, count: int, listed: Path | None) -> tuple[list[str], Path]:
    if listed is not None:
        return read_class_list(listed), listed
    if published.classes is not None:
        return published.classes, path
    if count == _NUM_AUDIOSET_CLASSES and AUDIOSET_CLASSES.is_file():
        return read_class_list(AUDIOSET_CLASSES), AUDIOSET_CLASSES
    raise SonolexError(
        f"{path}: expected names of its {count} classes, found none in its files; pass a list, a name a line in the order "
        "of the classifier: --classes FILE, in Python sonolex.load(path, classes=FILE)"
    )


def read_class_list(path: Path) -> list[str]:
    """Return the names of a list of classes: lines of text, or of a `.csv` AudioSet's columns index and display_name.

    Raises SonolexError for a missing or empty file, and for names that occur twice.
    """
    if path.suffix == ".csv" and path.is_file():
        names = read_classes(path)[1]
    else:
        names = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        found = f"{', '.join(twice[:3])} twice" if twice else "none"
        raise SonolexError(f"{path}: expected names of classes, each once, found {found}; correct the list")
    return names


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SonolexError(
            f"{path}: expected a text file with the name of a class on each line, found {error}; pass one to --classes"
        ) from None


def _trained_model(
    path: Path,
    published: _Published,
    params: NetworkParams,
    checkpoint: Checkpoint,
    names: Sequence[str],
    label_kind: LabelKind,
) -> TrainedModel:
    front_end = _front_end(published.n_mels, published.sample_rate)
    section = params.model_dump(mode="json")
    section["pretrained"]["source"] = path.resolve().name  # without folders, as in artifacts
    card: ModelCard = {
        "model": path.resolve().stem,
        "params": section,
        "classes": list(names),
        "label_kind": label_kind,
        "reads": "frames",
        "input": {
            "n_mels": published.n_mels,
            "log_floor": front_end["log_floor"],
            "normalisation": fit_normalisation(params, lambda: [(0.0, 1.0)], checkpoint),
            "pretrained": checkpoint.metadata,
        },
        "source": "",
        "front_end": front_end,
        "fold": "",
        "seed": 0,
        "num_parameters": 0,
        "clips_seen": 0,
        "weights": checkpoint.digest,
    }
    weights = _weights(path, params, checkpoint, card)
    card["num_parameters"] = sum(array.size for array in weights.values())
    return TrainedModel(path, weights, card)


def _weights(path: Path, params: NetworkParams, checkpoint: Checkpoint, card: ModelCard) -> dict[str, np.ndarray]:
    with torch.device("meta"):  # all weights are read: 90 million random ones would take longer than reading them
        network = Network(params, card["input"], len(card["classes"]))
    network.to_empty(device="cpu")
    try:
        network.load_weights(params, checkpoint)
    except SonolexError as error:
        reason = str(error).removeprefix("pretrained: ").partition(";")[0]  # its advice is for training
        raise SonolexError(
            f"{path}: expected weights of one network, found others ({reason}); take all files from one model, as published"
        ) from None
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def _front_end(n_mels: int, sample_rate: int) -> SpectrogramMetadata:
    """Return the metadata of frames as AST's programs compute them: Kaldi's defaults with a Hann window."""
    window = round(_WINDOW * sample_rate)
    params = KaldiParams(
        kind="kaldi",
        sample_rate=sample_rate,
        win_length=window,
        hop_length=round(_HOP * sample_rate),
        n_fft=1 << (window - 1).bit_length(),
        n_mels=n_mels,
        f_min=_F_MIN,
        f_max=sample_rate / 2,
        pre_emphasis=0.97,
    )
    return {**KaldiFrontEnd(params).metadata, "dtype": "float32", "scale": 1.0, "offset": 0.0}

"""A model that fills in words which it is not shown: stem and encoder of a classifier, and a head that scores words.

Words in context as a task without labels are BERT's (Devlin et al., 2019, arXiv 1810.04805). For sound, HuBERT (Hsu et al.,
2021, arXiv 2106.07447) predicts k-means words under masked spans, and BEATs (Chen et al., 2023, arXiv 2212.09058) words of
patches; both are shown the sound and predict words. Here the model is shown words and predicts words, as BERT is.

A stem of stride s leaves one column for s frames, so column t answers for frames s * t to s * t + s - 1: a linear map makes
s vectors of it, one a frame. A word is the likelier the larger the product of that vector with its own, plus a bias. The
words' vectors are the embeddings themselves (tied, as BERT's), so that the head needs width x s x feature weights and not
width x s x word, has the geometry of the vocabulary from the start, and works with every stem. Frames behind the last
column of a stem of patches are not asked for.

It begins as the unigram model: the map at zero, the biases at the words' log frequencies.

Conventions: B batch, T frame, M place asked for, F feature; words (B, codebook, T) int64, mask (B, T) bool, True = real.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.artifacts.pretrained import Pretrained
from pipeline.models.classifier import PictureClassifier
from pipeline.models.encoder import Encoder
from pipeline.models.registry import model_module, validate_model_params

_READER = "reader."  # before the names of the classifier's own weights


class WordPredictor(nn.Module):
    """`model(words, mask) -> (vectors (B, T, F), which frames have one (B, T))`, and `scores(vectors) -> logits`.

    `reader` is the classifier, which has `tables` of its words and a `mask_token`; `frequencies` (codebook, word), all above
    0, are those of the words in the sentences that it learns from.
    """

    def __init__(self, reader: PictureClassifier, frequencies: Tensor) -> None:
        super().__init__()
        self.reader = reader
        tables: Any = reader.tables
        self.widths = [table.embedding_dim for table in tables]
        self.biases = nn.Parameter(frequencies.log())
        assert isinstance(reader.encoder, Encoder)
        columns = reader.stem.num_rows * reader.encoder.norm.normalized_shape[0]
        self.project = nn.Linear(columns, reader.stem.stride * sum(self.widths))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    @property
    def encoder(self) -> nn.Module:
        return self.reader.encoder

    @property
    def stem(self) -> Any:
        return self.reader.stem

    @property
    def embedding_rate(self) -> float:
        return float(getattr(self.reader, "embedding_rate", 1.0))

    @property
    def mask_token(self) -> int:
        return int(self.reader.mask_token)  # type: ignore[arg-type]

    def forward(self, words: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        columns, real = self.reader.context(self.reader.embed(words), mask)
        vectors = self.project(columns).reshape(len(words), -1, sum(self.widths))
        missing = words.shape[2] - vectors.shape[1]  # below 0 where the last column goes on behind the last frame
        frames = torch.arange(words.shape[2], device=words.device)
        asked = frames < real.sum(1, keepdim=True) * self.stem.stride
        return nn.functional.pad(vectors, (0, 0, 0, missing)), asked if mask is None else asked & mask

    def scores(self, vectors: Tensor) -> list[Tensor]:
        """Map vectors (M, F) to logits (M, word), one a codebook."""
        tables: Any = self.reader.tables
        parts = zip(torch.split(vectors, self.widths, dim=1), tables, self.biases, strict=True)
        return [part @ table.weight[: len(bias)].T + bias for part, table, bias in parts]

    def learned(self) -> dict[str, Tensor]:
        """Return all weights by name but those of the classifier's head, which took no part."""
        return {name: values for name, values in self.state_dict().items() if not name.startswith(f"{_READER}head.")}


def open_predictor(pretrained: Pretrained) -> WordPredictor:
    """Return the model that wrote a folder, as it was then."""
    facts = pretrained.facts
    params: Any = validate_model_params(facts["model"], facts["params"], pretrained.path)
    reader = model_module(params.kind).build(params, facts["input"], 1)
    shape = pretrained.weights["biases"].shape
    model = WordPredictor(reader, torch.ones(shape))
    model.load_state_dict(model.state_dict() | {name: torch.from_numpy(v) for name, v in pretrained.weights.items()})
    return model


def put_in(model: nn.Module, pretrained: Pretrained) -> None:
    """Put pretrained weights into a classifier, in place; its head stays. Raises ArtifactError where they do not fit."""
    weights = model.state_dict()
    own = {f"{_READER}{name}": tuple(v.shape) for name, v in weights.items() if not name.startswith("head.")}
    pretrained.require_shapes(_READER, own)
    learned = {name.removeprefix(_READER): torch.from_numpy(v) for name, v in pretrained.weights.items() if name in own}
    model.load_state_dict(weights | learned)

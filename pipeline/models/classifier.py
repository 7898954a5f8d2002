"""What the transformers share beyond their encoder: a picture goes through stem, encoder and head."""

from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from pipeline.models.heads import Head


class PictureClassifier(nn.Module):
    """`model(inputs, mask) -> logits` as `classify(embed(inputs), mask)`; augmentation acts between the two.

    A subclass builds the three parts and says in `embed` what picture (batch, frame, feature) its inputs are.
    """

    stem: nn.Module
    encoder: Encoder
    head: Head

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the picture that augmentation may mix and mask: the inputs themselves, unless a subclass embeds them."""
        return inputs

    def classify(self, picture: Tensor, mask: Tensor | None) -> Tensor:
        """Map a picture (batch, frame, feature) to logits (batch, class)."""
        x, mask = self.head.open(*self.stem(picture, mask))
        logits: Tensor = self.head(self.encoder(x, mask), mask)
        return logits

    def forward(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        return self.classify(self.embed(inputs), mask)

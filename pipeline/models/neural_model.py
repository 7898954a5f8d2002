"""Contract between a model and the training loop."""

from torch import nn


class NeuralModel(nn.Module):
    """A model that is trained by gradient descent. The loop reads what it supports, and sets how it is trained."""

    supports_patchout: bool = False
    supports_activation_checkpointing: bool = False
    embedding_rate: float = 1.0  # learning rate of embeddings over that of all other weights
    patchout: float = 0.0  # fraction of the positions that the encoder is not shown in training; set by the loop

    def set_activation_checkpointing(self, on: bool) -> None:
        """Compute the encoder's activations again in the backward pass, or keep them."""
        if on:
            raise ValueError("activation checkpointing: expected a model that supports it")

"""A second task of the corruption stage: which tokens are wrong, beside which sentences are.

`TokenHead` gives a model one logit for each token, and is dropped after the stage. The loss is that of ELECTRA's
replaced-token detection (Clark et al. 2020, https://arxiv.org/abs/2003.10555): binary cross entropy of every token.

Shape letters: B sentences of a batch, S tokens of its longest sentence.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel


class MarkedOutput(NamedTuple):
    """Logits of the sentences [B, 2] and of their tokens [B, S]; a positive one of a token says that it is wrong."""

    logits: torch.Tensor
    token_logits: torch.Tensor


class TokenHead(nn.Module):
    """A classifier of sentences with a linear layer on the encoder's last hidden states."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap a model on its device; the layer's weights are drawn from torch's generator."""
        super().__init__()
        self.model = model
        device = next(model.parameters()).device
        self.token_head = nn.Linear(model.config.hidden_size, 1).to(device)
        nn.init.normal_(self.token_head.weight, std=0.02)
        nn.init.zeros_(self.token_head.bias)
        self._hidden: list[torch.Tensor] = []
        self._hook = model.base_model.register_forward_hook(lambda _, __, output: self._hidden.append(output[0]))

    def forward(self, **inputs: torch.Tensor) -> MarkedOutput:
        """Return the logits of sentences and tokens."""
        logits = self.model(**inputs).logits
        return MarkedOutput(logits, self.token_head(self._hidden.pop()).squeeze(-1))

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    def set_attn_implementation(self, name: str) -> None:
        """Choose the model's attention."""
        self.model.set_attn_implementation(name)

    def unwrap(self) -> PreTrainedModel:
        """Return the model without the head."""
        self._hook.remove()
        return self.model

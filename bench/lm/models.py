"""The language models: a recurrent one and, as a baseline, one without hidden state.

Both map (tokens, state) to (logits, state) in the way of torch's recurrent modules, so that one loop trains,
evaluates and samples either.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUTS = ("one-hot", "embedding")


class OneHot(nn.Module):
    """tokens int64 [...] -> unit vectors [..., vocabulary_size]"""

    identity: Tensor

    def __init__(self, vocabulary_size: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.register_buffer("identity", torch.eye(vocabulary_size, dtype=dtype), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.identity)


def input_layer(
    kind: str, vocabulary_size: int, embedding_size: int, dtype: torch.dtype | None = None
) -> nn.Module:
    """What turns a character into a vector: its unit vector, or a learnt one of `embedding_size` features."""
    if kind == "one-hot":
        return OneHot(vocabulary_size, dtype)
    return nn.Embedding(vocabulary_size, embedding_size, dtype=dtype)


class RecurrentModel(nn.Module):
    """H_t = rnn(X_t, H_{t-1}), O_t = H_t W_hq + b_q

    tokens int64 [T, B], state [num_layers, B, H] or None for zeros -> logits [T, B, V], state. The recurrent
    layer is given, so that the same model can be built around each implementation.
    """

    def __init__(
        self,
        encode: nn.Module,
        rnn: nn.Module,
        hidden_size: int,
        vocabulary_size: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.encode = encode
        self.rnn = rnn
        self.output = nn.Linear(hidden_size, vocabulary_size, dtype=dtype)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden, state = self.rnn(self.encode(tokens), state)
        return self.output(hidden), state


class WindowModel(nn.Module):
    """H_t = tanh(X_t W_xh + b_h), O_t = H_t W_hq + b_q, X_t being the last `window` characters side by side

    There is no hidden state: O_t depends on those characters and nothing else. What is carried over in its
    place, [window - 1, B], is the end of the text itself, so that a text can be read in pieces. Before its
    beginning stand unknown characters.
    """

    def __init__(
        self,
        encode: nn.Module,
        window: int,
        hidden_size: int,
        vocabulary_size: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.window = window
        self.encode = encode
        features = encode(torch.zeros(1, dtype=torch.int64)).shape[-1]
        self.hidden = nn.Linear(window * features, hidden_size, dtype=dtype)
        self.output = nn.Linear(hidden_size, vocabulary_size, dtype=dtype)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = tokens.new_zeros(self.window - 1, tokens.shape[1])
        seen = torch.cat([state, tokens])
        windows = seen.unfold(0, self.window, 1)  # [T, B, window]
        hidden = torch.tanh(self.hidden(self.encode(windows).flatten(-2)))
        return self.output(hidden), seen[len(seen) - self.window + 1 :]

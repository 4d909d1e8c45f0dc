"""The product with the vocabulary, of the entries alone that are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class ColumnHead(torch.nn.Module):
    """Stands for a model's linear head, so that what the model does with logits (caps, scales)
    stays the model's."""

    def __init__(self, head: torch.nn.Linear | None) -> None:
        super().__init__()
        self.head = head
        self._columns: torch.Tensor | None = None

    @classmethod
    def put_into(cls, model: Any) -> ColumnHead:
        """Take the place of the model's head; a head that isn't plainly linear stays."""
        head = model.get_output_embeddings()
        if type(head) is not torch.nn.Linear:
            return cls(None)
        column_head = cls(head)
        model.set_output_embeddings(column_head)
        return column_head

    @property
    def weight(self) -> torch.Tensor:
        """The whole head's weight, for models that look at its type or device."""
        if self.head is None:
            raise AttributeError("weight")
        return self.head.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The whole head's bias, for models that hold it elsewhere too."""
        return None if self.head is None else self.head.bias

    @contextmanager
    def only(self, columns: NDArray[np.int64] | None) -> Iterator[None]:
        """Compute these columns alone, all of them for None."""
        if columns is not None and self.head is not None:
            self._columns = torch.from_numpy(columns).to(self.head.weight.device)
        try:
            yield
        finally:
            self._columns = None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [..., columns]."""
        if self.head is None:
            raise RuntimeError("this head stands for none")
        if self._columns is None:
            logits: torch.Tensor = self.head(states)
            return logits
        # A few columns cost nothing, and a bfloat16 logit of 20 would be 0.06 off.
        bias = None if self.head.bias is None else self.head.bias[self._columns].float()
        weight = self.head.weight[self._columns].float()
        return torch.nn.functional.linear(states.float(), weight, bias)

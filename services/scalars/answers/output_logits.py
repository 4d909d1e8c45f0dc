"""Next-token logits of single tokens, for requests that rank no others.

The logits of all tokens are as large as a good part of the whole forward pass, and going back
through them as well. Where only one token's are ranked, these and the sums of the others' follow
from the residual stream after the final layer norm.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.answers.node_lists import NodeList
from services.scalars.answers.ranking import strongest_nodes
from services.scalars.deriving.activations import ActivationsAndMetadata
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import ActivationLocationType, Dimension, PassType
from services.scalars.model.taps import RawTensorId
from services.scalars.model.weights import lasting
from services.scalars.passes.inference import PreparedInference
from services.scalars.requests.selections import ResolvedSelection
from services.scalars.requests.top_nodes import ResolvedTopNodes

_ROWS_AT_ONCE = 2048

NORMALIZED = RawTensorId(ActivationLocationType.RESID_POST_FINAL_LAYER_NORM, None, PassType.FORWARD)


def ranks_one_token(resolved: ResolvedTopNodes, prepared: PreparedInference) -> bool:
    """Whether a request is of the logits of one token, and nothing overwrites these."""
    spec = resolved.spec
    return (
        resolved.token_index is not None
        and all(each.dst.name == "logits" for group in resolved.groups for each in group)
        and spec.pass_type is PassType.FORWARD
        and Dimension.VOCAB_SIZE not in (spec.sum_dimensions or ())
        and all(
            each.target.location is not ActivationLocationType.LOGITS
            for each in prepared.overwrites
        )
    )


@dataclass(eq=False)
class OutputLogits:
    """Logits of tokens of a model, from what the final layer norm gives."""

    model: SubjectModel
    _total: Tensor | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def strongest(self, resolved: ResolvedTopNodes, normalized: Tensor) -> NodeList:
        """The nodes that a request lists, given the normalised residual stream (T, D)."""
        token = resolved.token_index
        if token is None:
            raise ValueError("one token's logits are ranked")
        row = normalized[token] @ self.model.write.unembedding.T

        def scalars(selection: ResolvedSelection) -> ActivationsAndMetadata:
            # The other tokens' rows are never looked at.
            rows = row.expand(normalized.shape[0], -1)
            return ActivationsAndMetadata(selection.dst, selection.pass_type, {None: rows})

        return strongest_nodes(resolved, scalars)

    def values(
        self, nodes: NodeList, resolved: ResolvedTopNodes, normalized: Tensor
    ) -> dict[str, NDArray[np.float32]]:
        """The logits of listed nodes, for each group."""
        device = normalized.device
        token, entry = (torch.from_numpy(nodes.indices[:, axis]).to(device) for axis in (0, 1))
        rows = self.model.write.unembedding[entry]
        found = torch.linalg.vecdot(normalized[token].to(rows.dtype), rows).float().cpu().numpy()
        return {group.group_id: found for group in resolved.spec.groups}

    def sums(
        self, resolved: ResolvedTopNodes, normalized: Tensor
    ) -> dict[tuple[str, str], NDArray[np.float32]]:
        """Sums of all logits over the vocabulary, and over tokens where these are not kept."""
        by_token = normalized.double() @ self.summed_unembedding()
        kept = resolved.spec.sum_dimensions
        if kept is not None and Dimension.SEQUENCE_TOKENS not in kept:
            by_token = by_token.sum()
        found = by_token.float().cpu().numpy()
        return {(group.group_id, "logits"): found for group in resolved.spec.groups}

    def summed_unembedding(self) -> Tensor:
        """The sum of all rows of the unembedding, (D,) in float64."""
        # Threads that derive side by side both come here first.
        with self._lock:
            if self._total is None:
                with lasting():
                    # In parts: the sum converts what it is given, which is twice the matrix.
                    parts = torch.split(self.model.write.unembedding, _ROWS_AT_ONCE)
                    self._total = torch.stack([each.double().sum(dim=0) for each in parts]).sum(0)
            return self._total

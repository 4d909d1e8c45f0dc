"""Derived scalars, as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropil._inference import Ablation, Inference, Loss, Trace
from neuropil._record_types import TokenPairSequence
from neuropil._scalar_results import (
    BatchRun,
    ComponentScalars,
    DerivedScalars,
    Node,
    batch_result_of,
    component_scalars_of,
    run_of,
    token_pairs_of,
    top_nodes_of,
)
from neuropil._scalar_specs import ComponentSpec, Spec, TensorSpec, TokenPairSpec, TopNodesSpec
from neuropil.errors import NeuropilError, translated
from neuropil.scalars import v1
from neuropil.tensors import to_array


class ScalarsClient:
    """Derived scalars of the deployment's subject model.

    Where a method takes a prompt, it takes an `Inference` too, which says all there is to say of a
    run; loss, trace and ablations are then its own. A ValueError tells of a name that is unknown, a
    NeuropilError with code INVALID_ARGUMENT, naming the field, of what the model can't do.
    """

    def __init__(self, stub: v1.DerivedScalarsStub, timeout: float) -> None:
        self.stub = stub
        """The generated stub, for what this class doesn't cover."""
        self._timeout = timeout

    def model_info(self) -> v1.GetModelInfoResponse:
        """The subject model's name and sizes."""
        with translated():
            return self.stub.GetModelInfo(v1.GetModelInfoRequest(), timeout=self._timeout)

    def scalar_types(self) -> list[v1.ScalarType]:
        """The catalogue of derived scalar types."""
        with translated():
            answer = self.stub.ListScalarTypes(v1.ListScalarTypesRequest(), timeout=self._timeout)
        return list(answer.scalar_types)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, with the model's tokenizer."""
        with translated():
            answer = self.stub.Tokenize(v1.TokenizeRequest(texts=[text]), timeout=self._timeout)
        return list(answer.texts[0].tokens)

    def derive(
        self,
        prompt: str | Inference,
        scalar_types: str | TensorSpec | Sequence[str | TensorSpec],
        *,
        layers: int | Sequence[int] = (),
        loss: Loss | None = None,
        trace: Trace | None = None,
        ablations: Sequence[Ablation] = (),
        pass_type: str = "forward",
    ) -> DerivedScalars:
        """Derive whole tensors for a prompt, all layers unless some are named.

        A single scalar type, or layer, need not be in a list. `layers` and `pass_type` are for the
        scalar types that are given by name; a `TensorSpec` has its own. A type may be asked for
        once; `batch` has no such limit.
        """
        if isinstance(scalar_types, str | TensorSpec):
            scalar_types = [scalar_types]
        specs = [
            TensorSpec(each, layers=layers, pass_type=pass_type) if isinstance(each, str) else each
            for each in scalar_types
        ]
        names = [each.scalar_type for each in specs]
        if len(set(names)) < len(names):
            raise ValueError("a scalar type is there twice; a batch takes it by several names")
        request = v1.DeriveRequest(
            inference=_inference(prompt, loss, trace, ablations).message(),
            selections=[each.message() for each in specs],
        )
        result: v1.InferenceResult | None = None
        tensors: dict[tuple[str, int | None], NDArray[Any]] = {}
        with translated():
            for response in self.stub.Derive(request, timeout=self._timeout):
                if response.HasField("inference"):
                    result = response.inference
                else:
                    _place(response.frame, names, tensors)
        if result is None:
            raise NeuropilError("DATA_LOSS", "the answer ended before the run's result")
        return DerivedScalars(**run_of(result), tensors=tensors)

    def component(
        self,
        prompt: str | Inference,
        scalar_type: str,
        layer_index: int | None,
        component_index: int,
        *,
        top_tokens: int = 0,
        loss: Loss | None = None,
        trace: Trace | None = None,
        ablations: Sequence[Ablation] = (),
        pass_type: str = "forward",
    ) -> ComponentScalars:
        """The scalars of one neuron, head or latent at every token.

        With `top_tokens` also that many entries of the vocabulary that it promotes and suppresses
        most: see `TopTokens` for their order. `batch` with a `ComponentSpec` also gives the run.
        """
        spec = ComponentSpec(scalar_type, layer_index, component_index, pass_type, top_tokens)
        request = v1.DeriveComponentRequest(
            inference=_inference(prompt, loss, trace, ablations).message(), spec=spec.message()
        )
        with translated():
            answer = self.stub.DeriveComponent(request, timeout=self._timeout)
        return component_scalars_of(answer.scalars)

    def token_pairs(
        self,
        prompt: str | Inference,
        scalar_type: str,
        layer_index: int | None,
        component_index: int,
        *,
        loss: Loss | None = None,
        trace: Trace | None = None,
        ablations: Sequence[Ablation] = (),
    ) -> TokenPairSequence:
        """The scalars of one head, or of one latent, at every token pair.

        The type is indexed by query, key and component: ``unflattened_attn_write_norm``, for
        example. One that is flattened, as ``attn_write_norm``, is for `component`.
        """
        request = v1.DeriveComponentByTokenPairRequest(
            inference=_inference(prompt, loss, trace, ablations).message(),
            spec=TokenPairSpec(scalar_type, layer_index, component_index).message(),
        )
        with translated():
            answer = self.stub.DeriveComponentByTokenPair(request, timeout=self._timeout)
        return token_pairs_of(answer.scalars)

    def top_nodes(
        self,
        prompt: str | Inference,
        groups: Mapping[str, str | Sequence[str]],
        *,
        count: int = 10,
        loss: Loss | None = None,
        trace: Trace | None = None,
        ablations: Sequence[Ablation] = (),
    ) -> list[Node]:
        """The nodes with the largest and the smallest scalars, `count` of each a scalar type.

        `batch` with a `TopNodesSpec` also gives the run and the sums over all nodes, and takes the
        nodes of one token, or of later layers, alone.

        `groups` holds scalar types by group, for example
        ``{"write_norm": ["mlp_write_norm", "unflattened_attn_write_norm"]}``.
        """
        request = v1.ListTopNodesRequest(
            inference=_inference(prompt, loss, trace, ablations).message(),
            spec=TopNodesSpec(groups, count=count).message(),
        )
        with translated():
            answer = self.stub.ListTopNodes(request, timeout=self._timeout)
        return top_nodes_of(answer.top_nodes).nodes

    def batch(
        self, inferences: Iterable[tuple[str | Inference, Mapping[str, Spec]]]
    ) -> list[BatchRun]:
        """Run several inferences at once, and derive what the specs of each ask for, by name.

        Specs of one inference share its passes. Top nodes of the same name are the same over the
        inferences, which then have prompts of the same number of tokens.
        """
        request = v1.BatchDeriveRequest()
        for prompt, specs in inferences:
            added = request.inferences.add()
            added.inference.CopyFrom(_inference(prompt, None, None, ()).message())
            for name, spec in specs.items():
                spec.add_to(added.specs.add(name=name))
        with translated():
            return [
                BatchRun(
                    **run_of(response.inference),
                    results={each.name: batch_result_of(each) for each in response.results},
                )
                for response in self.stub.BatchDerive(request, timeout=self._timeout)
            ]


def _inference(
    prompt: str | Inference, loss: Loss | None, trace: Trace | None, ablations: Sequence[Ablation]
) -> Inference:
    if isinstance(prompt, str):
        return Inference(prompt, loss=loss, trace=trace, ablations=ablations)
    if loss is not None or trace is not None or ablations:
        raise ValueError("an Inference has loss, trace and ablations of its own")
    return prompt


def _place(
    frame: v1.TensorFrame,
    scalar_types: Sequence[str],
    tensors: dict[tuple[str, int | None], NDArray[Any]],
) -> None:
    layer = frame.layer_index if frame.HasField("layer_index") else None
    key = (scalar_types[frame.selection], layer)
    rows = to_array(frame.rows)
    if frame.first_row == 0 and rows.shape == tuple(frame.shape):
        tensors[key] = rows
        return
    if key not in tensors:
        tensors[key] = np.empty(tuple(frame.shape), dtype=rows.dtype)
    tensors[key][frame.first_row : frame.first_row + len(rows)] = rows

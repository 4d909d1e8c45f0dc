"""Neuropil: records, derived scalars and simulation of the parts of language models.

>>> import neuropil
>>> with neuropil.connect() as client:
...     record = client.records.token_record("mlp_post_act", 0, 3, datasets=["demo"])
"""

from neuropil._inference import Ablation, Activation, Inference, Loss, NodeIndex, Trace
from neuropil._record_types import (
    Explanation,
    SearchHit,
    TokenPairRecord,
    TokenPairSequence,
    TokenRecord,
    TokenSequence,
)
from neuropil._scalar_results import (
    Attribution,
    BatchRun,
    ComponentScalars,
    DerivedScalars,
    Node,
    TopNodes,
    TopTokens,
    VocabularyScore,
)
from neuropil._scalar_specs import (
    AttributionSpec,
    ComponentSpec,
    ScoredTokensSpec,
    TensorSpec,
    TokenPairSpec,
    TopNodesSpec,
)
from neuropil._simulation_results import (
    AttentionSequence,
    BulkProgress,
    BulkResult,
    BulkSummary,
    Judgement,
    Proposals,
    ProposedExplanation,
    Score,
    ScoredExplanation,
    ScoredSequence,
    Simulation,
)
from neuropil.client import Client, connect
from neuropil.errors import NeuropilError, PartialAnswerWarning

__version__ = "0.1.0"

__all__ = [
    "Ablation",
    "Activation",
    "AttentionSequence",
    "Attribution",
    "AttributionSpec",
    "BatchRun",
    "BulkProgress",
    "BulkResult",
    "BulkSummary",
    "Client",
    "ComponentScalars",
    "ComponentSpec",
    "DerivedScalars",
    "Explanation",
    "Inference",
    "Judgement",
    "Loss",
    "NeuropilError",
    "Node",
    "NodeIndex",
    "PartialAnswerWarning",
    "Proposals",
    "ProposedExplanation",
    "Score",
    "ScoredExplanation",
    "ScoredSequence",
    "ScoredTokensSpec",
    "SearchHit",
    "Simulation",
    "TensorSpec",
    "TokenPairRecord",
    "TokenPairSequence",
    "TokenPairSpec",
    "TokenRecord",
    "TokenSequence",
    "TopNodes",
    "TopNodesSpec",
    "TopTokens",
    "Trace",
    "VocabularyScore",
    "__version__",
    "connect",
]

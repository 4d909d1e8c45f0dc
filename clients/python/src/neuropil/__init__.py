"""Neuropil: records, derived scalars and simulation of the parts of language models.

>>> import neuropil
>>> with neuropil.connect() as client:
...     record = client.records.token_record("mlp_post_act", 0, 3, datasets=["demo"])
"""

from neuropil._record_types import (
    Explanation,
    SearchHit,
    TokenPairRecord,
    TokenPairSequence,
    TokenRecord,
    TokenSequence,
)
from neuropil._scalars import Ablation, DerivedScalars, Loss, Node
from neuropil._simulation import ScoredExplanation, ScoredSequence, Simulation
from neuropil.client import Client, connect
from neuropil.errors import NeuropilError, PartialAnswerWarning

__version__ = "0.1.0"

__all__ = [
    "Ablation",
    "Client",
    "DerivedScalars",
    "Explanation",
    "Loss",
    "NeuropilError",
    "Node",
    "PartialAnswerWarning",
    "ScoredExplanation",
    "ScoredSequence",
    "SearchHit",
    "Simulation",
    "TokenPairRecord",
    "TokenPairSequence",
    "TokenRecord",
    "TokenSequence",
    "__version__",
    "connect",
]

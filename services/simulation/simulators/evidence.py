"""From similarity and literal cues to a distribution over 0 to 10: the formulas, without a model.

For each word w and an explanation e with facets f (the whole text, its phrases, its content
words), with cosines of unit vectors:

    z(w, f)  = (cos(w, f) - mean over common words of cos(., f)) / their standard deviation
    z(w)     = (z(w, e) + max over the other facets of z(w, f)) / 2
    active   = logistic(z(w) - 2.8 + 1.5 (cos(w in its sequence, e) - 0.2))

So a word counts as far as it is closer to the explanation than ordinary words are, and a little
more where its context is on the topic too. With a literal cue, a matching word has

    active   = logistic(2.2 + 1.5 (cos(w in its sequence, e) - 0.2))

and others keep 0.2 of theirs, or 0.15 where the explanation says nothing besides the cue. A token
that doesn't complete its word has half of the word's value, since the subject model can't know
the word yet. Then

    p(0) = 1 - active,    p(v) = active * Binomial(v - 1; 9, active)   for v = 1 to 10
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binom

from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.cues import Cues
from services.simulation.simulators.words import WordSequence, content_words

FloatArray = NDArray[np.float64]

SLOPE, THRESHOLD = 1.0, 2.8
CONTEXT_WEIGHT, CONTEXT_CENTRE = 1.5, 0.2
MATCHED = 2.2
BESIDE_CUE, CUE_ALONE = 0.2, 0.15
INCOMPLETE = 0.5
_LEAST_DEVIATION = 0.02
_MAX_FACETS = 64

_SPLIT = re.compile(r"[,;:/()]|\band\b|\bor\b|\bsuch as\b|\be\.g\.", re.IGNORECASE)


def facets(explanation: str) -> list[str]:
    """The whole explanation first, then its phrases and its content words."""
    phrases = [part.strip() for part in _SPLIT.split(explanation)]
    parts = [part for part in phrases if content_words(part)] + content_words(explanation)
    whole = explanation.strip()
    unique = [part for part in dict.fromkeys(parts) if part != whole]
    return [whole, *unique[: _MAX_FACETS - 1]]


def word_scores(
    words: NDArray[np.float32], facet_vectors: NDArray[np.float32], common: NDArray[np.float32]
) -> FloatArray:
    """z(w) [words] of word vectors [words, d], given facets [f, d] and common words [c, d]."""
    ordinary = common @ facet_vectors.T
    mean = ordinary.mean(axis=0)
    deviation = np.maximum(ordinary.std(axis=0), _LEAST_DEVIATION)
    z = (words @ facet_vectors.T - mean) / deviation
    others = z[:, 1:].max(axis=1) if z.shape[1] > 1 else z[:, 0]
    result: FloatArray = ((z[:, 0] + others) / 2).astype(np.float64)
    return result


def token_activity(
    sequence: WordSequence,
    scores: FloatArray,
    context: FloatArray,
    cues: Cues,
) -> FloatArray:
    """`active` [tokens] from z(w) [words] and the cosines of words in context [words]."""
    leaning = CONTEXT_WEIGHT * (context - CONTEXT_CENTRE)
    activity = expit(SLOPE * (scores - THRESHOLD) + leaning)
    matched_tokens = np.zeros(len(sequence.tokens), dtype=np.bool_)
    if cues.any:
        matched_tokens, matched_words = cues.match(sequence)
        activity *= BESIDE_CUE if cues.says_more else CUE_ALONE
        activity[matched_words] = np.maximum(activity, expit(MATCHED + leaning))[matched_words]
    owner = sequence.word_of_token
    if not len(activity):
        return np.where(matched_tokens, expit(MATCHED), 0.0)
    by_token = np.where(owner >= 0, activity[owner], 0.0)
    by_token = np.where(sequence.completes, by_token, INCOMPLETE * by_token)
    leaning_by_token = np.where(owner >= 0, leaning[owner], 0.0)
    matched: FloatArray = np.maximum(by_token, expit(MATCHED + leaning_by_token))
    return np.where(matched_tokens, matched, by_token)


def distributions(activity: FloatArray) -> FloatArray:
    """Probabilities [tokens, 11] of the values 0 to 10 from `active` [tokens]."""
    probabilities = np.empty((len(activity), NUM_VALUES))
    trials = NUM_VALUES - 2
    probabilities[:, 1:] = (
        binom.pmf(np.arange(trials + 1)[None, :], trials, activity[:, None]) * activity[:, None]
    )
    probabilities[:, 0] = 1.0 - activity
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities

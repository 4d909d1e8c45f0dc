"""Search by words: BM25 over an inverted index in memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tantivy

from services.records.search.columns import Ids, Selection
from services.records.search.documents import Document
from shared.errors import InvalidArgument

Scores = np.ndarray[tuple[int], np.dtype[np.float64]]

# As long as a query may be: scripts without spaces make words of whole clauses.
_MAX_WORD_BYTES = 4097
_WRITER_BYTES = 32_000_000
_EXACT_WEIGHT = 0.5
_STEMS, _WORDS = "stems", "words"


class TextIndex:
    """Words of explanations, as they are written and by their English stem.

    Explanations are English sentences: "verbs" is to find "verb". They quote tokens too, so a word
    as it is written counts besides its stem and ranks above its inflections. Letters of all scripts
    make words; case and accents don't matter.
    """

    def __init__(self) -> None:
        builder = tantivy.SchemaBuilder()
        builder.add_unsigned_field("id", indexed=True, fast=True)
        builder.add_unsigned_field("folder", indexed=True)
        builder.add_unsigned_field("layer", indexed=True)
        builder.add_float_field("score", indexed=True, fast=True)
        builder.add_text_field(_STEMS, tokenizer_name=_STEMS)
        builder.add_text_field(_WORDS, tokenizer_name=_WORDS)
        self._schema = builder.build()
        self._index = tantivy.Index(self._schema)
        self._stems, self._words = _analyzer(stemmed=True), _analyzer(stemmed=False)
        self._index.register_tokenizer(_STEMS, self._stems)
        self._index.register_tokenizer(_WORDS, self._words)
        self._writer = self._index.writer(heap_size=_WRITER_BYTES, num_threads=1)

    def add(self, documents: Iterable[Document]) -> None:
        """Add documents; they are found after `commit`."""
        for document in documents:
            added = tantivy.Document()
            added.add_unsigned("id", document.id)
            added.add_unsigned("folder", document.file.folder)
            added.add_unsigned("layer", document.file.layer_index)
            if document.score_or_none is not None:
                added.add_float("score", document.score)
            added.add_text(_STEMS, document.text)
            added.add_text(_WORDS, document.text)
            self._writer.add_document(added)

    def remove(self, ids: Iterable[int]) -> None:
        """Remove documents; they are gone after `commit`."""
        # By a query: deleting by the term takes the number for a signed one, and finds nothing.
        removed = tantivy.Query.term_set_query(self._schema, "id", list(ids))
        self._writer.delete_documents_by_query(removed)

    def commit(self) -> None:
        """Let searches see what was changed."""
        self._writer.commit()
        self._index.reload()

    def search(self, query: str, selection: Selection, limit: int) -> tuple[Ids, Scores, int]:
        """Ids and BM25 scores of the best documents, best first, and how many match at all.

        InvalidArgument where the query has no letter and no digit.
        """
        parsed = self._query(query, selection)
        searcher = self._index.searcher()
        result = searcher.search(parsed, limit=limit, count=True)
        addresses = [address for _, address in result.hits]
        ids = np.array(searcher.fast_field_values("id", addresses), np.int64)
        scores = np.array([score for score, _ in result.hits], np.float64)
        matches = self._count(result)
        return ids, scores, matches

    @staticmethod
    def _count(result: tantivy.SearchResult) -> int:
        count: int = result.count  # type: ignore[attr-defined]
        return count

    def _query(self, query: str, selection: Selection) -> tantivy.Query:
        # Words are looked up as they are: nothing in a query is syntax.
        pairs = dict.fromkeys(
            zip(self._stems.analyze(query), self._words.analyze(query), strict=True)
        )
        if not pairs:
            raise InvalidArgument(
                "query has no letter and no digit; search by meaning compares signs too.",
                field="query",
            )
        should = tantivy.Occur.Should
        terms = [
            (should, tantivy.Query.term_query(self._schema, _STEMS, stem))
            for stem in dict.fromkeys(stem for stem, _ in pairs)
        ]
        terms += [
            (
                should,
                tantivy.Query.boost_query(
                    tantivy.Query.term_query(self._schema, _WORDS, word), _EXACT_WEIGHT
                ),
            )
            for word in dict.fromkeys(word for _, word in pairs)
        ]
        must = tantivy.Occur.Must
        clauses = [(must, tantivy.Query.boolean_query(terms))]
        conditions = [tantivy.Query.term_set_query(self._schema, "folder", list(selection.folders))]
        if selection.layer_indices:
            conditions.append(
                tantivy.Query.term_set_query(self._schema, "layer", list(selection.layer_indices))
            )
        if selection.min_score is not None:
            conditions.append(
                tantivy.Query.range_query(
                    self._schema, "score", tantivy.FieldType.Float, selection.min_score
                )
            )
        clauses += [(must, tantivy.Query.const_score_query(each, 0.0)) for each in conditions]
        return tantivy.Query.boolean_query(clauses)


def _analyzer(*, stemmed: bool) -> tantivy.TextAnalyzer:
    builder = (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.remove_long(_MAX_WORD_BYTES))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.ascii_fold())
    )
    if stemmed:
        builder = builder.filter(tantivy.Filter.stemmer("english"))
    return builder.build()

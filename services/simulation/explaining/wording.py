"""Features as sentences that people understand, and that simulators read literally."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from services.simulation.explaining.features import Feature, FeatureKind

_ORDER = (
    FeatureKind.WORD,
    FeatureKind.PHRASE,
    FeatureKind.CLASS,
    FeatureKind.BEFORE,
    FeatureKind.AFTER,
    FeatureKind.STARTS,
    FeatureKind.ENDS,
)


def sentence(features: Sequence[Feature], whole_words: Collection[str]) -> str:
    """One explanation that names all features, such as "the words 'unto' and 'thee'"."""
    parts = []
    for kind in _ORDER:
        texts = [feature.text for feature in features if feature.kind is kind]
        if kind is FeatureKind.WORD:
            parts += _words(texts, whole_words)
        elif texts:
            parts.append(_part(kind, texts))
    return ", and ".join(parts)


def _words(texts: Sequence[str], whole_words: Collection[str]) -> list[str]:
    signs = [text for text in texts if not any(c.isalnum() for c in text)]
    words = [text for text in texts if text in whole_words and text not in signs]
    pieces = [text for text in texts if text not in whole_words and text not in signs]
    return [
        f"the {name}{'s' if len(named) > 1 else ''} {listed([quote(text) for text in named])}"
        for name, named in (("word", words), ("word part", pieces), ("token", signs))
        if named
    ]


def _part(kind: FeatureKind, texts: Sequence[str]) -> str:
    several = len(texts) > 1
    quoted = [quote(text) for text in texts]
    match kind:
        case FeatureKind.PHRASE:
            return f"the phrase{'s' if several else ''} {listed(quoted)}"
        case FeatureKind.BEFORE:
            return listed([f"the word before {text}" for text in quoted])
        case FeatureKind.AFTER:
            return listed([f"the word after {text}" for text in quoted])
        case FeatureKind.STARTS:
            return f"words that start with {listed([quote(f'{text}-') for text in texts])}"
        case FeatureKind.ENDS:
            return f"words that end in {listed([quote(f'-{text}') for text in texts])}"
        case _:
            return listed(list(texts))


def quote(text: str) -> str:
    """`text` in quotation marks that it doesn't hold."""
    for opening, closing in (("'", "'"), ('"', '"'), ("“", "”"), ("`", "`"), ("«", "»")):
        if opening not in text and closing not in text:
            return f"{opening}{text}{closing}"
    return f'"{text.replace(chr(34), chr(39))}"'


def listed(parts: Sequence[str]) -> str:
    """Parts with commas and a last "and"."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"

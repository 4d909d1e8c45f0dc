"""What an OpenAI-compatible server answers, computed by a real small model on a CPU."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tests.emulators.openai_server import Abilities
from tests.emulators.refusal import Refused

_BLOCK = 16
"""Tokens that a server reuses together."""


class SmallModel:
    """Completions and chat of a local causal language model with a byte-level tokenizer."""

    def __init__(self, model: Any, tokenizer: Tokenizer, lift: float) -> None:
        """`lift` is added to the logits of "0" to "10", which changes nothing among them.

        So a model that was never asked for numbers has them among its likely tokens, as one that
        understands the prompt has.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._lift = torch.zeros(model.config.vocab_size, dtype=torch.float64)
        values = (tokenizer.token_to_id(str(value)) for value in range(11))
        self._lift[[value for value in values if value is not None]] = lift
        self._longest = int(model.config.max_position_embeddings)
        self._bytes = _bytes_of_letters()
        self._seen: list[list[int]] = []
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path, lift: float = 20.0) -> Self:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(model.eval(), tokenizer, lift)

    def completion(self, body: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
        """The body of an answer of /v1/completions."""
        echo = bool(body.get("echo")) and not abilities.ignores_echo
        max_tokens = int(body.get("max_tokens", 16))
        logprobs = body.get("logprobs")
        wanted = body.get("prompt_logprobs")
        if echo and not abilities.echo:
            raise Refused(400, "Setting 'echo' and 'logprobs' at the same time is not supported.")
        if max_tokens == 0 and not (echo and abilities.max_tokens_zero):
            raise Refused(400, "max_tokens must be at least 1")
        if logprobs is not None and logprobs > abilities.logprobs:
            raise Refused(400, f"logprobs must be at most {abilities.logprobs}")
        ids = self._tokenizer.encode(body["prompt"]).ids
        table, new = self._run(ids, max_tokens, body)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "logprobs": None}
        shown = [*(ids if echo else ()), *new]
        first = 0 if echo else len(ids)
        choice["text"] = self._tokenizer.decode(shown, skip_special_tokens=False)
        if logprobs and abilities.logprobs:
            tops = [self._top(table, first + i, logprobs, shown[i]) for i in range(len(shown))]
            choice["logprobs"] = self._logprobs(shown, tops, abilities)
        if wanted is not None and abilities.prompt_logprobs:
            choice["prompt_logprobs"] = [
                self._by_id(self._top(table, i, wanted, ids[i]), ids[i], abilities)
                for i in range(len(ids))
            ]
        return {
            "object": "text_completion",
            "choices": [choice],
            **self._usage(ids, new, abilities),
        }

    def chat(self, body: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
        """The body of an answer of /v1/chat/completions."""
        form = body.get("response_format") or {}
        kind = form.get("type")
        if (kind == "json_schema" and not abilities.json_schema) or (
            kind == "json_object" and not abilities.json_object
        ):
            raise Refused(400, f"response_format {kind} is not supported")
        if body.get("logprobs") and body.get("top_logprobs", 0) > abilities.chat_logprobs:
            raise Refused(400, f"top_logprobs must be at most {abilities.chat_logprobs}")
        text = "".join(f"{turn['content']}\n" for turn in body["messages"])
        # A model of 128 tokens reads the end of a conversation.
        ids = self._tokenizer.encode(text).ids[-self._longest // 2 :]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        new: list[int] = []
        if kind:
            said = self._structured(form.get("json_schema", {}).get("schema"), body, ids)
        else:
            table, new = self._run(ids, min(int(body.get("max_tokens", 16)), 32), body)
            said = self._tokenizer.decode(new)
            choice["finish_reason"] = "length"
            if body.get("logprobs"):
                top = self._top(table, len(ids), body["top_logprobs"], new[0]) or {}
                listed = [{"token": self._text(i), "logprob": lp} for i, lp in top.items()]
                first = {**listed[0], "top_logprobs": listed[: body["top_logprobs"]]}
                choice["logprobs"] = {"content": [first]}
        choice["message"] = {"role": "assistant", "content": said}
        return {
            "object": "chat.completion",
            "choices": [choice],
            **self._usage(ids, new, abilities),
        }

    def next_logprobs(self, text: str) -> torch.Tensor:
        """Log probabilities [vocabulary] of what comes after a text."""
        ids = self._tokenizer.encode(text).ids
        table, _ = self._run(ids, 1, {})
        return table[len(ids) - 1]

    def _run(
        self, ids: list[int], max_tokens: int, body: dict[str, Any]
    ) -> tuple[torch.Tensor, list[int]]:
        """Log probabilities [positions, vocabulary] after each token, and the greedy new tokens."""
        if len(ids) + max_tokens > self._longest:
            raise Refused(
                400,
                f"This model's maximum context length is {self._longest} tokens, but "
                f"{len(ids) + max_tokens} were requested.",
                "context_length_exceeded",
            )
        new: list[int] = []
        with self._lock, torch.inference_mode():
            while True:
                logits = self._model(torch.tensor([ids + new])).logits[0].double() + self._lift
                if len(new) == max_tokens:
                    break
                new.append(int(logits[-1].argmax()))
        return torch.log_softmax(logits, dim=-1), new

    def _top(
        self, table: torch.Tensor, position: int, count: int, own: int
    ) -> dict[int, float] | None:
        """Likely tokens at a position, the one that stands there among them; None at the first."""
        if position == 0:
            return None
        row = table[position - 1]
        values, ids = row.topk(count)
        listed = dict(zip(ids.tolist(), values.tolist(), strict=True))
        listed.setdefault(own, float(row[own]))
        return listed

    def _logprobs(
        self, ids: Sequence[int], tops: list[dict[int, float] | None], abilities: Abilities
    ) -> dict[str, Any]:
        if abilities.content_logprobs:
            content = [
                {
                    "token": self._text(own),
                    "logprob": (top or {}).get(own),
                    "top_logprobs": [
                        {"token": self._text(i), "logprob": lp} for i, lp in (top or {}).items()
                    ],
                }
                for own, top in zip(ids, tops, strict=True)
            ]
            return {"content": content}
        offsets, at = [], 0
        texts = [self._text(i, abilities) for i in ids]
        for text in texts:
            offsets.append(at)
            at += len(text)
        named = [
            None if top is None else {self._text(i, abilities): lp for i, lp in top.items()}
            for top in tops
        ]
        own = [None if t is None else t[i] for i, t in zip(ids, tops, strict=True)]
        return {
            "tokens": texts,
            "token_logprobs": own,
            "top_logprobs": named,
            "text_offset": offsets,
        }

    def _by_id(
        self, top: dict[int, float] | None, own: int, abilities: Abilities
    ) -> dict[str, Any] | None:
        if top is None:
            return None
        ordered = {own: top[own], **top}
        return {
            str(i): {"logprob": lp, "rank": rank, "decoded_token": self._text(i, abilities)}
            for rank, (i, lp) in enumerate(ordered.items(), start=1)
        }

    def _structured(self, schema: Any, body: dict[str, Any], ids: list[int]) -> str:
        """What the model answers when it may only write what the schema allows."""
        properties = (schema or {}).get("properties", {})
        if "activations" in properties or schema is None:
            tokens = json.loads(body["messages"][-1]["content"]).get("tokens", [])
            items = [{"token": token, "activation": self._number(token)} for token in tokens]
            return json.dumps({"activations": items})
        choices = properties["answer"].get("enum", [1])
        table, _ = self._run(ids, 1, {})
        firsts = [self._tokenizer.encode(str(choice)).ids[0] for choice in choices]
        best = max(range(len(choices)), key=lambda i: float(table[len(ids) - 1, firsts[i]]))
        one: object = choices[best]
        return json.dumps({"answer": [one] if properties["answer"].get("type") == "array" else one})

    def _number(self, token: str) -> int:
        row = self.next_logprobs(f"{token}\t")
        values = [self._tokenizer.token_to_id(str(value)) for value in range(10)]
        return int(row[values].argmax())

    def _usage(self, ids: list[int], new: list[int], abilities: Abilities) -> dict[str, Any]:
        with self._lock:
            common = max((_common(ids, seen) for seen in self._seen), default=0)
            self._seen = [*self._seen[-15:], ids]
        if not abilities.usage:
            return {}
        cached = common // _BLOCK * _BLOCK
        usage = {
            "prompt_tokens": len(ids),
            "completion_tokens": len(new),
            "total_tokens": len(ids) + len(new),
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        return {"usage": usage}

    def _text(self, token_id: int, abilities: Abilities | None = None) -> str:
        token = self._tokenizer.id_to_token(token_id) or ""
        if any(letter not in self._bytes for letter in token):
            return token
        raw = bytes(self._bytes[letter] for letter in token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            if abilities is not None and abilities.merges_bytes:
                return "\ufffd"
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _common(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _bytes_of_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in plain)
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}

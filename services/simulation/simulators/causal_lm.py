"""The simulator that asks a local language model, and reads its exact probabilities.

`all_at_once`: the prompt shows the whole sequence with every value hidden; what the model expects
where each hidden value stands is the prediction of that token, so one forward pass predicts them
all. A token is predicted from the tokens up to it and from no predicted value.

`one_at_a_time`: a prompt a token, which shows the text up to it and asks for its value. No value
of an earlier token stands in it, hidden or predicted, as in the reference.

What prompts share is computed once: the examples once a model, the explanation once an explanation.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import structlog

from services.simulation.errors import InvalidInput
from services.simulation.language_models.local.language_model import (
    DEFAULT_BATCH_TOKENS,
    LocalLanguageModel,
)
from services.simulation.language_models.local.rows import WorkStopped
from services.simulation.prompts.simulation import (
    PROMPTS,
    AllAtOncePrompt,
    Pieces,
    logprob_prompt,
)
from services.simulation.simulators.interface import (
    OneByOne,
    SimulatedSequence,
    check_request,
)
from services.simulation.simulators.prompted_passes import PromptInUse, simulate_steps
from services.simulation.simulators.sequence_rows import (
    AllAtOnceRows,
    OneAtATimeRows,
    SequencePlanner,
)
from services.simulation.simulators.token_pieces import PieceTokenizer
from services.simulation.simulators.value_reading import ValueReading
from shared.errors import FailedPrecondition, NeuropilError, ResourceExhausted

if TYPE_CHECKING:
    from services.simulation.language_models.local.model import LocalModel

_log = structlog.get_logger(__name__)

Method = Literal["auto", "all_at_once", "one_at_a_time"]

_ROOM_WANTED = 128
"""Ids that a prompt must leave for explanation and sequence, to be taken before a shorter one."""
_LEAST_ROOM = 16
"""Ids that an explanation must leave for the sequence."""
_LONGEST_ROW = 4096
"""Ids of a row at most, of a model that reads more. Not a setting: answers depend on it."""
_IDS_A_TOKEN = 5


class CausalLmSimulator(OneByOne):
    """Predicts with a language model of a local folder.

    `prompt` names a prompt file; without it, the one that fits the model's context is taken.
    """

    kind: ClassVar[str] = "causal_lm"
    has_exact_probabilities: ClassVar[bool] = True
    description: ClassVar[str] = (
        "Asks a local language model how strongly each token fits, given examples; as good as that "
        "model is: one of a few million parameters is hardly better than chance."
    )

    def __init__(
        self,
        name: str,
        language_model: LocalLanguageModel,
        *,
        method: Method = "auto",
        prompt: str | None = None,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> None:
        """Nothing is loaded yet.

        Raises:
            ConfigurationError: there is no such prompt, or it is one for another method.
        """
        self.name = name
        self.language_model = language_model
        if prompt is not None:
            self._prompts = [logprob_prompt(prompt, method)]
        else:
            named = PROMPTS["all_at_once" if method == "auto" else method]
            self._prompts = [logprob_prompt(name, method) for name in named]
        self.method = self._prompts[0].method
        self._batch_tokens = batch_tokens
        self._prepared: PromptInUse | None = None
        self._failure = ""

    @property
    def model(self) -> str:
        """Name and version of the language model."""
        return self.language_model.version

    @property
    def prompt_version(self) -> str:
        """Version of the prompt; before the model is loaded, of the one that is tried first."""
        return self._prepared.prompt.version if self._prepared else self._prompts[0].version

    @property
    def state(self) -> str:
        """As `Simulator.state`."""
        if self.language_model.state != "ready":
            return self.language_model.state
        if self._prepared is not None:
            return "ready"
        return f"failed: {self._failure}" if self._failure else "loading"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """As `Simulator.capabilities`."""
        model, prepared = self.language_model.model, self._prepared
        if model is None or prepared is None:
            return ()
        return tuple(_capabilities(self.method, model, prepared))

    def start(self) -> None:
        """Load the model in the background; a call that comes earlier waits for it."""
        self.language_model.submit(self._prepare_steps).add_done_callback(self._report)

    async def close(self) -> None:
        """Stop after the running forward pass."""
        await self.language_model.close()

    async def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """One result a sequence, in order; see `Simulator.simulate`.

        Raises:
            FailedPrecondition: the model's tokenizer or context doesn't serve the prompt.
            ResourceExhausted: the explanation leaves the model no room for a sequence.
            InvalidInput: the tokenizer has no ids for the explanation.
        """
        check_request(explanation, sequences)
        for batch in self._batches(sequences):
            work = partial(self._simulate_steps, explanation=explanation, batch=batch)
            for result in await self.language_model.run(work):
                yield result

    def _batches(self, sequences: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
        """Sequences that run together; a prompt a token fills a batch with one sequence."""
        most = 1 if self.method == "one_at_a_time" else max(1, self._batch_tokens // _IDS_A_TOKEN)
        batch: list[Sequence[str]] = []
        filled = 0
        for tokens in sequences:
            if batch and filled + len(tokens) > most:
                yield batch
                batch, filled = [], 0
            batch.append(tokens)
            filled += len(tokens)
        if batch:
            yield batch

    def _prepare_steps(self, model: LocalModel) -> Generator[None, None, None]:
        self._prepare(model)
        yield

    def _report(self, loading: Future[None]) -> None:
        error = None if loading.cancelled() else loading.exception()
        if loading.cancelled() or isinstance(error, WorkStopped):
            # The service ended before the model was there.
            return
        if error is None:
            _log.info("simulator_loaded", simulator=self.name, capabilities=self.capabilities)
        else:
            # Calls try again, and answer the error if that fails too.
            _log.error("simulator_not_loaded", simulator=self.name, error=str(error))

    def _prepare(self, model: LocalModel) -> PromptInUse:
        if self._prepared is None:
            try:
                self._prepared = self._fitting(model)
            except NeuropilError as error:
                self._failure = error.message
                raise
        return self._prepared

    def _fitting(self, model: LocalModel) -> PromptInUse:
        """The first prompt that the model's context has room for, in the model's tokens."""
        tokenizer = PieceTokenizer.of_transformers(model.tokenizer)
        reading = ValueReading.of(tokenizer)
        limit = model.max_positions
        for prompt in self._prompts:
            shared = _shared_ids(tokenizer, prompt.shared)
            wanted = _LEAST_ROOM if prompt is self._prompts[-1] else _ROOM_WANTED
            if limit is None or limit - len(shared) >= wanted:
                planner: SequencePlanner = (
                    AllAtOnceRows(prompt, tokenizer)
                    if isinstance(prompt, AllAtOncePrompt)
                    else OneAtATimeRows(prompt, tokenizer)
                )
                return PromptInUse(prompt, tokenizer, reading, planner, shared)
        raise FailedPrecondition(
            f"the prompt {prompt.version} takes {len(shared)} of the {limit} tokens that the model "
            "reads; another prompt or model is needed",
            reason="CONTEXT_TOO_SHORT",
        )

    def _simulate_steps(
        self, model: LocalModel, *, explanation: str, batch: Sequence[Sequence[str]]
    ) -> Generator[None, None, list[SimulatedSequence]]:
        prepared = self._prepare(model)
        own = prepared.tokenizer.joined(prepared.prompt.explained(explanation), "explanation")
        room = self._room(model, prepared, len(own))
        return (yield from simulate_steps(model, prepared, own, batch, room))

    def _room(self, model: LocalModel, prepared: PromptInUse, explanation: int) -> int:
        """Ids that a row may have."""
        if model.max_positions is None:
            return _LONGEST_ROW
        taken = len(prepared.shared) + explanation + len(prepared.reading.branch)
        room = model.max_positions - taken
        if room < _LEAST_ROOM:
            raise ResourceExhausted(
                f"the explanation takes {explanation} tokens of the model's context of "
                f"{model.max_positions}, and the prompt {len(prepared.shared)}; that leaves no "
                "room for a sequence",
                field="explanation",
                reason="EXPLANATION_TOO_LONG",
                metadata={"tokens": str(explanation), "limit": str(room + explanation)},
            )
        return min(room, _LONGEST_ROW)


def _shared_ids(tokenizer: PieceTokenizer, pieces: Pieces) -> tuple[int, ...]:
    try:
        return (*tokenizer.beginning, *tokenizer.joined(pieces, "prompt"))
    except InvalidInput as error:
        # The prompt is ours: no caller can mend it.
        raise FailedPrecondition(error.message, reason="TOKENIZER_NOT_SERVED") from error


def _capabilities(method: str, model: LocalModel, prepared: PromptInUse) -> Iterator[str]:
    if method == "all_at_once":
        yield "all_at_once: one forward pass predicts all tokens of a sequence"
    else:
        yield "one_at_a_time: one prompt a token"
    yield (
        "what prompts share is computed once"
        if model.shares_prefix
        else f"every prompt is computed whole: {model.shares_prefix_reason}"
    )
    room = None if model.max_positions is None else model.max_positions - len(prepared.shared)
    if room is None or room > _LONGEST_ROW:
        yield f"a window of a sequence has {_LONGEST_ROW} tokens at most"
    else:
        yield (
            f"reads {model.max_positions} tokens, of which the prompt leaves {room} for the "
            "explanation and a window of a sequence"
        )
    if prepared.reading.branch:
        yield (
            f'the tokenizer splits "{prepared.reading.longer}", so what follows on its first part '
            "is computed too"
        )

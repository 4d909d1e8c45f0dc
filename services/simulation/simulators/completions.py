"""The completions simulator: a language model behind a server, by log probabilities.

Where the server tells the log probabilities of a prompt's own tokens, one request has the numbers
of a whole sequence. Where it tells those of the next token alone, each token has a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from services.simulation.language_models.remote.capabilities import Capabilities
from services.simulation.language_models.remote.commands import without_commands
from services.simulation.language_models.remote.completions_api import EchoWay
from services.simulation.language_models.remote.failures import RequestRefused, UnreadableAnswer
from services.simulation.language_models.remote.model import RemoteLanguageModel
from services.simulation.language_models.remote.ordered import in_order
from services.simulation.parsing.echoed_prompts import (
    NO_LOGPROBS,
    HiddenValue,
    read_hidden_values,
)
from services.simulation.parsing.value_logprobs import (
    NOT_A_LOGPROB,
    Unreadable,
    is_logprob,
    value_distribution,
)
from services.simulation.prompts.simulation import (
    PROMPTS,
    AllAtOncePrompt,
    OneAtATimePrompt,
    logprob_prompt,
)
from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.interface import (
    SimulatedSequence,
    SimulationCost,
    TokenIssue,
    TokenOutcome,
    check_explanations,
    check_request,
)
from services.simulation.simulators.server_windows import (
    Simulate,
    joined,
    numbered,
    require_too_long,
    room,
    simulate_in_windows,
    too_long,
    without_values,
)
from shared.errors import FailedPrecondition, NeuropilError, ResourceExhausted

Method = Literal["auto", "all_at_once", "one_at_a_time"]
LogprobPrompt = AllAtOncePrompt | OneAtATimePrompt

MAY_BE_TEN = 0.005
"""Where a tokenizer makes "1" and "0" of "10": a 1 less probable than this is taken as a 1."""
_WANTED = ("the words that name a day of the week, or a month", (" word",) * 32)
"""What a prompt should leave room for: where it doesn't, a shorter one is better."""
_LEAST = ("a", ("a",))


@dataclass(frozen=True, slots=True)
class Plan:
    """How this server is asked."""

    prompt: LogprobPrompt
    way: EchoWay | None
    """None: for each next token."""
    logprobs: int
    splits_ten: bool
    """Whether a "1" may be the beginning of a 10."""


class CompletionsSimulator:
    """Asks an OpenAI-compatible server for log probabilities where the numbers stand."""

    kind: ClassVar[str] = "completions"
    has_exact_probabilities: ClassVar[bool] = True
    description: ClassVar[str] = (
        "Asks a language model behind an OpenAI-compatible server, by the log probabilities of "
        "the numbers 0 to 10."
    )

    def __init__(
        self,
        name: str,
        language_model: RemoteLanguageModel,
        *,
        method: Method = "auto",
        prompt: str | None = None,
    ) -> None:
        """Raise ConfigurationError where there is no such prompt, or it is for another method."""
        self.name = name
        self.model = language_model.version
        self.language_model = language_model
        self._method: Method = method
        self._configured = None if prompt is None else logprob_prompt(prompt, method)
        if isinstance(self._configured, OneAtATimePrompt):
            self._method = "one_at_a_time"
        self._plan: Plan | None = None
        self._planning: asyncio.Task[None] | None = None

    @property
    def prompt_version(self) -> str:
        """Of the prompt in use; until the server was asked, of the one that is tried first."""
        if self._plan is not None:
            return self._plan.prompt.version
        method = "all_at_once" if self._method == "auto" else self._method
        return (self._configured or logprob_prompt(PROMPTS[method][0], method)).version

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What was found out about the server."""
        if self._plan is None:
            return self.language_model.capabilities
        method = "one at a time" if self._plan.way is None else "all at once"
        return (*self.language_model.capabilities, f"tokens are simulated {method}")

    @property
    def state(self) -> str:
        """As `Simulator.state`."""
        known = self.language_model.known
        if known is not None:
            try:
                self._method_of(known)
            except FailedPrecondition as error:
                return f"failed: {error.message}"
        return self.language_model.state

    def start(self) -> None:
        """Find out, in the background, what the server can do."""
        self.language_model.start()
        if self._planning is None:
            self._planning = asyncio.create_task(self._plan_ahead())

    async def close(self) -> None:
        """End what is under way."""
        if self._planning is not None:
            self._planning.cancel()
            with suppress(asyncio.CancelledError):
                await self._planning
        await self.language_model.close()

    async def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """One result a sequence, in order; see `Simulator.simulate`."""
        check_request(explanation, sequences)
        plan = await self._planned()
        calls = [partial(self._sequence, plan, explanation, tokens) for tokens in sequences]
        async with aclosing(self._in_order(calls)) as results:
            async for result in results:
                yield result

    async def simulate_explanations(
        self, explanations: Sequence[str], tokens: Sequence[str]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """As `Simulator.simulate_explanations`; several requests are under way at a time."""
        check_explanations(explanations, tokens)
        plan = await self._planned()
        calls = [
            partial(numbered, position, partial(self._sequence, plan, explanation, tokens))
            for position, explanation in enumerate(explanations)
        ]
        async with aclosing(self._in_order(calls)) as results:
            async for result in results:
                yield result

    async def _in_order(
        self, calls: Sequence[Callable[[], Awaitable[SimulatedSequence]]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        ahead = self.language_model.server.max_concurrent
        try:
            async with aclosing(in_order(calls, ahead)) as results:
                async for result in results:
                    yield result
        except RequestRefused:
            # It could do that before: what it can do now is found out at the next call.
            self.language_model.forget()
            self._plan = None
            raise

    async def _plan_ahead(self) -> None:
        await self.language_model.ready()
        # Where this fails, the next call tries again, and says why.
        with suppress(NeuropilError):
            await self._planned()

    def _method_of(self, found: Capabilities) -> str:
        """The method that the server serves; FailedPrecondition where it can't do the one asked."""
        method = self._method
        if method == "auto":
            method = "all_at_once" if found.echo is not None else "one_at_a_time"
        able = found.echo is not None if method == "all_at_once" else found.next_token_logprobs > 0
        if not able:
            raise FailedPrecondition(
                f"{self.model} tells no log probabilities as the method {method} needs them; "
                "use a simulator of kind chat, or another method",
                reason="NO_LOG_PROBABILITIES",
                metadata={"capabilities": "; ".join(found.sentences)},
            )
        return method

    async def _planned(self) -> Plan:
        if self._plan is not None and self.language_model.state == "ready":
            return self._plan
        found = await self.language_model.found()
        method = self._method_of(found)
        way = found.echo if method == "all_at_once" else None
        prompt = self._configured or await self._fitting(method, way, found.next_token_logprobs)
        self._plan = Plan(prompt, way, found.next_token_logprobs, found.splits_ten is not False)
        return self._plan

    async def _fitting(self, method: str, way: EchoWay | None, logprobs: int) -> LogprobPrompt:
        """The first of the method's prompts that leaves the server's model room for a sequence.

        Where none does, the last one, as long as it leaves room for a token.
        """
        api = self.language_model.completions
        names = PROMPTS[method]
        for name, sample in (*((name, _WANTED) for name in names), (names[-1], _LEAST)):
            prompt = logprob_prompt(name, method)
            text = prompt.text(*sample).text
            try:
                await (api.echoed(text, way) if way is not None else api.next_token(text, logprobs))
            except UnreadableAnswer:
                # Each call reports its own.
                return prompt
            except ResourceExhausted as error:
                if error.reason != "PROMPT_TOO_LONG" or sample is _LEAST:
                    raise
            else:
                return prompt
        raise AssertionError("the last prompt is taken or raises")

    async def _sequence(
        self, plan: Plan, explanation: str, tokens: Sequence[str]
    ) -> SimulatedSequence:
        explanation = without_commands(explanation)
        texts = [without_commands(token) for token in tokens]
        if plan.way is not None and isinstance(plan.prompt, AllAtOncePrompt):
            simulate = partial(self._all_at_once, plan, plan.prompt, plan.way, explanation)
            whole = await simulate_in_windows(texts, simulate)
        else:
            whole = await self._one_at_a_time(plan, explanation, texts)
        return SimulatedSequence(tokens, whole.probabilities, whole.issues, whole.cost)

    async def _all_at_once(
        self,
        plan: Plan,
        prompt: AllAtOncePrompt,
        way: EchoWay,
        explanation: str,
        tokens: Sequence[str],
    ) -> SimulatedSequence:
        whole = prompt.text(explanation, tokens)
        hidden = [
            HiddenValue(value - 1 - len(token), value, len(prompt.hidden))
            for token, value in zip(tokens, whole.values, strict=True)
        ]
        echoed, cost = await self.language_model.completions.echoed(whole.text, way)
        try:
            probabilities, issues = read_hidden_values(whole.text, hidden, echoed)
        except Unreadable as error:
            return without_values(tokens, TokenOutcome.MALFORMED, str(error), cost)
        result = SimulatedSequence(tokens, probabilities, issues, cost)
        if not plan.splits_ten:
            return result
        return await self._with_tens(plan, result, whole.text, whole.values)

    async def _one_at_a_time(
        self, plan: Plan, explanation: str, tokens: Sequence[str]
    ) -> SimulatedSequence:
        """A request a token.

        The last token that fits with any context is asked first: how many tokens the others see at
        most is settled before they are asked at the same time, and so doesn't depend on timing.
        """
        simulate = partial(self._last_token, plan, explanation)
        parts: list[SimulatedSequence] = []
        longest, fits, end = len(tokens), False, len(tokens)
        while end > 0 and not fits:
            part, seen = await _last_of(tokens[:end], simulate, room_known=bool(parts))
            parts.insert(0, part)
            fits = seen > 0
            if fits and seen < end:
                longest = seen
            end -= 1
        calls = [
            partial(_last_of, tokens[max(0, stop - longest) : stop], simulate, room_known=True)
            for stop in range(1, end + 1)
        ]
        ahead = self.language_model.server.max_concurrent
        async with aclosing(in_order(calls, ahead)) as results:
            earlier = [part async for part, _ in results]
        return joined(tokens, earlier + parts)

    async def _last_token(
        self, plan: Plan, explanation: str, context: Sequence[str]
    ) -> SimulatedSequence:
        """The last token of `context`, by one request."""
        token = context[-1:]
        whole = plan.prompt.text(explanation, context)
        # Tokens stand side by side here: two of them may read as a command.
        prompt = without_commands(whole.text[: whole.values[-1]])
        try:
            top, cost = await self.language_model.completions.next_token(prompt, plan.logprobs)
        except UnreadableAnswer as error:
            return without_values(token, TokenOutcome.MALFORMED, error.message)
        try:
            if top is None:
                raise Unreadable(NO_LOGPROBS)
            probabilities = value_distribution(top)[None]
        except Unreadable as error:
            return without_values(token, TokenOutcome.MALFORMED, str(error), cost)
        result = SimulatedSequence(token, probabilities, (), cost)
        if not plan.splits_ten:
            return result
        return await self._with_tens(plan, result, prompt, [len(prompt)])

    async def _with_tens(
        self, plan: Plan, result: SimulatedSequence, text: str, values: Sequence[int]
    ) -> SimulatedSequence:
        """Divide the probability of a first "1" among 1 and 10, by what would come after it.

        `values` are where the values of the tokens stand in the text.
        """
        ones, tens = result.probabilities[:, 1], result.probabilities[:, NUM_VALUES - 1]
        asked = [int(p) for p in np.flatnonzero((ones > MAY_BE_TEN) & (tens == 0))]
        calls = [partial(self._ten_after_one, plan, text, values[position]) for position in asked]
        ahead = self.language_model.server.max_concurrent
        async with aclosing(in_order(calls, ahead)) as results:
            shares = [share async for share in results]
        probabilities, issues, cost = result.probabilities.copy(), list(result.issues), result.cost
        for position, (share, spent) in zip(asked, shares, strict=True):
            cost += spent
            if isinstance(share, str):
                probabilities[position] = 0.0
                issues.append(TokenIssue(position, TokenOutcome.MALFORMED, share))
            else:
                probabilities[position, NUM_VALUES - 1] = probabilities[position, 1] * share
                probabilities[position, 1] *= 1.0 - share
        issues.sort(key=lambda issue: issue.position)
        return SimulatedSequence(result.tokens, probabilities, tuple(issues), cost)

    async def _ten_after_one(
        self, plan: Plan, text: str, value: int
    ) -> tuple[float | str, SimulationCost]:
        """Probability of "0" after "1" at `value`, or why there is none, and what asking cost."""
        api = self.language_model.completions
        if not plan.logprobs:
            return NO_LOGPROBS, SimulationCost()
        try:
            top, cost = await api.next_token(f"{text[:value]}1", plan.logprobs)
        except UnreadableAnswer as error:
            return error.message, SimulationCost(calls=1)
        if top is None:
            return NO_LOGPROBS, cost
        logprob = top.get("0", -np.inf)
        if not is_logprob(logprob):
            return NOT_A_LOGPROB, cost
        return min(1.0, float(np.exp(logprob))), cost


async def _last_of(
    context: Sequence[str], simulate: Simulate, *, room_known: bool
) -> tuple[SimulatedSequence, int]:
    """The last token after as many of those before it as fit, and how many tokens it is of.

    They are halved until they fit. 0 where the token alone is too long; unless `room_known`, it is
    asked then whether another one would fit.
    """
    while True:
        try:
            return await simulate(context), len(context)
        except ResourceExhausted as error:
            require_too_long(error)
            if len(context) == 1:
                cost = SimulationCost() if room_known else await room(simulate, error)
                return too_long(context, cost), 0
        context = context[-(len(context) // 2) :]

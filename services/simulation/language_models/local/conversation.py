"""Prompts as ids: by the tokenizer's chat template where it has one, else as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.simulation.errors import InvalidInput
from services.simulation.language_models.interface import Message, Prompt
from services.simulation.simulators.words import readable
from shared.errors import FailedPrecondition

if TYPE_CHECKING:
    from services.simulation.language_models.local.model import LocalModel


def prompt_ids(model: LocalModel, prompt: Prompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of what may be shared, and of the rest, which has one at least.

    Both together are the ids of the whole prompt; what is shared is where these and the ids of
    `prompt.shared` alone are the same.

    Raises:
        InvalidInput: the prompt is empty.
        FailedPrecondition: the chat template refuses it, or is broken.
    """
    whole = message_ids(model, prompt.messages, answered=True)
    if not whole:
        raise InvalidInput("the prompt is empty", field="prompt")
    if not prompt.shared:
        return (), whole
    try:
        shared = message_ids(model, prompt.shared, answered=False)
    except FailedPrecondition:
        # A template may refuse a conversation without a user; the whole then is computed.
        return (), whole
    common = 0
    for first, second in zip(shared, whole[:-1], strict=False):
        if first != second:
            break
        common += 1
    return whole[:common], whole[common:]


def message_ids(
    model: LocalModel, messages: Sequence[Message], *, answered: bool
) -> tuple[int, ...]:
    """Ids of messages; where they are `answered`, up to where the answer begins."""
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        text = readable("".join(_plain(tokenizer, message.content) for message in messages))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*model.start_ids, *(int(token) for token in ids))
    plain = [Message(each.role, _plain(tokenizer, each.content)) for each in messages]
    text = readable(_templated(tokenizer, plain, answered))
    return tuple(int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"])


def _plain(tokenizer: Any, content: str) -> str:
    """The content, in which nothing looks like a mark that the tokenizer reads as one id.

    A text that shows "<|endoftext|>" must not end the prompt there: it becomes "< |endoftext|>".
    """
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and token.content in content:
            content = content.replace(token.content, f"{token.content[:1]} {token.content[1:]}")
    return content


def _templated(tokenizer: Any, messages: list[Message], answered: bool) -> str:
    begun = answered and bool(messages) and messages[-1].role == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            tokenize=False,
            add_generation_prompt=answered and not begun,
            continue_final_message=begun,
            # Of a template that knows it: a model that thinks first answers nothing that is read.
            enable_thinking=False,
        )
    # A template is code of the folder's, which may fail in any way.
    except Exception as error:
        folded = _without_system(messages)
        if folded != messages:
            return _templated(tokenizer, folded, answered)
        raise FailedPrecondition(
            f"the model's chat template refuses the prompt: {error}",
            reason="CHAT_TEMPLATE_REFUSED",
        ) from error
    return str(text)


def _without_system(messages: list[Message]) -> list[Message]:
    """System messages as the beginning of the user's next one, for templates that know none."""
    result: list[Message] = []
    waiting = ""
    for message in messages:
        if message.role == "system":
            waiting += message.content + "\n\n"
        elif message.role == "user" and waiting:
            result.append(Message("user", waiting + message.content))
            waiting = ""
        else:
            result.append(message)
    return result if not waiting else [*result, Message("user", waiting.rstrip())]

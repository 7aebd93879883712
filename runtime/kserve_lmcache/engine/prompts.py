"""Prompts of requests that are about the cache: their tokens, their keys, and computing them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from kserve.errors import ModelNotFound
from kserve.protocol.rest.openai.types import ChatCompletionRequest, CompletionRequest
from pydantic import ValidationError

from kserve_lmcache.compat import vllm
from kserve_lmcache.engine import tenant as tenants
from kserve_lmcache.engine.errors import RefusedError
from kserve_lmcache.engine.usage import Details
from kserve_lmcache.identity.tag import Tag, digest

# What a request about the cache says of generation, if anything, is not taken over.
_DROPPED = ("stream", "stream_options", "n", "best_of", "max_tokens", "max_completion_tokens")
# Change the tokens of a prompt, in versions of vLLM whose route /tokenize does not know them.
_CHANGE_PROMPTS = (
    "documents",
    "media_io_kwargs",
    "mm_processor_kwargs",
    "reasoning_effort",
    "truncate_prompt_tokens",
)
_LAST = 2**31 - 1  # of vLLM's priorities: all other requests come first
_PRIORITY = "priority"
_TEXTS = ("text", "input_text", "output_text", "refusal", "thinking")


@dataclass(frozen=True)
class Prompt:
    """A prompt as the workers know it.

    Attributes:
        tokens: of the prompt.
        tag: of requests with the prompt.
    """

    tokens: list[int]
    tag: str


class Prompts:
    """Reads prompts for the one model.

    Args:
        model: its handlers, its engine and its adapters.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    async def read(self, body: Mapping[str, Any], tenant: str, raw_request: Request) -> Prompt:
        """The prompt of a body, which has ``prompt`` or ``messages`` as a request for an answer.

        Raises:
            RefusedError, RequestValidationError: there is no prompt, or it cannot be read.
        """
        prompt, messages = body.get("prompt"), body.get("messages")
        if (prompt is None) == (messages is None):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "name one of prompt and messages")
        if isinstance(prompt, list):
            if not all(type(token) is int for token in prompt):
                message = "prompt must be one text, or one list of tokens"
                raise RefusedError(HTTPStatus.BAD_REQUEST, message, param="prompt")
            tokens: list[int] = prompt
        else:
            tokens = await self._tokens(body, raw_request)
        salt = tenants.salt(tenant, body.get("cache_salt"))
        adapter = await self.adapter(body.get("model"))
        return Prompt(tokens, str(Tag(digest(salt or ""), digest(tenant), digest(adapter))))

    async def adapter(self, name: str | None) -> str:
        """The content of the adapter that a model's name stands for; empty for the model itself.

        Raises:
            ModelNotFound: there is no such model.
            RefusedError: the adapter's content is not known, and nothing of it is cached.
        """
        adapters = self._model.openai_serving_models.lora_requests
        if not name or name in (
            self._model.model_name,
            *(self._model.args.served_model_name or ()),
        ):
            return ""
        if name not in adapters:
            raise ModelNotFound(name)
        content: str | None = await self._model.engine_client.engine_core.adapters.content(
            adapters[name]
        )
        if content is None:
            message = f"the content of adapter {name} is not known: nothing of it is cached"
            raise RefusedError(HTTPStatus.CONFLICT, message, param="model")
        return content

    async def adapter_names(self) -> dict[str, list[str]]:
        """The names of the loaded adapters by the digest of their content."""
        names: dict[str, list[str]] = {}
        for name in self._model.openai_serving_models.lora_requests:
            try:
                names.setdefault(digest(await self.adapter(name)), []).append(name)
            except RefusedError:
                continue
        return names

    async def compute(self, body: Mapping[str, Any], raw_request: Request) -> dict[str, int]:
        """Let the engine load or compute a prompt, and store what is new.

        Returns:
            Tokens by where they came from: ``prefix_cache``, a tier, ``computed``.

        Raises:
            RefusedError, RequestValidationError: the model refuses the prompt.
        """
        fields: dict[str, Any] = {k: v for k, v in body.items() if k not in _DROPPED}
        fields["model"] = fields.get("model") or self._model.model_name
        if self._model.engine_config.scheduler_config.policy == _PRIORITY:
            fields[_PRIORITY] = _LAST
        is_chat = fields.get("messages") is not None
        fields["max_completion_tokens" if is_chat else "max_tokens"] = 1
        chat, completion = self._model.openai_serving_chat, self._model.openai_serving_completion
        if (chat if is_chat else completion) is None:
            raise RefusedError(HTTPStatus.NOT_IMPLEMENTED, "this model does not answer prompts")
        details = Details()
        # The base's handlers: the model's own would begin other details.
        if is_chat:
            request = _made(ChatCompletionRequest, fields)
            answer = await chat.create_chat_completion(request, raw_request)
        else:
            request = _made(CompletionRequest, fields)
            answer = await completion.create_completion(request, raw_request)
        if isinstance(answer, vllm.ErrorResponse):
            error = answer.error
            raise RefusedError(int(error.code), error.message, error.type, error.param or None)
        return details.split(answer.usage.prompt_tokens)

    async def _tokens(self, body: Mapping[str, Any], raw_request: Request) -> list[int]:
        kind = vllm.TokenizeCompletionRequest if body.get("messages") is None else None
        kind = kind or vllm.TokenizeChatRequest
        known = kind.model_fields
        self._refuse_other_prompts(body, known)
        request = _made(kind, {name: value for name, value in body.items() if name in known})
        state = self._model.vllm_app.state
        answer = await state.serving_tokenization.create_tokenize(request, raw_request)
        if isinstance(answer, vllm.ErrorResponse):
            error = answer.error
            raise RefusedError(int(error.code), error.message, error.type, error.param or None)
        tokens: list[int] = answer.tokens
        return tokens

    def _refuse_other_prompts(self, body: Mapping[str, Any], known: Collection[str]) -> None:
        """Refuse a prompt whose keys are made of other tokens than those of ``/tokenize``.

        Raises:
            RefusedError: it is one.
        """
        message = ""
        changes = [n for n in _CHANGE_PROMPTS if body.get(n) is not None and n not in known]
        if changes:
            message = f"the routes of the cache do not know {', '.join(changes)}"
        elif any(_has_other_than_text(each) for each in body.get("messages") or ()):
            message = "the routes of the cache take prompts of text alone"
        elif body.get("messages") and getattr(self._model.openai_serving_chat, "use_harmony", 0):
            message = "the routes of the cache do not know how this model writes a chat"
        if message:
            fix = "Delete by tenant, cache_salt or adapter"
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{message}. {fix}")


def _has_other_than_text(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type", "text") not in _TEXTS for part in content
    )


def _made(kind: Any, fields: Mapping[str, Any]) -> Any:
    """A request of vLLM's.

    Raises:
        RequestValidationError: the fields do not fit. It is answered without their values.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        mistakes = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(mistakes) from None

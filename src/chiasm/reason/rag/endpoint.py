"""`Endpoint`: a chat model behind an OpenAI-compatible address, with every way it can fail told in one sentence.

A set-up that cannot work (wrong address, key or model) is `BadInput`; an endpoint that is down, slow, limited or answers
nonsense is `EndpointError`. Tries are repeated by the openai client (connection errors, 408, 409, 429, 5xx; with its
back-off and the server's Retry-After), and everything together ends at ``deadline``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from chiasm.errors import BadInput, ChiasmError, EndpointError, missing_extra

# A reply beyond this is no answer but a fault; it is cut.
MAX_REPLY = 100_000


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said.

    Args:
        text: its words, ``""`` if it refused.
        refusal: its words if it refused, ``""`` otherwise.
        cut: it ran into its limit of tokens.
        tokens: read and written, None if the endpoint does not say.
    """

    text: str
    refusal: str = ""
    cut: bool = False
    tokens: tuple[int, int] | None = None


class Endpoint:
    """A chat model at an address.

        >>> Endpoint("http://localhost:8080/v1").chat([{"role": "user", "content": "2 + 2?"}]).text

    Args:
        url: where ``/chat/completions`` is below, for example ``http://localhost:8080/v1``.
        model: its name; by default the first that the endpoint lists.
        key: default the environment variable ``OPENAI_API_KEY``; local servers need none.
        timeout: seconds that one try may take without sending anything.
        retries: further tries after one that failed in passing.
        deadline: seconds for everything, waiting between tries included.
        max_tokens: of a reply.
        temperature: 0 for the most probable reply.

    Raises:
        BadInput: no http(s) address, or numbers out of range.
        MissingExtra: the openai client is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        key: str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
        deadline: float = 90.0,
        max_tokens: int = 500,
        temperature: float = 0.0,
    ) -> None:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(f"{url!r} is no http address", where="Endpoint", fix="For example http://localhost:8080/v1")
        if timeout <= 0 or deadline <= 0 or retries < 0 or max_tokens < 1:
            raise BadInput(
                f"timeout={timeout}, retries={retries}, deadline={deadline}, max_tokens={max_tokens}", where="Endpoint"
            )
        try:
            import openai
        except ImportError as error:
            raise missing_extra("asking a language model", "rag", "openai") from error
        self.url, self.model = url, model
        # Messages show the address without a password that may stand in it.
        self.name = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
        self.deadline, self.max_tokens, self.temperature = deadline, max_tokens, temperature
        self._client = openai.OpenAI(
            base_url=url,
            api_key=key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=min(timeout, deadline),
            max_retries=retries,
        )

    def chat(self, messages: Sequence[dict[str, Any]]) -> Reply:
        """The model's reply to messages in the OpenAI form.

        Raises:
            BadInput: the address, key or model is wrong, or the request is not accepted.
            EndpointError: it is down, slow, limited, or what it says is no chat completion.
        """
        return self._within(lambda: self._chat(list(messages)))

    def _chat(self, messages: list[dict[str, Any]]) -> Reply:
        if self.model is None:
            self.model = self._first_model()
        request: Any = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}
        with _told(self.name):
            completion = self._client.chat.completions.create(**request, temperature=self.temperature)
        return _reply(completion, self.name)

    def _first_model(self) -> str:
        with _told(self.name):
            listed = self._client.models.list()
        data = getattr(listed, "data", None)
        names = [getattr(model, "id", None) for model in data] if isinstance(data, list) else []
        names = [name for name in names if isinstance(name, str) and name]
        if not names:
            raise BadInput("lists no model", where=self.name, fix="Name the model (--model)")
        return names[0]

    def _within(self, work: Any) -> Any:
        """Runs ``work`` until the deadline: a server that sends a byte now and then never runs into a timeout."""
        result: list[Any] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                result.append(work())
            except BaseException as error:  # handed to the calling thread
                failed.append(error)

        thread = threading.Thread(target=run, daemon=True, name="chiasm-endpoint")
        thread.start()
        thread.join(self.deadline)
        if thread.is_alive():
            raise EndpointError(
                f"did not finish within {self.deadline:g} s", where=self.name, fix="Try again, or allow more time"
            )
        if failed:
            raise failed[0]
        return result[0]


class _told:
    """Turns what the client raises into one of our errors."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, ChiasmError) or not isinstance(error, Exception):
            return
        raise told(error, self.name) from error


def told(error: Exception, name: str) -> ChiasmError:
    """What an error of the openai client means to the user."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return EndpointError("did not answer in time", where=name, fix="Try again, or allow more time")
    if isinstance(error, openai.APIConnectionError):
        return EndpointError("cannot be reached", where=name, fix="Is the server running, and is the address right?")
    if isinstance(error, openai.RateLimitError):
        return EndpointError("is limited (429, too many requests or no quota)", where=name, fix="Try again later")
    if isinstance(error, openai.APIStatusError):
        code = error.status_code
        said = _short(getattr(error, "message", "") or str(error))
        if code in (401, 403):
            return BadInput(f"does not accept the key ({code})", where=name, fix="Set OPENAI_API_KEY")
        if code == 404:
            fix = "Does the address end in /v1? Does the model exist?"
            return BadInput(f"has no such address or model (404: {said})", where=name, fix=fix)
        if code >= 500 or code in (408, 409, 425):
            return EndpointError(f"failed ({code}: {said})", where=name, fix="Try again later")
        return BadInput(f"does not accept the request ({code}: {said})", where=name)
    # Whatever else: a body that is no JSON, JSON of another shape, ...
    return EndpointError(
        f"answered with something that is no chat completion ({type(error).__name__}: {_short(str(error))})",
        where=name,
        fix="Is this an OpenAI-compatible address?",
    )


def _reply(completion: Any, name: str) -> Reply:
    """The text of a completion. The client checks nothing, so that every field may be missing or of another type."""
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if message is None:
        raise EndpointError(
            "answered with something that is no chat completion",
            where=name,
            fix="Is this an OpenAI-compatible address?",
        )
    text, refusal = getattr(message, "content", None), getattr(message, "refusal", None)
    finish = getattr(choice, "finish_reason", None)
    text = text.strip()[:MAX_REPLY] if isinstance(text, str) else ""
    refusal = refusal.strip()[:1000] if isinstance(refusal, str) else ""
    if not text and not refusal and finish == "content_filter":
        refusal = "stopped by a content filter"
    if not text and not refusal:
        raise EndpointError("answered with an empty message", where=name, fix="Try again, or another model")
    usage = getattr(completion, "usage", None)
    counts = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
    tokens = counts if all(isinstance(count, int) for count in counts) else None
    return Reply("" if refusal else text, refusal, finish == "length", tokens)  # type: ignore[arg-type]


def _short(text: str) -> str:
    folded = " ".join(text.split())
    return folded if len(folded) <= 160 else folded[:159] + "…"

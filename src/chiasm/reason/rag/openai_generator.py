"""`OpenAIGenerator`: a language model writes the answer from the passages and names them; what goes wrong is said.

What happens when the model does not do its part:

    wrong address, key, model or request                 error (`BadInput`): only the user can put it right
    down, slow, limited, no chat completion, empty       the offline answer, with a warning; an error if ``fallback=None``
    it refuses                                           the offline answer, with a warning; abstains if ``fallback=None``
    it says that the passages hold no answer             abstains
    it names passages that do not exist                  those numbers are taken out, with a warning
    it names no passage                                  the passage that shares most of its words is named, with a warning;
                                                         if none does: as if it had refused
    little of what it says stands in the passages        the answer, with a warning
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from chiasm.errors import ChiasmError, EndpointError
from chiasm.reason.rag import prompt
from chiasm.reason.rag.endpoint import Endpoint, Reply
from chiasm.reason.rag.extractive import ExtractiveGenerator
from chiasm.reason.rag.messages import Draft, Passage, Question
from chiasm.reason.rag.pipeline import Generator
from chiasm.reason.rag.words import content_words

# [2], [2, 3], [2][3], also as full-width brackets; some models write [passage 2].
_CITED = re.compile(r"\s*[\[【](?:passages?\s*)?(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)[\]】]", re.IGNORECASE)
# Share of an answer's words that must stand in its passages before it is believed without a warning.
GROUNDED = 0.5
# Share of an answer's words that a passage must hold to be named in the model's stead.
ATTRIBUTED = 0.5
# Longer side in pixels of a picture that is sent.
SIDE = 768


class OpenAIGenerator:
    """Answers through an OpenAI-compatible endpoint.

    Args:
        endpoint: an `Endpoint`, or its address.
        model: its name if ``endpoint`` is an address; by default the first that it lists.
        fallback: a generator that answers when the endpoint does not; by default `ExtractiveGenerator`. None: an error.
        vision: send the passages' and the question's pictures too.
        look: the PIL picture of a passage; by default its content.
        **options: of `Endpoint`, if ``endpoint`` is an address.
    """

    def __init__(
        self,
        endpoint: Endpoint | str,
        model: str | None = None,
        *,
        fallback: Generator | str | None = "offline",
        vision: bool = False,
        look: Callable[[Passage], Any] = lambda passage: passage.content,
        **options: Any,
    ) -> None:
        self.endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint(endpoint, model, **options)
        self.fallback: Any = ExtractiveGenerator() if fallback == "offline" else fallback
        self.vision, self.look = vision, look

    def __call__(self, question: Question, passages: Sequence[Passage], /) -> Draft:
        """The model's answer with its passages, or what the table above says.

        Raises:
            BadInput: the endpoint is set up wrongly.
            EndpointError: it does not answer, and there is no fallback.
        """
        try:
            reply = self.endpoint.chat(self.messages(question, passages))
        except EndpointError as error:
            if self.fallback is None:
                raise
            return self._instead(question, passages, str(error))
        if reply.refusal:
            return self._instead(question, passages, f"{self.endpoint.name}: the model refused ({reply.refusal[:200]})")
        return self._draft(question, passages, reply)

    def messages(self, question: Question, passages: Sequence[Passage]) -> list[dict[str, Any]]:
        """What is sent; see `chiasm.reason.rag.prompt`."""
        if not passages:
            return prompt.bare(question)
        pictures = [picture_url(self.look(p)) if self.vision and p.modality == "image" else None for p in passages]
        return prompt.messages(
            question, passages, pictures=pictures, image=picture_url(question.image) if self.vision else None
        )

    def _draft(self, question: Question, passages: Sequence[Passage], reply: Reply) -> Draft:
        warnings = ["the answer is cut off: it ran into the limit of tokens"] if reply.cut else []
        if prompt.NO_ANSWER.casefold() in reply.text.casefold()[: len(prompt.NO_ANSWER) + 40]:
            return Draft.none("the model found no answer in the passages", *warnings)
        if not passages:
            return Draft(reply.text, warnings=tuple(warnings))
        text, cited, wrong = renumbered(reply.text, len(passages))
        if wrong:
            warnings.append("the model named passages that do not exist; their numbers were taken out")
        if not any(c.isalnum() for c in _CITED.sub("", text)):
            return self._instead(question, passages, f"{self.endpoint.name}: the model answered without a word")
        words = set(content_words(text))
        held = [words & set(content_words(prompt.neutralize(p.text))) for p in passages]
        if not cited:
            best = max(range(len(passages)), key=lambda place: len(held[place]))
            if len(held[best]) < ATTRIBUTED * len(words):
                reason = f"{self.endpoint.name}: the model named no passage, and its words are in none"
                return self._instead(question, passages, reason)
            cited = [best]
            warnings.append("the model named no passage; the one that shares most of its words is given")
        asked = set(content_words(question.text))
        stands = set().union(*(held[place] for place in cited)) | (words & asked)
        seen = self.vision and any(passages[place].modality == "image" for place in cited)
        if len(stands) < GROUNDED * len(words) and not seen:
            warnings.append("little of the answer stands in its passages word for word: check it against them")
        return Draft(text, tuple(passages[place].id for place in cited), warnings=tuple(warnings))

    def _instead(self, question: Question, passages: Sequence[Passage], reason: str) -> Draft:
        """The offline draft, marked as such."""
        if self.fallback is None or not passages:
            return Draft.none(reason)
        draft = self.fallback(question, passages)
        if isinstance(draft, str):
            draft = Draft(draft, tuple(p.id for p in passages))
        return replace(draft, warnings=(f"{reason.rstrip('.')}. This is the offline answer", *draft.warnings))


def renumbered(text: str, count: int) -> tuple[str, list[int], bool]:
    """An answer whose bracketed numbers count its sources in the order of their first mention.

    Args:
        text: with numbers of passages from 1.
        count: passages that exist.

    Returns:
        The text, the places (from 0) of the passages that it names, and whether it named others, which are taken out.
    """
    cited: list[int] = []
    wrong = False

    def one(found: re.Match[str]) -> str:
        nonlocal wrong
        kept = []
        for number in re.findall(r"\d+", found[1]):
            place = int(number) - 1
            if not 0 <= place < count:
                wrong = True
                continue
            if place not in cited:
                cited.append(place)
            kept.append(f"[{cited.index(place) + 1}]")
        return " " + "".join(kept) if kept else ""

    return _CITED.sub(one, text).strip(), cited, wrong


def picture_url(picture: Any) -> str | None:
    """A PIL picture as a ``data:`` address (JPEG, reduced); None for anything else."""
    if not (hasattr(picture, "thumbnail") and hasattr(picture, "convert")):
        return None
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    try:
        small.save(buffer, "JPEG", quality=85)
    except (OSError, ValueError) as error:
        raise ChiasmError(f"a picture cannot be sent ({error})", where="OpenAIGenerator") from error
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

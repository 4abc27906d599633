"""The requests and answers of the API as pydantic models: they check what comes in and document both."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from chiasm.items import Modality


class Filters(BaseModel):
    """What every search takes besides the query."""

    model_config = ConfigDict(extra="forbid")

    k: int = Field(default=10, ge=1, description="number of hits")
    modality: list[Modality] | None = Field(default=None, description="only items of these kinds")
    path: str | None = Field(default=None, description="only this file, this folder, or what matches this pattern")
    since: datetime | None = Field(default=None, description="only items added at or after this time (ISO 8601)")
    until: datetime | None = Field(default=None, description="only items added at or before this time (ISO 8601)")


class SearchOptions(Filters):
    hybrid: bool = Field(default=False, description="also match the words of the query against the items' text")
    rate: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="share of searches without an answer that may still be shown as answered (false-positive rate)",
    )
    unique: bool = Field(default=True, description="show copies of one file once")


class SearchQuery(SearchOptions):
    q: str = Field(description="what to look for, in words")


class SearchBody(SearchOptions):
    """Exactly one of ``q``, ``image``, ``audio``, ``vector``."""

    q: str | None = Field(default=None, description="words")
    image: str | None = Field(default=None, description="a picture as data URL or base64")
    audio: str | None = Field(default=None, description="a sound as data URL or base64")
    vector: list[float] | None = Field(default=None, description="a vector of the store's space, [D]")

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        given = [name for name in ("q", "image", "audio", "vector") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of q, image, audio, vector; got {' and '.join(given) or 'none'}")
        return self


class SimilarQuery(Filters):
    id: str = Field(description="an item of the store")


class Hit(BaseModel):
    id: str
    uri: str = Field(description="the file, or an empty string for content made in memory")
    part: str = Field(description="the place inside the file, for example page=3 or t=12.5")
    modality: str
    score: float = Field(description="similarity as the space measures it; only comparable within one query")
    relevance: float | None = Field(description="calibrated, 0 to 1; null if the store cannot calibrate this query")
    text: str
    meta: dict[str, Any]
    added_at: Any = None


class SearchReply(BaseModel):
    query: str = Field(description="the words, or what kind of query it was")
    nothing_here: bool = Field(description="no item is nearer than chance explains; the nearest are in hits anyway")
    p_value: float | None = Field(description="how often a query without an answer scores as high")
    calibrated: bool = Field(default=False, description="whether relevance and nothing_here could be told")
    hits: list[Hit]
    seconds: float


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class _ImageUrl(BaseModel):
    url: str = Field(description="data:image/...;base64,... ; addresses are refused")


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: _ImageUrl


class _InputAudio(BaseModel):
    data: str = Field(description="base64")
    format: str | None = None


class AudioPart(BaseModel):
    type: Literal["input_audio"]
    input_audio: _InputAudio


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class EmbeddingsBody(BaseModel):
    """The request of OpenAI's embeddings endpoint; an input may also be a content part with a picture or a sound."""

    model: str = Field(description="the store's space; see /v1/models")
    input: str | list[str | Part] = Field(description="one text, or a list with one embedding per entry")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, description="has to be the space's own length, if given")
    input_type: Literal["query", "document"] = Field(
        default="document", description="matters for spaces that encode questions and answers differently"
    )
    user: str | None = Field(default=None, description="accepted and ignored")

    @field_validator("input", mode="before")
    @classmethod
    def _no_token_ids(cls, value: Any) -> Any:
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, int) or (isinstance(first, list) and first and isinstance(first[0], int)):
            raise ValueError("token ids are not supported, because they belong to another model; send the text")
        return value


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="numbers, or base64 of little-endian float32")


class Usage(BaseModel):
    prompt_tokens: int = Field(description="words and punctuation marks of the texts; pictures and sounds count 0")
    total_tokens: int


class EmbeddingsReply(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Health(BaseModel):
    status: Literal["ok"]
    version: str

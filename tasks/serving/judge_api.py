"""The bodies of POST /v1/judge, the JSON interface of this server."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tasks.serving.request_validation import RequestLimits, check_limits, parse_body

JUDGE_EXAMPLE = '{"sentences": ["..."]}'
Sentences = Annotated[
    list[str],
    Field(min_length=1, fail_fast=True, json_schema_extra={"maxItems": RequestLimits.sentences}),
]


class JudgeRequest(BaseModel):
    """Sentences to judge."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "example": {"sentences": ["The child has eaten the apple.", "The child have eat the apple."]}
        },
    )
    sentences: Annotated[Sentences, Field(description=f"each of at most {RequestLimits.characters:,} characters")]


class JudgedSentence(BaseModel):
    """The answer to one sentence."""

    sentence: str
    label: str
    probability: Annotated[float, Field(description="of the label, 0 to 1")]
    truncated: Annotated[bool, Field(description="the sentence is longer than the model reads: its end was ignored")]
    version: Annotated[str, Field(description="of the model")]


class JudgeResponse(BaseModel):
    """Answers in the order of the request, all of one version; where a canary answers some, `version` is the other."""

    version: str
    predictions: list[JudgedSentence]


class ErrorResponse(BaseModel):
    """Why a request was not answered."""

    error: str


def parse_judge_request(body: bytes, limits: RequestLimits) -> list[str]:
    """Return the sentences of a request.

    Raises:
        RequestError: 400 no JSON, 413 too many or too long sentences, 422 everything else.
    """
    sentences = parse_body(body, JudgeRequest, 422, ("sentences",), JUDGE_EXAMPLE).sentences
    check_limits(sentences, "sentences", limits)
    return sentences

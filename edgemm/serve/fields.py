"""What a request may say: every field of every endpoint, its type and its limits; openapi.py publishes the same.

A field is honoured, or it changes nothing (FREE), or it is refused by name (REFUSED), unless its value asks for what
happens anyway.  One that nobody knows is refused, too.  JSON is read strictly ("3" is no number); a form's strings are
numbers where a number is wanted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from edgemm.serve.problems import Problem, unsupported

__all__ = [
    "ChatRequest",
    "EditRequest",
    "Fields",
    "GenerateRequest",
    "ImageTool",
    "ResponsesRequest",
    "TokenizeRequest",
    "free_and_refused",
    "read_fields",
]

LONGEST_TEXT = 2_000_000  # characters
MOST_CHOICES = 16
MOST_SEED = 2**63 - 1

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
Role = Literal["system", "developer", "user", "assistant"]
OutputFormat = Literal["png", "jpeg", "webp"]
Detail = Literal["auto", "low", "high", "original"]


class Fields(BaseModel):
    """A JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


# Messages


class ImageUrl(Fields):
    url: str
    detail: Detail | None = None  # a model reads pictures at the one size it was trained for


class TextPart(Fields):
    type: Literal["text", "input_text", "output_text"]
    text: Text
    annotations: list[Any] | None = None  # of our own replies, when they come back
    logprobs: list[Any] | None = None


class ImageUrlPart(Fields):
    type: Literal["image_url"]
    image_url: ImageUrl | str
    index: int | None = None


class InputImagePart(Fields):
    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None


class VideoUrl(Fields):
    url: str


class VideoUrlPart(Fields):
    """As vLLM's: some of a video's frames are read as pictures."""

    type: Literal["video_url"]
    video_url: VideoUrl | str


Part = Annotated[TextPart | ImageUrlPart | InputImagePart | VideoUrlPart, Field(discriminator="type")]


class ChatMessage(Fields):
    role: Role
    content: Text | list[Part] | None = None
    images: list[ImageUrlPart] | None = None  # what an earlier reply drew, as it came
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


# Chat


class JsonSchema(Fields):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(Fields):
    type: Literal["text"]


class JsonObjectFormat(Fields):
    type: Literal["json_object"]


class JsonSchemaFormat(Fields):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class GrammarFormat(Fields):
    type: Literal["grammar"]
    grammar: Text  # in Lark's notation


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | GrammarFormat, Field(discriminator="type")
]


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # there is none


class HowToDraw(Fields):
    """How a picture is drawn, beyond OpenAI's own fields."""

    seed: Seed | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    image_guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    negative_prompt: Text | None = None


class Drawing(HowToDraw):
    """The pictures inside of a reply."""

    size: str | None = None


class Sampled(Fields):
    """How the tokens of a reply are chosen."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    seed: Seed | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    ignore_eos: bool | None = None
    timeout_s: Annotated[float, Field(gt=0)] | None = None


class VideoFrames(Fields):
    num_frames: Annotated[int, Field(ge=1, le=256)] | None = None  # at most, spread evenly
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None


class MediaOptions(Fields):
    """vLLM's name for how media are read."""

    video: VideoFrames | None = None


class ChatRequest(Sampled):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: str | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    logprobs: bool | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text", "image"]], Field(min_length=1)] | None = None
    drawing: Drawing | None = None
    max_images: Annotated[int, Field(ge=1, le=64)] | None = None
    graph: dict[str, Any] | None = None  # node-link JSON, as networkx writes it
    media_io_kwargs: MediaOptions | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


# Pictures


class GenerateRequest(HowToDraw):
    prompt: Text
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=64)] | None = None
    size: str | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    graph: dict[str, Any] | None = None  # what is drawn, beside the words; node-link JSON
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None  # of models that draw token by token
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] | None = None


class ImageRef(Fields):
    image_url: str


class EditRequest(GenerateRequest):
    image: str | list[str] | None = None  # data: URLs; a form has files
    images: list[ImageRef] | None = None


# Responses


class ImageTool(HowToDraw):
    type: Literal["image_generation"]
    action: Literal["generate", "edit", "auto"] | None = None
    size: str | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    background: Literal["auto", "opaque"] | None = None
    quality: Literal["auto"] | None = None
    moderation: Literal["auto", "low"] | None = None
    model: str | None = None  # there is one: the one that writes


class InputMessage(Fields):
    type: Literal["message"] | None = None
    role: Role
    content: Text | list[Part]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class InputPicture(Fields):
    """What an earlier response drew."""

    type: Literal["image_generation_call"]
    result: str | None = None
    id: str | None = None
    status: str | None = None
    action: Any = None
    background: Any = None
    output_format: Any = None
    quality: Any = None
    revised_prompt: Any = None
    seed: Any = None
    size: Any = None


def _item(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "picture" if kind == "image_generation_call" else "message"


Item = Annotated[
    Annotated[InputMessage, Tag("message")] | Annotated[InputPicture, Tag("picture")], Discriminator(_item)
]


class FormatOfText(Fields):
    type: Literal["text", "json_object", "json_schema", "grammar"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    grammar: Text | None = None


class TextConfig(Fields):
    format: FormatOfText | None = None
    verbosity: Literal["medium"] | None = None


class ToolChoice(Fields):
    type: Literal["image_generation"]


class ResponsesStreamOptions(Fields):
    include_obfuscation: bool | None = None


class ResponsesRequest(Sampled):
    input: Text | Annotated[list[Item], Field(min_length=1)]
    model: str | None = None
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[ImageTool], Field(max_length=1)] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=64)] | None = None
    include: list[str] | None = None  # "message.output_text.logprobs"; there is nothing else to include
    metadata: dict[str, str] | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None


# Tokens


class TokenizeRequest(Fields):
    """One of the two."""

    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None


# What changes no answer, and what is not implemented beside the values that ask for nothing

ANY_CALL = ("user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key")
ANY_CALL += ("prompt_cache_retention", "prompt_cache_options")
FREE: dict[type[Fields], tuple[str, ...]] = {
    ChatRequest: (*ANY_CALL, "parallel_tool_calls"),
    GenerateRequest: ("user", "safety_identifier"),
    EditRequest: ("user", "safety_identifier"),
    ResponsesRequest: (*(set(ANY_CALL) - {"metadata"}), "parallel_tool_calls"),
    TokenizeRequest: ("user",),
}
NO_TOOLS: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
PICTURES: dict[str, tuple[Any, ...]] = {
    "background": ("auto", "opaque"),
    "quality": ("auto", "standard"),
    "moderation": ("auto", "low"),
    "style": (),
    "complexity": (),
    "svg": (),
    "frame_count": (),
    "frame_duration_ms": (),
    "prompt_rewriter": (),
}
REFUSED: dict[type[Fields], dict[str, tuple[Any, ...]]] = {
    ChatRequest: {
        **NO_TOOLS,
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
        "moderation": (),
    },
    GenerateRequest: PICTURES,
    EditRequest: {**PICTURES, "mask": (), "markup": (), "input_fidelity": ()},
    ResponsesRequest: {
        "background": (False,),
        "background_options": (),
        "context_management": (),
        "conversation": (),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "reasoning": ({},),
        "truncation": ("disabled",),
        "access_programs": (),
        "image": (),
    },
    TokenizeRequest: {},
}


def free_and_refused(kind: type[Fields]) -> tuple[tuple[str, ...], dict[str, tuple[Any, ...]]]:
    """Fields that change nothing, and those that are refused unless they have one of these values, or null."""
    return FREE[kind], REFUSED[kind]


T = TypeVar("T", bound=Fields)


def read_fields(kind: type[T], given: Any, strict: bool = True) -> T:
    """A request, or the Problem that names its first wrong field."""
    if not isinstance(given, dict):
        raise Problem(400, "invalid_type", f"the request is {type(given).__name__}, expected a JSON object")
    free, refused = free_and_refused(kind)
    left = {}
    for name, value in given.items():
        if name in free:
            continue
        if name in refused:
            if value is not None and not any(type(value) is type(fit) and value == fit for fit in refused[name]):
                _refuse(name, value, refused[name])
            continue
        left[name] = value
    try:
        return kind.model_validate(left, strict=strict)
    except ValidationError as error:
        raise _wrong(error, left) from None


def _refuse(name: str, value: Any, fit: tuple[Any, ...]) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0 and 0 in fit:
        return
    rather = f"; leave it out, or give {' or '.join(map(repr, fit))}" if fit else "; leave it out"
    raise unsupported(name, f"{name} is not implemented here{rather}")


CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


def _wrong(error: ValidationError, given: Any) -> Problem:
    """The error that lies deepest: of the shapes that a field may have, it tells of the nearest."""
    found = [(_path(each["loc"], given), each) for each in error.errors(include_url=False, include_context=False)]
    path, first = max(found, key=lambda pair: len(pair[0]))
    kind = first["type"]
    param = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
    code = CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    if kind == "missing":
        return Problem(400, code, f"{param} is missing", param)
    if kind == "extra_forbidden":
        return Problem(400, code, f"{param} is no parameter that is known here", param)
    said = first["msg"][:1].lower() + first["msg"][1:]
    return Problem(400, code, f"{param or 'the request'} is {_short(first['input'])}: {said}", param or None)


def _path(loc: tuple[int | str, ...], given: Any) -> list[int | str]:
    """Where it is in the request: pydantic also names which shape it tried."""
    path: list[int | str] = []
    for place, key in enumerate(loc):
        known = list(given) if isinstance(given, dict) else range(len(given)) if isinstance(given, list) else ()
        if key in known:
            given = cast(Any, given)[key]
        elif not isinstance(given, dict) or place != len(loc) - 1:
            continue
        path.append(key)
    return path


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

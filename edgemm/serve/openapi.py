"""The interface as an OpenAPI 3.1 document: requests from fields.py, so that what is published is what is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

import edgemm
from edgemm.serve.fields import (
    ChatRequest,
    EditRequest,
    GenerateRequest,
    ResponsesRequest,
    TokenizeRequest,
    free_and_refused,
)

__all__ = ["document"]

REF = "#/components/schemas/{model}"
REQUESTS = {
    "/v1/chat/completions": (ChatRequest, "Chat", "A reply, with pictures where modalities ask for them"),
    "/v1/images/generations": (GenerateRequest, "Pictures", "Pictures of a prompt"),
    "/v1/images/edits": (EditRequest, "Pictures", "A picture, changed as the prompt says"),
    "/v1/responses": (ResponsesRequest, "Response", "A reply, with pictures by the image_generation tool"),
    "/v1/responses/input_tokens": (ResponsesRequest, "Count", "How many tokens an input takes"),
    "/tokenize": (TokenizeRequest, "Tokens", "Token ids of a text, or the count of a conversation"),
}
ASKED = [{"role": "user", "content": "What is this?"}]
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": ASKED, "max_completion_tokens": 8},
    "/v1/images/generations": {"prompt": "a red heart", "seed": 7},
    "/v1/images/edits": {"prompt": "redder", "image": "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAAC"},
    "/v1/responses": {"input": "What is this?", "max_output_tokens": 8},
    "/v1/responses/input_tokens": {"input": "What is this?"},
    "/tokenize": {"prompt": "What is this?"},
}
STREAMS = ("/v1/chat/completions", "/v1/images/generations", "/v1/images/edits", "/v1/responses")
ERRORS = {
    400: "a field that cannot be honoured; `param` names it",
    401: "no valid key",
    404: "no such model",
    405: "another method",
    408: "longer than timeout_s, or than --timeout-s",
    413: "larger than --max-body-mb",
    415: "a body of another kind",
    429: "the queue is full; Retry-After says when to ask again",
    500: "a fault of the server or its bundle",
    503: "shutting down, or out of memory",
}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


STRING, WHOLE = {"type": "string"}, {"type": "integer"}
LIST = {"type": "array", "items": {"type": "object"}}
ANSWERS = {
    "Error": _object(
        {"error": _object({"message": STRING, "type": STRING, "param": {"type": ["string", "null"]}, "code": STRING})}
    ),
    "Chat": _object({"id": STRING, "object": {"const": "chat.completion"}, "created": WHOLE, "choices": LIST}),
    "Pictures": _object({"created": WHOLE, "data": LIST, "size": STRING, "usage": {"type": "object"}}),
    "Response": _object({"id": STRING, "object": {"const": "response"}, "status": STRING, "output": LIST}),
    "Count": _object({"object": {"const": "response.input_tokens"}, "input_tokens": WHOLE}),
    "Tokens": _object({"count": WHOLE, "max_model_len": WHOLE}, tokens={"type": "array", "items": WHOLE}),
    "Model": _object({"id": STRING, "object": {"const": "model"}, "created": WHOLE, "owned_by": STRING}),
    "Models": _object({"object": {"const": "list"}, "data": LIST}),
    "Ready": _object({"status": STRING}),
}


def document(names: Sequence[str], with_key: bool) -> dict[str, Any]:
    """`names` are those of the models; `with_key` says that a key is asked for."""
    kinds = list(dict.fromkeys(kind for kind, _, _ in REQUESTS.values()))
    _, found = models_json_schema([(kind, "validation") for kind in kinds], ref_template=REF)
    schemas = found["$defs"] | ANSWERS
    for kind in kinds:
        _add_known(schemas[kind.__name__]["properties"], kind)
        schemas[kind.__name__]["properties"]["model"] = {"enum": [*names, None]}
    schemas["EditForm"] = _edit_form(schemas["EditRequest"])
    paths: dict[str, Any] = {path: {"post": _post(path)} for path in REQUESTS}
    paths["/v1/models"] = {"get": _get("Models", "Every model, its aliases and its adapters")}
    one = _get("Model", "One model")
    one["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"enum": list(names)}}]
    one["responses"]["404"] = _error(404)
    paths["/v1/models/{model}"] = {"get": one}
    paths["/healthz"] = {"get": _get("Ready", "The process answers", key=False)}
    ready = _get("Ready", "Its models are loaded, and it is not shutting down", key=False)
    ready["responses"]["503"] = _json("Ready", "not yet, or no more")
    paths["/readyz"] = {"get": ready}
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "edgemm serve", "version": edgemm.__version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if with_key:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}]
    return made


def _add_known(properties: dict[str, Any], kind: Any) -> None:
    free, refused = free_and_refused(kind)
    for name in free:
        properties[name] = {"description": "accepted; it changes no answer"}
    for name, fit in refused.items():
        properties[name] = {"enum": [None, *fit], "description": "not implemented: any other value is refused"}


def _edit_form(json_form: dict[str, Any]) -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    properties = {name: of for name, of in json_form["properties"].items() if name not in ("image", "images")}
    return {
        **{key: value for key, value in json_form.items() if key != "title"},
        "properties": {"image": file, **properties},
        "required": ["image", "prompt"],
    }


def _post(path: str) -> dict[str, Any]:
    kind, answer, summary = REQUESTS[path]
    schema = {"$ref": REF.format(model=kind.__name__)}
    content: dict[str, Any] = {"application/json": {"schema": schema, "example": EXAMPLES[path]}}
    if path == "/v1/images/edits":
        content["multipart/form-data"] = {"schema": {"$ref": REF.format(model="EditForm")}}
    good = _json(answer, summary)
    if path in STREAMS:
        good["content"]["text/event-stream"] = {}  # its events are objects of many shapes
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": good, **{str(status): _error(status) for status in ERRORS}},
    }


def _get(answer: str, summary: str, key: bool = True) -> dict[str, Any]:
    responses = {"200": _json(answer, summary), "405": _error(405)} | ({"401": _error(401)} if key else {})
    return {"summary": summary, "responses": responses} | ({} if key else {"security": []})


def _json(schema: str, description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": REF.format(model=schema)}}},
    }


def _error(status: int) -> dict[str, Any]:
    return _json("Error", ERRORS[status])

"""What can go wrong with a request, as OpenAI's interface says it: {"error": {message, type, param, code}}.

Codes are stable: a client may tell them apart.  docs/serve.md has the table.
"""

from __future__ import annotations

import re
from typing import Any

from edgemm.errors import BundleError, EdgemmError, InputError, MissingError, ResourceError, UsageError

__all__ = ["Problem", "as_problem", "busy", "unsupported"]

TYPES = {  # of a status, where the problem says no other
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "server_error",
}
ASKED_AS = {  # the runtime's options, and how a request says them
    "max_new_tokens": "max_completion_tokens",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "image_guidance_scale": "image_guidance",
    "num_images": "n",
    "height": "size",
    "width": "size",
    "preview": "partial_images",
    "logprobs": "top_logprobs",
    "json_schema": "response_format",
    "grammar": "response_format",
    "prompt": "messages",
    "noise": "seed",
}
SAME = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop", "size", "negative_prompt")
SAME += ("messages", "image", "timeout_s")


class Problem(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def unsupported(param: str, message: str) -> Problem:
    """A field that means something, and which is not implemented: never read as if it were not there."""
    return Problem(400, "unsupported_parameter", message, param)


def busy(waiting: int, retry_after_s: int) -> Problem:
    return Problem(429, "queue_full", f"{waiting} requests wait already; ask again later", retry_after_s=retry_after_s)


def as_problem(error: BaseException, prompt_param: str = "messages") -> Problem:
    """Any error as a Problem; `prompt_param` is what the words are called here."""
    if isinstance(error, Problem):
        return error
    message = " ".join(str(error).split())
    if isinstance(error, UsageError):
        return Problem(400, "invalid_value", _renamed(message), _param(message, prompt_param))
    if isinstance(error, BundleError):  # paths and graphs are no client's business
        return Problem(500, "model_error", "the model failed, or its bundle did; the server's log says how")
    if isinstance(error, InputError) and "this bundle holds at most" in message:
        return Problem(400, "context_length_exceeded", message, prompt_param)
    if isinstance(error, InputError):
        param = "image" if "does not edit pictures" in message else prompt_param
        return Problem(400, "unsupported_value", message, param)
    if isinstance(error, (ResourceError, MemoryError)):
        return Problem(503, "out_of_memory", message or "out of memory", retry_after_s=5)
    if isinstance(error, MissingError):
        return Problem(400, "unsupported_parameter", f"not on this server: {message}", _param(message, None))
    if isinstance(error, EdgemmError):
        return Problem(500, "model_error", message)
    return Problem(500, "internal_error", "an error of the server; its log says which")


def _param(message: str, prompt_param: str | None) -> str | None:
    """The field that a message of the runtime begins with."""
    words = re.match(r"(?:[\w]+\(\): )?(\w+)", message)
    name = words[1] if words else ""
    if name in ("prompt", "messages", "the"):
        return prompt_param
    return ASKED_AS.get(name, name if name in SAME else None)


def _renamed(message: str) -> str:
    name = message.split(" ", 1)[0].rstrip(":,")
    return message.replace(name, ASKED_AS[name], 1) if name in ASKED_AS and name != "prompt" else message

"""Clients that others wrote, each in an environment of its own, against a real server on loopback.

An environment is made by pip or npm when the test runs; where none can be had the test says so and is skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="needs the extras serve and dev")
pytest.importorskip("starlette")
pytest.importorskip("llguidance")
pytestmark = pytest.mark.slow

INSTALL_S = 900
MARKED = 'start: "Here: <draw>" /[a-c]{4}/ "</draw>" /[a-z ]{6}/'
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
BEGINNING = f"""
import base64, io, json, sys
base, MARKED, SCHEMA = sys.argv[1] + "/v1", {MARKED!r}, {SCHEMA!r}
hello = [dict(role="user", content="hello")]
def png(content):
    assert base64.b64decode(content, validate=True)[1:4] == b"PNG"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Makes a Python with these packages and nothing of ours; gives its folder of programs."""

    def make(*packages):
        folder = tmp_path_factory.mktemp("client") / "venv"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
        if ran.returncode:
            pytest.skip(f"pip install {' '.join(packages)}: {ran.stderr.strip().splitlines()[-1]}")
        return folder / "bin"

    return make


def run(*command, **options):
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OPENAI_API_KEY")}
    settings |= options.pop("env", {})
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1800, env=settings, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def script(python, url, text):
    return run(python / "python", "-c", BEGINNING + textwrap.dedent(text), url)


def test_openai_for_python(environment, url):
    said = script(
        environment("openai"),
        url,
        """
        import openai
        client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
        ask = lambda **more: client.chat.completions.create(model="tiny", messages=hello, **more)
        whole = ask(max_completion_tokens=8).choices[0].message.content
        streamed = ask(max_completion_tokens=8, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole
        form = dict(type="json_schema", json_schema=dict(name="a", schema=SCHEMA, strict=True))
        assert json.loads(ask(response_format=form).choices[0].message.content)["a"] in (1, 2)
        more = dict(modalities=["text", "image"], drawing=dict(steps=2))
        reply = ask(response_format=dict(type="grammar", grammar=MARKED), extra_body=more).choices[0].message
        png(reply.images[0]["image_url"]["url"].partition(",")[2])
        events = list(client.images.generate(model="tiny", prompt="x", stream=True, partial_images=2))
        assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 2 + ["completed"]
        [png(event.b64_json) for event in events]
        try:
            client.images.edit(model="tiny", prompt="x", image=[("a.png", b"x", "image/png")])
        except openai.BadRequestError as error:
            assert error.param == "image"
        try:
            client.chat.completions.create(model="gpt-9", messages=hello)
        except openai.NotFoundError as error:
            print(error.code)
        """,
    )
    assert said == "model_not_found\n"


def test_litellm(environment, url):
    said = script(
        environment("litellm"),
        url,
        """
        import litellm
        litellm.suppress_debug_info = True
        how = dict(model="openai/tiny", api_base=base, api_key="none", messages=hello)
        whole = litellm.completion(max_tokens=8, **how).choices[0].message.content
        streamed = litellm.completion(max_tokens=8, stream=True, **how)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole
        body = dict(response_format=dict(type="grammar", grammar=MARKED), drawing=dict(steps=2))
        reply = litellm.completion(modalities=["text", "image"], extra_body=body, **how).choices[0].message
        png(reply.images[0]["image_url"]["url"].partition(",")[2])
        drawn = litellm.image_generation(model="openai/tiny", api_base=base, api_key="none", prompt="a heart")
        png(drawn.data[0].b64_json)
        for more in (dict(temperature=5), dict(model="openai/x")):
            try:
                litellm.completion(**how | more)
            except (litellm.BadRequestError, litellm.NotFoundError) as error:
                print(type(error).__name__)
        """,
    )
    assert said.split()[-2:] == ["BadRequestError", "NotFoundError"]


def test_llm(environment, url, model, tmp_path):
    programs = environment("llm")
    lines = [
        "- model_id: tiny",
        "  model_name: tiny",
        f"  api_base: {url}/v1",
        "  vision: true",
        "  supports_schema: true",
    ]
    (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines) + "\n")
    pixels = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    ask = [programs / "llm", "-m", "tiny", "--key", "none"]
    said = run(*ask, "hello", "-o", "max_tokens", 8, env={"LLM_USER_PATH": str(tmp_path)})
    assert said.rstrip("\n") == model.generate_text("hello", max_new_tokens=8).text.rstrip("\n")
    seen = run(*ask, "what", "-a", tmp_path / "a.png", "-o", "max_tokens", 8, env={"LLM_USER_PATH": str(tmp_path)})
    assert seen.rstrip("\n") == model.generate_text("what", [pixels], max_new_tokens=8).text.rstrip("\n")
    structured = run(*ask, "what", "--schema", json.dumps(SCHEMA), env={"LLM_USER_PATH": str(tmp_path)})
    assert json.loads(structured)["a"] in (1, 2)


NODE = """
import assert from "node:assert";
import OpenAI, { toFile } from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
const baseURL = process.argv[2] + "/v1";
const png = (content) => assert.equal(Buffer.from(content, "base64").subarray(1, 4).toString(), "PNG");
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const ask = (more) => client.chat.completions.create({ model: "tiny", messages, ...more });
const whole = (await ask({ max_completion_tokens: 8 })).choices[0].message.content;
let streamed = "";
for await (const chunk of await ask({ max_completion_tokens: 8, stream: true })) {
  streamed += chunk.choices[0].delta.content ?? "";
}
assert.equal(streamed, whole);
let events = 0;
const drawing = { model: "tiny", prompt: "x", stream: true, partial_images: 2 };
for await (const event of await client.images.generate(drawing)) {
  png(event.b64_json);
  events += 1;
}
assert.equal(events, 3);
const image = [await toFile(Buffer.from("x"), "a.png")];
const refused = { code: "invalid_image", param: "image" };
await assert.rejects(client.images.edit({ model: "tiny", prompt: "x", image }), refused);
await assert.rejects(client.chat.completions.create({ model: "gpt-9", messages }), OpenAI.NotFoundError);
const answer = await client.responses.create({ model: "tiny", input: "hello", max_output_tokens: 8 });
assert.equal(answer.output_text, whole);

const provider = createOpenAICompatible({ name: "edgemm", baseURL, includeUsage: true });
const how = { model: provider("tiny"), prompt: "hello", maxOutputTokens: 8 };
const reply = await ai.generateText(how);
assert.equal(reply.text, whole);
assert.equal(reply.usage.outputTokens, 8);
let pieces = "";
for await (const piece of ai.streamText(how).textStream) pieces += piece;
assert.equal(pieces, whole);
const generateImage = ai.generateImage ?? ai.experimental_generateImage;
const drawn = await generateImage({ model: provider.imageModel("tiny"), prompt: "a heart" });
png(drawn.image.base64);
console.log("done");
"""


def test_openai_and_the_ai_sdk_for_node(url, tmp_path):
    if not shutil.which("npm"):
        pytest.skip("needs node and npm")
    packages = ["openai", "@ai-sdk/openai-compatible", "ai"]
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", *packages]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=INSTALL_S)
    if ran.returncode:
        pytest.skip(f"npm install {' '.join(packages)}: {(ran.stderr or ran.stdout).strip()[-200:]}")
    (tmp_path / "ask.mjs").write_text(NODE)
    assert run("node", "ask.mjs", url, cwd=tmp_path) == "done\n"


def test_no_request_that_the_published_schemas_allow_is_a_fault_of_the_server(environment, url, tmp_path):
    programs = environment("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    said = run(
        programs / "schemathesis", "run", f"{url}/openapi.json", "--checks", checks, "--no-color",
        "--max-examples", 50, "--request-timeout", 60, cwd=tmp_path,
    )  # fmt: skip
    calls = int(re.search(r"(\d+) generated", said)[1])
    assert calls >= 2000 and f"{calls} generated, {calls} passed" in said, said[-3000:]

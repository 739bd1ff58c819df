// The server's public interface as the page uses it: JSON, server-sent events, refusals, and the key, which stays here.

let key = "";

export function useKey(value) {
  key = value;
}

export class Refusal extends Error {
  constructor(status, { message, code, param }, retryAfterS = 0) {
    super(message);
    Object.assign(this, { status, code, param, retryAfterS });
  }
}

const silent = (message) => new Refusal(0, { message, code: "no_answer" });

async function request(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  if (options.body) headers["content-type"] = "application/json";
  try {
    return await fetch(new URL(path, document.baseURI), { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : silent("The server does not answer.");
  }
}

async function answered(path, options) {
  const answer = await request(path, options);
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  const told = error ?? { message: `The server answered ${answer.status}.`, code: "http_error" };
  throw new Refusal(answer.status, told, Number(answer.headers.get("retry-after")) || 0);
}

// Every name that the server answers to, and what it can do.
export const models = async () => (await (await answered("v1/models")).json()).data;

// {status: "ready" | "loading" | "shutting down", running, waiting}
export const readiness = async () => (await request("readyz")).json();

// What a streamed answer says, one object an event.
export async function* events(path, body, signal) {
  const answer = await answered(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : silent("The connection was lost in the middle of the answer.");
    });
    if (done) return;
    const frames = (held + value).split("\n\n");
    held = frames.pop();
    for (const frame of frames) {
      const data = frame.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (!data || data === "[DONE]") continue;
      const said = JSON.parse(data);
      if (said.error) throw new Refusal(200, said.error);
      yield said;
    }
  }
}

// Where the page has a field of the interface.
export const FIELDS = { seed: "seed", steps: "steps", guidance: "guidance", n: "many", size: "size", negative_prompt: "avoid",
  temperature: "temperature", max_completion_tokens: "longest", "drawing.seed": "seed" };

// What the one who asked can do about a refusal: a sentence, and the name of a button that does it.
export function cure({ code, param, status, retryAfterS }) {
  if (param in FIELDS) return ["It is one of the settings.", "settings"];
  switch (code) {
    case "no_answer":
      return ["Is `edgemm serve` still running, and is this machine connected to it?", "retry"];
    case "queue_full":
      return [`Others are being answered. Room is likely in ${retryAfterS || 5} seconds.`, "retry"];
    case "shutting_down":
      return ["The server is about to end. It may be back in a moment.", "retry"];
    case "out_of_memory":
      return ["Ask for less at once: fewer pictures, or a shorter conversation.", "retry"];
    case "deadline_exceeded":
      return ["It took longer than this server allows. Fewer steps, or a shorter reply, take less.", "retry"];
    case "context_length_exceeded":
    case "too_many_images":
      return ["The conversation is too long for this model.", "anew"];
    case "model_not_found":
      return ["The server was started with other models. Reload the page.", null];
    case "request_too_large":
    case "image_too_large":
      return ["Send a smaller picture.", null];
    case "internal_error":
    case "model_error":
      return ["The server's log says more.", "retry"];
    default:
      return ["", status >= 500 ? "retry" : null];
  }
}

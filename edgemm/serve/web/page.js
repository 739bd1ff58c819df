// The page: which model, what to do with the words, one request at a time, and what came of it.

import { cure, events, FIELDS, models, readiness, useKey } from "./api.js";
import * as box from "./attached.js";
import { at, button, make, say } from "./dom.js";
import * as sheet from "./sheet.js";
import { Turn } from "./turn.js";

const PREVIEWS = 3;
const ONCE_A_SECOND = 1000;
const LARGEST_SEED = 1e6; // of those that the page chooses: short enough to be said
const FEWEST_TOKENS = 8; // whose speed is worth telling
const HINTS = {
  ask: "Enter sends, Shift+Enter begins a line. Pictures may be dropped or pasted.",
  draw: "Enter draws. The same seed and words give the same picture.",
  edit: "Enter edits the picture as the words say.",
};
const IDEAS = [["draw", "a red heart"], ["draw", "a smiling face"], ["ask", "What can you do?"]];
const WAITING = { ask: "Reading", draw: "Drawing", edit: "Editing" };
const PLACEHOLDERS = { ask: "Ask something", draw: "What should be drawn?", edit: "What should change?" };

const known = new Map(); // name -> what /v1/models says of it
const turns = [];
let messages = []; // the conversation, as the model reads it
let running = null; // an AbortController

const model = () => known.get(at("model").value);
const can = (kind) => model()?.output_modalities.includes(kind) ?? false;
const mode = () => document.querySelector("[name=mode]:checked")?.value;
const filled = (id) => (!at(id).closest("label").hidden && at(id).value.trim()) || undefined; // what this model has no use for is not sent
const given = (id) => (filled(id) === undefined ? undefined : Number(at(id).value));

// Which model, and what it can do

function setMode(name) {
  document.querySelector(`[name=mode][value=${name}]`).checked = true;
  fit();
}

function fit() {
  const able = { ask: can("text"), draw: can("image"), edit: model()?.edits ?? false };
  for (const radio of document.querySelectorAll("[name=mode]")) radio.parentElement.hidden = !able[radio.value];
  if (!able[mode()]) {
    const [first] = Object.keys(able).filter((name) => able[name]);
    if (!first) return;
    document.querySelector(`[name=mode][value=${first}]`).checked = true;
  }
  const drawing = model().drawing ?? {};
  const has = { steps: drawing.steps != null, image: able.draw, size: drawing.sizes };
  for (const label of document.querySelectorAll("#settings > label")) {
    const { for: modes, needs } = label.dataset;
    label.hidden = (modes && !modes.split(" ").includes(mode())) || (needs && !has[needs]) || false;
  }
  at("steps").placeholder = drawing.steps ?? "";
  at("size").placeholder = drawing.size ?? "";
  const { smallest, largest, multiple } = drawing.sizes ?? {};
  at("sizes").textContent = at("size").title = largest ? `width x height, ${smallest} to ${largest}, multiples of ${multiple}` : "";
  at("guidance").placeholder = drawing.guidance ?? "";
  at("change").hidden = !able.edit;
  at("ask-about").hidden = !able.ask || !sees();
  at("attach").hidden = !sees();
  at("words").placeholder = PLACEHOLDERS[mode()];
  const idle = mode() === "draw" && box.attached.length > 0;
  at("attached").classList.toggle("idle", idle);
  at("hint").classList.toggle("warning", idle);
  at("hint").textContent = idle ? `Drawing takes no picture${able.edit ? ": choose Edit to change this one" : ""}.` : HINTS[mode()];
  if (!running) at("send").textContent = { ask: "Send", draw: "Draw", edit: "Edit" }[mode()];
}

const sees = () => model()?.input_modalities.includes("image") ?? false;

function picturesChanged() {
  if (mode() === "draw" && box.attached.length) setMode(model()?.edits ? "edit" : "ask");
  else fit();
}

function showModels(list) {
  known.clear();
  const groups = new Map();
  for (const each of list) {
    known.set(each.id, each);
    if (!groups.has(each.root)) groups.set(each.root, make("optgroup", { label: each.root }));
    groups.get(each.root).append(make("option", { value: each.id }, each.id));
  }
  const alone = [...groups.values()].every((group) => group.childElementCount === 1);
  at("model").replaceChildren(...(alone ? [...groups.values()].flatMap((group) => [...group.children]) : groups.values()));
  at("model").disabled = false;
  offer();
  fit();
}

function offer() {
  const does = [can("text") && "answer questions", can("text") && sees() && "look at pictures", can("image") && "draw",
    model().edits && "edit what was drawn"].filter(Boolean);
  at("offer").textContent = `${at("model").value} can ${does.join(", ").replace(/, ([^,]*)$/, " and $1")}.`;
  const ideas = IDEAS.filter(([what]) => (what === "draw" ? can("image") : can("text")));
  at("ideas").replaceChildren(...ideas.map(([what, words]) => make("li", {}, button(what === "draw" ? `Draw ${words}` : words, () => {
    setMode(what);
    at("words").value = words;
    at("composer").requestSubmit();
  }))));
}

// Whether the server is there, and whether a key is missing

function state(words, kind = "") {
  at("state").textContent = words;
  at("state").dataset.kind = kind;
}

async function connect() {
  try {
    if (!known.size) showModels(await models());
    const { status } = await readiness();
    if (running) return;
    if (status === "ready") return state("Ready", "ready");
    state(status === "loading" ? "Loading the model" : "Shutting down");
  } catch (error) {
    if (error.status === 401) return lock();
    state("No answer", "lost");
  }
  setTimeout(connect, ONCE_A_SECOND);
}

function lock(again = false) {
  state("Locked");
  if (again) at("locked-why").textContent = "That key was not accepted. Another one?";
  at("key").value = "";
  if (!at("locked").open) at("locked").showModal();
}

at("locked").oncancel = (event) => event.preventDefault(); // there is nothing behind it without a key
at("unlock").onsubmit = async (event) => {
  event.preventDefault();
  useKey(at("key").value);
  at("key").value = "";
  try {
    showModels(await models());
  } catch (error) {
    if (error.status === 401) {
      at("locked-why").textContent = "That key was not accepted. Another one?";
      return at("key").focus();
    }
  }
  at("locked").close();
  at("words").focus();
  connect();
};

// One request

async function run(turn, work) {
  if (running) return;
  running = new AbortController();
  const { signal } = running;
  at("send").textContent = "Stop";
  at("send").classList.add("stop");
  state("Working", "busy");
  turn.begin();
  const doing = mode(), watch = setInterval(() => queued(turn, doing), ONCE_A_SECOND);
  const again = () => run(turn, work);
  try {
    await work(signal);
    state("Ready", "ready");
  } catch (error) {
    state("Ready", "ready");
    if (error.name === "AbortError") turn.stopped(again);
    else failed(turn, error, again);
  } finally {
    clearInterval(watch);
    running = null;
    at("send").classList.remove("stop");
    fit();
  }
}

async function queued(turn, doing) {
  const { waiting } = await readiness().catch(() => ({}));
  if (turn.began || waiting === undefined) return;
  turn.status(waiting ? `Queued, ${waiting} waiting` : WAITING[doing]);
}

function failed(turn, error, again) {
  if (error.code === undefined) console.error(error); // ours
  if (error.status === 401) lock(true);
  const [advice, does] = cure(error);
  const actions = { retry: button("Try again", again), anew: button("New conversation, and ask again", () => {
    messages.length = 0;
    again();
  }), settings: button("Change it", () => {
    openSettings(true);
    at(FIELDS[error.param]).focus();
  }) };
  turn.fail(error.message, advice, actions[does]);
  if (!["retry", "anew"].includes(does) && !at("words").value) at("words").value = turn.words;
  if (error.code === "no_answer") {
    state("No answer", "lost");
    setTimeout(connect, ONCE_A_SECOND);
  }
}

function turnOf(words, pictures) {
  turns.at(-1)?.settle();
  const turn = new Turn(words, pictures, at("model").value);
  turns.push(turn);
  return turn;
}

function ask(words, pictures) {
  const parts = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  const message = { role: "user", content: parts.length ? [...parts, { type: "text", text: words }] : words };
  const place = messages.length, name = at("model").value;
  const pictured = at("pictured").checked && can("image");
  const how = { temperature: given("temperature"), max_completion_tokens: given("longest"), seed: given("seed"),
    ...(pictured && { modalities: ["text", "image"], drawing: { seed: given("seed") } }) };
  const turn = turnOf(words, pictures);
  return run(turn, async (signal) => {
    messages.length = Math.min(place, messages.length);
    const began = performance.now(), images = [];
    let text = "", usage = null, reason = null, first = null, last = null;
    const body = { model: name, messages: [...messages, message], stream: true, stream_options: { include_usage: true } };
    try {
      for await (const chunk of events("v1/chat/completions", { ...body, ...how }, signal)) {
        usage = chunk.usage ?? usage;
        const [{ delta = {}, finish_reason } = {}] = chunk.choices;
        reason = finish_reason ?? reason;
        if (delta.content) {
          last = performance.now();
          first ??= last;
          text += delta.content;
          turn.write(delta.content);
        }
        for (const image of delta.images ?? []) {
          images.push(image);
          const src = image.image_url.url, shown = sheet.collect({ src, prompt: "", model: name });
          turn.inline(make("img", { src, alt: "a picture of the reply" }), ...tools({ src, prompt: "", model: name }, shown));
        }
      }
    } finally {
      const reply = { role: "assistant", content: text, ...(images.length && { images }) };
      if (text || images.length) messages.push(message, reply);
    }
    const count = usage?.completion_tokens ?? 0;
    const speed = !images.length && count >= FEWEST_TOKENS && last > first ? (1e3 * (count - 1)) / (last - first) : null;
    if (speed) at("speed").textContent = speed.toFixed(speed < 10 ? 1 : 0);
    const told = [text || images.length ? null : "The model said nothing", `${count} token${count === 1 ? "" : "s"}`,
      speed && `${at("speed").textContent} tokens/s`, first && `first after ${((first - began) / 1e3).toFixed(2)} s`,
      reason === "length" && "cut at its longest"];
    turn.end(told.filter(Boolean).join(" · "), text || "The reply has no words.");
  });
}

function draw(prompt, picture) {
  const name = at("model").value, { previews = false, size, steps, guidance } = model().drawing ?? {};
  const many = given("many") ?? 1, what = picture ? "edits" : "generations";
  const how = { seed: given("seed") ?? Math.floor(Math.random() * LARGEST_SEED), steps: given("steps"), guidance: given("guidance"),
    size: filled("size")?.replace(/\s*[×*]\s*/, "x"), negative_prompt: filled("avoid") };
  const asked = { model: name, prompt, n: many, stream: true, partial_images: previews ? PREVIEWS : 0,
    ...how, ...(picture && { image: picture.url }) };
  const turn = turnOf(prompt, picture ? [picture] : []);
  return run(turn, async (signal) => {
    turn.expect(many, how.size ?? size, prompt);
    const seeds = [];
    let stepMs = null;
    for await (const event of events(`v1/images/${what}`, asked, signal)) {
      const src = `data:image/${event.output_format};base64,${event.b64_json}`;
      if (event.type.endsWith(".partial_image")) {
        turn.preview(event.index, src, (event.partial_image_index + 1) / (PREVIEWS + 1));
        continue;
      }
      seeds.push(event.seed);
      stepMs = event.step_ms || null;
      const drawn = { src, prompt, seed: event.seed, model: name, steps: how.steps ?? steps ?? undefined, size: how.size,
        guidance: how.guidance ?? guidance, avoid: how.negative_prompt, stepMs, source: picture };
      turn.picture(event.index, src, make("span", { className: "faint" }, `seed ${event.seed}`), ...tools(drawn, sheet.collect(drawn)));
    }
    if (stepMs) at("step").textContent = stepMs.toFixed(stepMs < 10 ? 1 : 0);
    const words = stepMs ? `${at("step").textContent} ms a step` : "Drawn";
    turn.end(words, `Drawn, seed ${seeds.join(", ")}.`);
  });
}

// What can be done with a picture

function tools(picture, place) {
  return [
    button("Larger", () => sheet.enlarge(place), { className: "link" }),
    make("a", { href: picture.src, download: sheet.saveAs(picture), className: "link" }, "Save"),
    ...(model().edits ? [button("Edit", () => change(picture), { className: "link" })] : []),
  ];
}

function change({ src, prompt }) {
  box.detachAll();
  box.attach({ url: src, name: prompt || "the picture" });
  setMode("edit");
  at("words").value = "";
  at("words").focus();
}

function askAbout({ src, prompt }) {
  box.attach({ url: src, name: prompt || "the picture" });
  setMode("ask");
  at("words").focus();
}

function reuse({ prompt, seed, steps, size, guidance, avoid, source, model: name }) {
  if (known.has(name)) at("model").value = name;
  box.detachAll();
  if (source) box.attach(source);
  setMode(source ? "edit" : "draw");
  const own = model().drawing ?? {}, unless = (value, usual) => (value === usual ? undefined : value);
  const values = { words: prompt, seed, avoid, size, steps: unless(steps, own.steps), guidance: unless(guidance, own.guidance) };
  for (const [id, value] of Object.entries(values)) at(id).value = value ?? "";
  openSettings(true);
  at("words").focus();
  say("Seed and prompt are in the message box.");
}

function warn(sentence) {
  at("hint").textContent = sentence;
  at("hint").classList.add("warning");
  say(sentence);
  at("words").focus();
}

// What the hands do

function openSettings(open) {
  at("settings").hidden = !open;
  at("more").setAttribute("aria-expanded", String(open));
}

at("composer").onsubmit = (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const words = at("words").value.trim(), pictures = box.attached, doing = mode();
  const lacks = !model() ? "There is no model yet." : !words ? "Write something first." :
    doing === "edit" && pictures.length !== 1 ? "Editing takes one picture: add it first." : "";
  if (lacks) return warn(lacks);
  at("words").value = "";
  if (doing !== "draw") box.detachAll();
  if (doing === "ask") ask(words, pictures);
  else draw(words, doing === "edit" ? pictures[0] : null);
};

at("words").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) at("composer").requestSubmit();
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.abort();
});

at("anew").onclick = () => {
  running?.abort();
  messages = [];
  turns.length = 0;
  at("turns").replaceChildren();
  at("empty").hidden = false;
  at("words").focus();
  say("A new conversation.");
};

at("more").onclick = () => openSettings(at("settings").hidden);
at("model").onchange = () => {
  offer();
  fit();
};
for (const radio of document.querySelectorAll("[name=mode]")) radio.onchange = fit;

box.listen(picturesChanged, warn);
sheet.listen({ reuse, change, askAbout });
connect();
if (matchMedia("(hover: hover)").matches) at("words").focus(); // a phone would open its keyboard

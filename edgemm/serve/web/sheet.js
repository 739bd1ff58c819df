// The contact sheet: every picture that was drawn since the page was opened, and one of them large.

import { at, button, make } from "./dom.js";

const drawn = []; // {src, prompt, seed, model, steps, size, guidance, avoid, stepMs}; the newest last
let shown = 0;

const named = ({ prompt, seed }) => `${prompt || "picture"}${seed === undefined ? "" : `, seed ${seed}`}`;

export function collect(picture) {
  const place = drawn.push(picture) - 1;
  const open = button(make("img", { src: picture.src, alt: "" }), () => enlarge(place), { aria: { label: named(picture) } });
  at("sheet").prepend(make("li", {}, open));
  at("none").hidden = true;
  at("count").textContent = drawn.length;
  return place;
}

export function saveAs({ prompt, seed }) {
  const words = (prompt || "picture").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  return `${words.slice(0, 40) || "picture"}${seed === undefined ? "" : `-${seed}`}.png`;
}

export function enlarge(place) {
  const picture = drawn[(shown = place)];
  const { src, prompt, seed, model, steps, size, guidance, avoid, stepMs } = picture;
  Object.assign(at("large-picture"), { src, alt: prompt || "a picture of a reply" });
  at("large-words").textContent = prompt || "From a reply";
  const facts = { Model: model, Seed: seed, Steps: steps, Size: size, Guidance: guidance, Avoid: avoid,
    "ms a step": stepMs && stepMs.toFixed(1) };
  const rows = Object.entries(facts).filter(([, value]) => value !== undefined && value !== "");
  at("large-facts").replaceChildren(
    ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
  Object.assign(at("save"), { href: src, download: saveAs(picture) });
  at("reuse").hidden = seed === undefined;
  at("before").disabled = place === 0;
  at("after").disabled = place === drawn.length - 1;
  if (!at("large").open) at("large").showModal();
}

// `on` has reuse(picture), change(picture) and askAbout(picture).
export function listen(on) {
  const leave = (action) => () => {
    at("large").close();
    action(drawn[shown]);
  };
  at("reuse").onclick = leave(on.reuse);
  at("change").onclick = leave(on.change);
  at("ask-about").onclick = leave(on.askAbout);
  at("close").onclick = () => at("large").close();
  at("before").onclick = () => enlarge(shown - 1);
  at("after").onclick = () => enlarge(shown + 1);
  at("large").onclick = (event) => event.target === at("large") && at("large").close(); // beside it
  at("large").onkeydown = (event) => {
    if (event.key === "ArrowLeft" && shown > 0) enlarge(shown - 1);
    if (event.key === "ArrowRight" && shown < drawn.length - 1) enlarge(shown + 1);
  };
}

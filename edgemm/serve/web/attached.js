// Pictures that go with the next message: chosen, dropped or pasted; large ones are made smaller before they travel.

import { at, button, make, say } from "./dom.js";

const LONGEST_SIDE = 2048; // pixels; models read far fewer
const AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];

export let attached = []; // {url: data:, name}
let changed = () => {};

export function attach(...pictures) {
  attached = [...attached, ...pictures];
  show();
  say(`${pictures.map((each) => each.name).join(", ")} attached.`);
}

export function detachAll() {
  attached = [];
  show();
}

function show() {
  const items = attached.map((picture) =>
    make("li", {},
      make("img", { src: picture.url, alt: picture.name }),
      button("×", () => remove(picture), { aria: { label: `Remove ${picture.name}` }, title: "Remove" })));
  at("attached").replaceChildren(...items);
  changed();
}

function remove(picture) {
  attached = attached.filter((each) => each !== picture);
  show();
  at("words").focus();
}

const asUrl = (blob) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = failed;
  reader.readAsDataURL(blob);
});

async function read(file) {
  const bitmap = await createImageBitmap(file);
  const scale = LONGEST_SIDE / Math.max(bitmap.width, bitmap.height);
  if (scale >= 1 && AS_THEY_ARE.includes(file.type)) return { url: await asUrl(file), name: file.name };
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * Math.min(scale, 1)));
  canvas.height = Math.max(1, Math.round(bitmap.height * Math.min(scale, 1)));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return { url: canvas.toDataURL(file.type === "image/jpeg" ? "image/jpeg" : "image/png", 0.92), name: file.name };
}

async function take(files, refused) {
  for (const file of files) {
    try {
      attach(await read(file));
    } catch {
      refused(`${file.name} is not a picture that this browser can read.`);
    }
  }
  at("words").focus();
}

// `onchange` is told of every change, `refused` gets a sentence about a file that is no picture.
export function listen(onchange, refused) {
  changed = onchange;
  at("attach").onclick = () => at("file").click();
  at("file").onchange = () => take([...at("file").files], refused).then(() => (at("file").value = ""));
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    take([...event.clipboardData.files], refused);
  });
  const over = (event, inside) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", inside);
  };
  document.addEventListener("dragover", (event) => over(event, true));
  document.addEventListener("dragleave", (event) => event.relatedTarget || over(event, false));
  document.addEventListener("drop", (event) => {
    over(event, false);
    if (event.dataTransfer?.files.length) take([...event.dataTransfer.files], refused);
  });
}

// A bundle of `edgemm export --one-call draw,read` in a page: files with their hashes, graphs, ids of words, pictures.
import * as ort from "./vendor/ort.mjs";
import { Tokenizer } from "./vendor/tokenizers.mjs";

const SCHEMA = 1;
const TARGET = "cpu";

ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency ?? 1) : 1;
export const threads = ort.env.wasm.numThreads;

export class Bundle {
  static async open(base, progress = () => {}) {
    const bundle = new Bundle();
    bundle.base = base.endsWith("/") ? base : `${base}/`;
    bundle.progress = progress;
    bundle.bytes = {}; // what was fetched, by path
    const found = await fetch(`${bundle.base}manifest.json`);
    if (!found.ok) throw new Error(`manifest.json: is not there (${found.status})`);
    bundle.manifest = JSON.parse(await found.text());
    const version = bundle.manifest.schema_version;
    if (version !== SCHEMA) throw new Error(`manifest.json: schema_version is ${version}, this page reads ${SCHEMA}`);
    const json = JSON.parse(new TextDecoder().decode(await bundle.file(bundle.manifest.tokenizer)));
    bundle.whole = new Tokenizer(json, {});
    bundle.words = new Tokenizer({ ...json, added_tokens: [] }, {}); // a user's text spells no special token
    bundle.sessions = {};
    return bundle;
  }

  // The file's bytes, once; an Error where they are not those of the manifest.
  async file(path) {
    if (this.bytes[path]) return this.bytes[path];
    const record = this.manifest.files[path];
    if (!record || path.startsWith("/") || path.split("/").includes("..")) throw new Error(`${path}: not in the bundle`);
    this.progress(`fetching ${path}`);
    const found = await fetch(this.base + path);
    if (!found.ok) throw new Error(`${path}: is not there (${found.status})`);
    const bytes = new Uint8Array(await found.arrayBuffer());
    if (bytes.length !== record.size_bytes) throw new Error(`${path}: has ${bytes.length} bytes, not ${record.size_bytes}`);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== record.sha256) throw new Error(`${path}: was altered: its SHA-256 is not the manifest's`);
    this.bytes[path] = bytes;
    return bytes;
  }

  async session(name) {
    if (this.sessions[name]) return this.sessions[name];
    const variant = this.manifest.one_call[name]?.variants[TARGET];
    if (!variant) throw new Error(`the bundle has no graph for ${name}: edgemm export --one-call draw,read`);
    const folder = variant.graph.slice(0, variant.graph.lastIndexOf("/") + 1);
    const externalData = [];
    for (const path of variant.shares) externalData.push({ path: path.slice(folder.length), data: await this.file(path) });
    const graph = await this.file(variant.graph);
    this.progress(`opening ${name}`);
    this.sessions[name] = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData });
    this.sessions[name].variant = variant;
    return this.sessions[name];
  }

  ids(piece, own = false) {
    return piece ? Array.from((own ? this.words : this.whole).encode(piece, { add_special_tokens: false }).ids) : [];
  }

  // Pixels (3, H, W) of a picture as ImageData; noise is Float32Array or a seed.
  async draw(prompt, noise = 0) {
    const session = await this.session("draw");
    const { template } = this.manifest.loops.denoise;
    const ids = [...this.ids(template.open), ...this.ids(` ${prompt}`, true), ...this.ids(template.close)];
    const dims = session.variant.inputs.find((input) => input.name === "noise").shape;
    const count = dims.reduce((all, size) => all * size, 1);
    this.progress("drawing");
    const { pixels } = await session.run({
      input_ids: whole(ids, [1, ids.length]),
      prompt_length: whole([ids.length], [1]),
      noise: new ort.Tensor("float32", typeof noise === "number" ? normal(noise, count) : noise, dims),
    });
    const [, , height, width] = pixels.dims;
    this.progress("");
    return { pixels: pixels.data, image: toImage(pixels.data, width, height) };
  }

  // The reply's pieces, as they come; pixels are Float32Array (3, S, S) in [0, 1].
  async *ask(question, pixels, most = 64) {
    const [read, step] = [await this.session("read"), await this.session("token")];
    const { text } = this.manifest.loops;
    const prompt = this.question(question, text);
    const side = text.image_size;
    const slots = Math.min(prompt.ids.length + most, this.manifest.limits.max_context);
    let past = {};
    for (const { name, shape, dtype } of step.variant.inputs) {
      if (!name.startsWith("past_")) continue;
      const dims = shape.map((size) => (typeof size === "number" ? size : slots));
      const size = dims.reduce((all, each) => all * each, 1);
      past[name] = new ort.Tensor(dtype, dtype === "int8" ? new Int8Array(size) : new Float32Array(size), dims);
    }
    const size = [1, prompt.ids.length];
    let out = await read.run({
      pixels: new ort.Tensor("float32", pixels, [1, 3, side, side]),
      input_ids: whole(prompt.ids, size),
      image_index: whole(prompt.rows, size),
      attention_limit: whole(prompt.limits, size),
      ...past,
    });
    const said = [];
    let told = "";
    while (said.length < Math.min(most, slots - prompt.ids.length)) {
      const token = Number(out.next_id.data[0]);
      if (text.stop_token_ids.includes(token)) break;
      said.push(token);
      const all = this.whole.decode(said, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
      if (!all.endsWith("\ufffd") && all.length > told.length) {
        yield all.slice(told.length);
        told = all;
      }
      past = Object.fromEntries(Object.keys(past).map((name) => [name, out[name.replace("past_", "present_")]]));
      out = await step.run({ token_id: out.next_id, position: out.next_position, ...past });
    }
  }

  // bundle/chat.py's row for one question about one picture, of models whose pieces are tokenized alone.
  question(question, loop) {
    const { template } = loop;
    if (loop.joined || loop.block || loop.image_lead) throw new Error("this page reads models whose pieces are tokenized alone");
    const ids = [], rows = [], limits = [];
    const add = (given) => given.forEach((id) => (limits.push(ids.length), ids.push(id), rows.push(-1)));
    if (template.system_default) {
      add(this.ids(template.system_open));
      add(this.ids(template.system_default));
      add(this.ids(template.system_close));
    }
    add(this.ids(template.user_open));
    const last = ids.length + loop.image_token_count - 1;
    for (let row = 0; row < loop.image_token_count; row++) ids.push(0), rows.push(row), limits.push(last);
    add(this.ids(loop.image_close));
    add(this.ids(question, true));
    add(this.ids(template.user_close));
    add(this.ids(template.reply_open ?? template.assistant_open));
    return { ids, rows, limits };
  }
}

const whole = (numbers, dims) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), dims);

// Box and Muller over splitmix64, as in examples/c: a seed's noise, not numpy's.
export function normal(seed, count) {
  let state = BigInt(seed);
  const uniform = () => {
    state = (state + 0x9e3779b97f4a7c15n) & 0xffffffffffffffffn;
    let z = state;
    z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & 0xffffffffffffffffn;
    z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & 0xffffffffffffffffn;
    return (Number((z ^ (z >> 31n)) >> 11n) + 0.5) / 9007199254740992;
  };
  return Float32Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

export function toImage(pixels, width, height) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(255 * pixels[c * width * height + i]);
    image.data[4 * i + 3] = 255;
  }
  return image;
}

// A picture laid on the background and padded to a square of `side`, as Float32Array (3, side, side).
export function toSquare(source, width, height, side, background) {
  const canvas = new OffscreenCanvas(side, side);
  const paper = canvas.getContext("2d", { willReadFrequently: true });
  paper.fillStyle = `rgb(${background.join(",")})`;
  paper.fillRect(0, 0, side, side);
  paper.imageSmoothingQuality = "high";
  const scale = side / Math.max(width, height);
  paper.drawImage(source, (side - width * scale) / 2, (side - height * scale) / 2, width * scale, height * scale);
  const { data } = paper.getImageData(0, 0, side, side);
  return Float32Array.from({ length: 3 * side * side }, (_, i) => data[4 * (i % (side * side)) + Math.floor(i / (side * side))] / 255);
}

// A bundle of `edgemm export --target web --one-call draw` in a page: files with their hashes, graphs, ids of words,
// pictures.
import { Tokenizer } from "./vendor/tokenizers.mjs";

const SCHEMA = 1;

// WebGPU where there is a real GPU and the page does not say ?run=wasm; ?run=webgpu takes a software one, too.
const run = new URLSearchParams(self.location?.search).get("run");
const adapter = run === "wasm" ? null : await navigator.gpu?.requestAdapter().catch(() => null);
const onGpu = Boolean(adapter && (run === "webgpu" || !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter)));
const ort = await import(onGpu ? "./vendor/ort.webgpu.mjs" : "./vendor/ort.mjs");
const TARGETS = onGpu ? ["cpu", "web"] : ["web", "cpu"]; // forms of a bundle, the best of those that are there first
export const device = onGpu ? "WebGPU" : "wasm";

ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency ?? 1) : 1;
export const threads = ort.env.wasm.numThreads;

export class Bundle {
  // `target` is the form that is taken: without it, the first of TARGETS that the bundle has.
  static async open(base, progress = () => {}, target = null) {
    const bundle = new Bundle();
    bundle.base = new URL(base.endsWith("/") ? base : `${base}/`, location.href).href;
    bundle.progress = progress;
    bundle.bytes = {}; // what was fetched for the next graphs, by path
    bundle.seen = new Set(); // paths that were fetched before
    bundle.graphs = {};
    const found = await fetch(`${bundle.base}manifest.json`);
    if (!found.ok) throw new Error(`manifest.json: is not there (${found.status})`);
    bundle.manifest = read(await found.text());
    const version = bundle.manifest.schema_version;
    if (version !== SCHEMA) throw new Error(`manifest.json: schema_version is ${version}, this page reads ${SCHEMA}`);
    checkNumbers(bundle.manifest);
    bundle.target = target ?? TARGETS.find((name) => bundle.manifest.targets?.[name]);
    if (!bundle.target) throw new Error("the bundle is for no browser: edgemm export --target web --one-call draw");
    const json = JSON.parse(new TextDecoder().decode(await bundle.file(bundle.manifest.tokenizer)));
    bundle.bytes = {};
    bundle.whole = new Tokenizer(json, {});
    bundle.words = new Tokenizer({ ...json, added_tokens: [] }, {}); // a user's text spells no special token
    return bundle;
  }

  // The file's bytes, once; an Error where they are not those of the manifest.
  async file(path) {
    if (this.bytes[path]) return this.bytes[path];
    const record = typeof path === "string" && this.manifest.files?.[path];
    if (!record || !new URL(this.base + path).href.startsWith(this.base)) throw new Error(`${path}: not in the bundle`);
    this.progress(`fetching ${path}`);
    const found = await fetch(this.base + path, { cache: this.seen.has(path) ? "force-cache" : "default" });
    if (!found.ok) throw new Error(`${path}: is not there (${found.status})`);
    const bytes = new Uint8Array(await found.arrayBuffer());
    if (bytes.length !== record.size_bytes) throw new Error(`${path}: has ${bytes.length} bytes, not ${record.size_bytes}`);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const told = String(record.sha256);
    if (told.length !== 64) throw new Error(`${path}: its SHA-256 in the manifest has ${told.length} digits, not 64`);
    if (hex !== told) throw new Error(`${path}: was altered: its SHA-256 is not the manifest's`);
    this.seen.add(path);
    this.bytes[path] = bytes;
    return bytes;
  }

  // The graphs of whole loops, or of components; opened once, and then they alone hold their weights.
  async sessions(...names) {
    for (const name of names) this.graphs[name] ??= await this.session(name);
    this.bytes = {};
    return names.map((name) => this.graphs[name]);
  }

  async session(name) {
    const { one_call: calls = {}, components, targets } = this.manifest;
    const variant = calls[name] ? calls[name].variants[this.target] : components[name]?.variants[targets[this.target][name]];
    if (!variant) throw new Error(`the bundle has no graph for ${name}: edgemm export --target web --one-call draw`);
    const folder = variant.graph.slice(0, variant.graph.lastIndexOf("/") + 1);
    const externalData = [];
    for (const path of variant.data ? [variant.data] : variant.shares ?? [])
      externalData.push({ path: path.slice(folder.length), data: await this.file(path) });
    const graph = await this.file(variant.graph);
    this.progress(`opening ${name}`);
    const opened = (executionProviders) => ort.InferenceSession.create(graph, { executionProviders, externalData });
    const inWasm = () => opened(["wasm"]).catch((error) => { throw new Error(`${variant.graph}: ${error.message}`); });
    // onnxruntime-web 1.30's WebGPU lacks attention that sees ahead, which the transformer has: that runs in wasm
    const session = onGpu ? await opened(["webgpu", "wasm"]).catch(inWasm) : await inWasm();
    session.variant = variant;
    return session;
  }

  ids(piece, own = false) {
    return piece ? Array.from((own ? this.words : this.whole).encode(piece, { add_special_tokens: false }).ids) : [];
  }

  // Pixels (3, H, W) of a picture as ImageData; noise is Float32Array or a seed.  With `preview`, a function of the
  // picture so far as ImageData, of the step and of all steps, it is called after every `every` steps.
  async draw(prompt, noise = 0, preview = null, every = 1) {
    const loop = this.manifest.loops?.denoise;
    if (!loop) throw new Error("the bundle does not draw by denoising");
    const { template } = loop;
    if (template.joined || template.strip || template.size_sentence) throw new Error("this page draws with models whose pieces are tokenized alone");
    if (typeof noise === "number" && !(Number.isSafeInteger(noise) && noise >= 0)) throw new Error(`seed is ${noise}, expected 0 to 2^53 - 1`);
    const [open, close] = [this.ids(template.open), this.ids(template.close)];
    const ids = [...open, ...this.ids(` ${prompt}`, true), ...close];
    this.checkRoom(ids.length);
    const given = (dims) => {
      const count = dims.reduce((all, size) => all * size, 1);
      return new ort.Tensor("float32", typeof noise === "number" ? normal(noise, count) : noise, dims);
    };
    if (preview && inPlainSteps(loop)) return this.inSteps(ids, [open.length, close.length], given, loop, preview, every);
    const [session] = await this.sessions("draw");
    const dims = session.variant.inputs.find((input) => input.name === "noise").shape;
    this.progress("drawing");
    const { pixels } = await session.run({ input_ids: whole(ids, [1, ids.length]), prompt_length: whole([ids.length], [1]), noise: given(dims) });
    return this.drawn(pixels);
  }

  checkRoom(tokens) {
    const most = this.manifest.limits.max_context;
    if (tokens > most) throw new Error(`the prompt takes ${tokens} tokens, this bundle holds at most ${most}; shorten it`);
  }

  drawn(pixels) {
    if (!pixels.data.every((value) => value >= 0 && value <= 1)) throw new Error("pixels: not all from 0 to 1");
    const [, , height, width] = pixels.dims;
    return { pixels: pixels.data, image: toImage(pixels.data, width, height) };
  }

  // The same by the components, a step at a time.
  async inSteps(ids, [before, after], given, loop, preview, every) {
    const [reader, conditioner, denoiser, decoder] =
      await this.sessions("transformer", "conditioner", "denoiser", "image_decoder");
    const s = ids.length, row = (make) => Array.from({ length: s }, (_, i) => make(i));
    const known = {
      input_ids: whole(ids, [1, s]), image_index: whole(row(() => -1), [1, s]), write_index: whole([0], [1]),
      attention_limit: whole(row((i) => i), [1, s]), logits_index: whole([s - 1], [1]), draft_index: whole([0], [1, 1]),
      prefix_length: whole([s], [1]),
      prompt_mask: new ort.Tensor("float32", Float32Array.from(row((i) => Number(i >= before && i < s - after))), [1, s]),
    };
    this.progress("drawing");
    const read = await reader.run(feeds(reader, known, s));
    for (const name of Object.keys(read)) known[name.replace("present_", "past_")] = read[name];
    Object.assign(known, await conditioner.run(feeds(conditioner, known, s)));
    const steps = this.manifest.one_call?.draw?.num_inference_steps ?? loop.num_inference_steps;
    const time = (k) => k / (k + loop.shift * (steps - k)); // 0 is noise, 1 the picture
    let x = given(denoiser.variant.inputs[0].shape.map((size) => (typeof size === "number" ? size : 1)));
    for (let k = 0; ; k++) {
      const [now, later] = [time(k), time(k + 1)];
      known[denoiser.variant.inputs[0].name] = x;
      known.time = new ort.Tensor("float32", [now], [1]);
      known.step_size = new ort.Tensor("float32", [later - now], [1]);
      const clean = (await denoiser.run(feeds(denoiser, known, s))).prediction;
      const last = k + 1 === steps, shown = last || (k + 1) % every === 0;
      const { pixels } = shown ? await decoder.run({ [decoder.variant.inputs[0].name]: clean }) : {};
      for (let i = 0; pixels && i < pixels.data.length; i++) pixels.data[i] = Math.min(1, Math.max(0, pixels.data[i]));
      if (last) return this.drawn(pixels);
      if (shown) await preview(this.drawn(pixels).image, k + 1, steps);
      const part = Math.fround((later - now) / (1 - now));
      x = new ort.Tensor("float32", x.data.map((value, i) => value + part * (clean.data[i] - value)), x.dims);
    }
  }

  // The reply's pieces, as they come; pixels are Float32Array (3, S, S) in [0, 1].  `stops` are the tokens that end it.
  async *ask(question, pixels, most = 64, stops = this.manifest.loops?.text?.stop_token_ids ?? []) {
    const text = this.manifest.loops?.text;
    if (!text) throw new Error("the bundle does not talk");
    const prompt = this.question(question, text), side = text.image_size;
    this.checkRoom(prompt.ids.length);
    const [encoder, reader] = await this.sessions("image_encoder", "transformer");
    let position = prompt.ids.length;
    const size = [1, position], slots = Math.min(position + most, this.manifest.limits.max_context);
    const known = {
      ...(await encoder.run({ pixels: new ort.Tensor("float32", pixels, [1, 3, side, side]) })),
      input_ids: whole(prompt.ids, size), image_index: whole(prompt.rows, size), write_index: whole([0], [1]),
      attention_limit: whole(prompt.limits, size), logits_index: whole([position - 1], [1]), draft_index: whole([0], [1, 1]),
    };
    const said = [];
    let told = "";
    for (; said.length < most && position < slots; position++) {
      const { logits, ...caches } = await reader.run(feeds(reader, known, slots));
      const token = likeliest(logits.data);
      if (stops.includes(token)) break;
      said.push(token);
      const all = this.whole.decode(said, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
      if (!all.endsWith("\ufffd") && all.length > told.length) {
        yield all.slice(told.length);
        told = all;
      }
      for (const name of Object.keys(caches)) known[name.replace("present_", "past_")] = caches[name];
      delete known.image_tokens; // the cache has them
      Object.assign(known, {
        input_ids: whole([token], [1, 1]), image_index: whole([-1], [1, 1]), write_index: whole([position], [1]),
        attention_limit: whole([position], [1, 1]), logits_index: whole([0], [1]),
      });
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

// The manifest's JSON, an object; what a parser says of other text names no file.
function read(text) {
  let found;
  try { found = JSON.parse(text); } catch { /* told below */ }
  if (found?.constructor !== Object) throw new Error("manifest.json: not the JSON object that was expected");
  return found;
}

// Whole numbers of the manifest that arrays and loops are sized by.
function checkNumbers({ limits, loops, one_call: calls }) {
  const { text, denoise } = loops ?? {};
  const told = [["limits.max_context", limits?.max_context, 1 << 20]];
  if (text) told.push(["loops.text.image_size", text.image_size, 4096], ["loops.text.image_token_count", text.image_token_count, 1 << 16]);
  if (denoise) told.push(["loops.denoise.num_inference_steps", denoise.num_inference_steps, 1000]);
  if (calls?.draw) told.push(["one_call.draw.num_inference_steps", calls.draw.num_inference_steps, 1000]);
  for (const [name, found, most] of told)
    if (!Number.isInteger(found) || found < 1 || found > most)
      throw new Error(`manifest.json: ${name} is ${JSON.stringify(found) ?? "missing"}, expected 1 to ${most}`);
}

// A graph's inputs: those that are known, and zeros, with `slots` of a cache.
const feeds = (session, known, slots) => Object.fromEntries(session.variant.inputs.map(({ name, shape, dtype }) => {
  const dims = shape.map((size) => (typeof size === "number" ? size : size === "T" ? slots : 1));
  return [name, known[name] ?? new ort.Tensor(dtype, zeros(dtype, dims), dims)];
}));

const likeliest = (numbers) => numbers.reduce((best, number, i) => (number > numbers[best] ? i : best), 0);

// What `inSteps` knows: Euler's steps towards the clean picture, without guidance.  Others draw in one call.
const inPlainSteps = (loop) =>
  loop.prediction === "x" && loop.solver === "euler" && loop.time_zero === "noise" && loop.spacing === "linear" &&
  loop.sigma_first === 1 && loop.sigma_last === 0 && loop.time_scale === 1 && !loop.time_whole && loop.guidance_scale === 1;

const zeros = (dtype, dims) => {
  const size = dims.reduce((all, each) => all * each, 1);
  return new { int8: Int8Array, float32: Float32Array, int64: BigInt64Array }[dtype](size);
};

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

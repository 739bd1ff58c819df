// web_forms.py runs this beside onnxruntime-web: graphs of its wish in turns, and what each took.
import * as ort from "onnxruntime-web";
import { readFileSync } from "node:fs";
const { threads, rounds, cases } = JSON.parse(readFileSync(process.argv[2]));
ort.env.wasm.numThreads = threads;
const middle = (all) => all.toSorted((a, b) => a - b)[Math.floor(all.length / 2)];
let state = 7n;
const uniform = () => ((state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn), (Number(state >> 11n) + 0.5) / 2 ** 53);
const normal = (count) => Float32Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
const [LENGTH, SLOTS] = [40, 64], kept = {};
function input({ name, shape, dtype }) {
  const dims = shape.map((size) => (typeof size === "number" ? size : name.startsWith("past_") ? SLOTS : LENGTH));
  const count = dims.reduce((all, size) => all * size, 1);
  if (dtype === "float32") return new ort.Tensor(dtype, name.startsWith("past_") ? new Float32Array(count) : (kept[name + dims] ??= normal(count)), dims);
  if (dtype === "int8") return new ort.Tensor(dtype, new Int8Array(count), dims);
  const whole = { prompt_length: () => LENGTH, position: () => LENGTH, image_index: () => -1, attention_limit: (i) => i };
  return new ort.Tensor(dtype, BigInt64Array.from({ length: count }, (_, i) => BigInt((whole[name] ?? ((i) => 500 + 37 * i))(i))), dims);
}
const found = [];
for (const { what, forms } of cases) {
  const opened = [];
  for (const { name, graph, data, inputs } of forms) {
    const externalData = data.map(([path, file]) => ({ path, data: readFileSync(file) })), start = performance.now();
    const session = await ort.InferenceSession.create(readFileSync(graph), { executionProviders: ["wasm"], externalData });
    opened.push({ name, session, open_ms: performance.now() - start, feeds: Object.fromEntries(inputs.map((each) => [each.name, input(each)])), wall: [], cpu: [] });
  }
  for (let round = -rounds; round < rounds; round++) // V8 compiles what is hot once more, and well: the first half does not count
    for (const form of opened) {
      const cpu = process.cpuUsage(), start = performance.now();
      const out = await form.session.run(form.feeds);
      const used = process.cpuUsage(cpu);
      if (round >= 0) form.wall.push(performance.now() - start), form.cpu.push((used.user + used.system) / 1e3);
      form.out = out[form.session.outputNames[0]].data;
    }
  const base = opened[0];
  for (const { name, open_ms, wall, cpu, out } of opened) {
    let error = 0, signal = 0;
    if (out instanceof Float32Array) out.forEach((value, i) => ((error += (value - base.out[i]) ** 2), (signal += base.out[i] ** 2)));
    found.push({ what, name, open_ms, wall_ms: middle(wall), cpu_ms: middle(cpu), sooner: middle(cpu.map((ms, i) => base.cpu[i] / ms)),
      sooner_wall: middle(wall.map((ms, i) => base.wall[i] / ms)), db: error ? 10 * Math.log10(signal / error) : null });
  }
  for (const { session } of opened) await session.release();
}
console.log(JSON.stringify(found));
process.exit(0);

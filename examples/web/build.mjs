// Copies what the page loads of its two libraries into vendor/, so that nothing is fetched from elsewhere.
import { cpSync, mkdirSync } from "node:fs";

const files = {
  "onnxruntime-web/dist/ort.wasm.min.mjs": "ort.mjs",
  "onnxruntime-web/dist/ort.webgpu.min.mjs": "ort.webgpu.mjs", // fetched where the page finds WebGPU
  "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs": "ort-wasm-simd-threaded.asyncify.mjs",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm": "ort-wasm-simd-threaded.asyncify.wasm",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.mjs",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
  "@huggingface/tokenizers/dist/tokenizers.min.mjs": "tokenizers.mjs",
};
mkdirSync("vendor", { recursive: true });
for (const [from, to] of Object.entries(files)) cpSync(`node_modules/${from}`, `vendor/${to}`);

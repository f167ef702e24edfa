/** The engines that bench/web.py measures in a browser. Each has a function story(seed). */

import { Engine } from "./engine.js";

const TEMPERATURE = 1, TOP_P = 0.9;

async function read(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status}`);
  return response.arrayBuffer();
}

/** Return this engine with a weight file. It ends a story at EOS. */
export async function loadOurs(model, steps, engine = null) {
  engine ??= await Engine.load("engine.wasm");
  engine.open(await read(model));
  return (seed) => {
    const options = { temperature: TEMPERATURE, top_p: TOP_P, seed, max_tokens: steps };
    let tokens = 0;
    for (const token of engine.generate("", options)) tokens += token.id >= 0;
    return tokens;
  };
}

/** Return this engine with a weight file and several threads, in a worker: bench/web_worker.js. */
export async function loadThreaded(model, steps) {
  const worker = new Worker("web_worker.js", { type: "module" });
  const ask = (message) => new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = (event) => reject(new Error(event.message || "The worker fails."));
    worker.postMessage(message);
  });
  await ask({ model, steps });
  return (seed) => ask({ seed });
}

/** Return a build of llama2.c with its checkpoint. It goes on after EOS. */
export async function loadLlama2c(build, steps) {
  const module = await WebAssembly.compile(await read(build));
  const imports = {};
  for (const { module: from, name } of WebAssembly.Module.imports(module))
    (imports[from] ??= {})[name] = () => 8;
  const { exports } = await WebAssembly.instantiate(module, imports);
  exports._initialize();
  const data = new Uint8Array(await read("model.bin"));
  const address = exports.allocate(data.length);
  new Uint8Array(exports.memory.buffer).set(data, address);
  exports.load(address);
  return (seed) => {
    exports.story(steps, TEMPERATURE, TOP_P, BigInt(seed + 1));
    return steps;
  };
}

/** Generate stories and return tokens a second. */
export async function measure(story, stories, seed) {
  const start = performance.now();
  let tokens = 0;
  for (let i = 0; i < stories; i++) tokens += await story(seed + i);
  return (1000 * tokens) / (performance.now() - start);
}

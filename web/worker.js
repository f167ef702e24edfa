/**
 * The engine in a worker, so that the page stays responsive.
 *
 * The page sends {kind: "open", name} with address or file, {kind: "generate", prompt, options} and
 * {kind: "stop"}. The worker answers "progress", "opened", "tokens", "finished" and
 * "failed".
 */

import { countThreads, Engine } from "./engine.js";
import { fetchModel } from "./models.js";

const ALTERNATIVES = 5;

/** Milliseconds of work between two messages. A screen shows some 30 changes in a second. */
const SLICE = 30;

let engine = null;
let isStopped = false;

/** Let messages arrive. A timer would wait for 4 ms. */
function pause() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** Load the engine, with one thread if others cannot be started. */
async function load() {
  const threads = countThreads(), at = (name) => new URL(name, import.meta.url);
  if (threads > 1)
    try {
      return await Engine.loadThreaded(at("engine-threads.wasm"), threads);
    } catch {
      // The browser lacks the memory or a worker: the other module has less need.
    }
  return Engine.load(at("engine.wasm"));
}

async function open({ address, file, name }) {
  const data = file
    ? await file.arrayBuffer()
    : await fetchModel(address, (share) => postMessage({ kind: "progress", share }));
  engine ??= await load();
  postMessage({ kind: "opened", info: engine.open(data, name) });
}

/** Generate tokens for a slice of time. */
function generateSlice(tokens) {
  const end = performance.now() + SLICE;
  do tokens.push(engine.next());
  while (tokens.at(-1).stop === "running" && performance.now() < end);
}

async function generate({ prompt, options }) {
  isStopped = false;
  let start = performance.now();
  const promptTokens = engine.start(prompt, options, ALTERNATIVES);
  const promptSeconds = (performance.now() - start) / 1000;
  let seconds = 0, count = 0, stop = "running";
  while (stop === "running" && !isStopped) {
    const tokens = [];
    start = performance.now();
    generateSlice(tokens);
    seconds += (performance.now() - start) / 1000;
    count += tokens.filter((token) => token.id >= 0).length;
    stop = tokens.at(-1).stop;
    postMessage({ kind: "tokens", tokens, count, seconds });
    await pause();
  }
  if (stop === "running") stop = "stopped";
  postMessage({ kind: "finished", stop, count, seconds, promptTokens, promptSeconds });
}

/** Return a sentence for what went wrong. */
function describe(error) {
  if (!(error instanceof WebAssembly.RuntimeError) && !(error instanceof RangeError))
    return error.message;
  return "The engine has failed, perhaps for lack of memory: load the page again.";
}

onmessage = async ({ data }) => {
  if (data.kind === "stop") {
    isStopped = true;
    return;
  }
  try {
    await (data.kind === "open" ? open(data) : generate(data));
  } catch (error) {
    postMessage({ kind: "failed", during: data.kind, message: describe(error) });
  }
};

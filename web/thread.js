/**
 * A thread of the engine: a worker with an instance of engine-threads.wasm in shared memory. It
 * gets one message, from engine.js, and answers whether it can start. Then it runs parts of loops
 * and never returns.
 */

import { importsOf } from "./engine.js";

async function instantiate({ module, memory, stack }) {
  const { exports } = await WebAssembly.instantiate(module, importsOf(module, memory));
  exports.__stack_pointer.value = stack;
  return exports;
}

onmessage = async ({ data }) => {
  const exports = await instantiate(data).catch(() => null);
  postMessage(Boolean(exports));
  exports?.run_worker(data.number);
};

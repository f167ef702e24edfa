/** The engine with threads, which bench/web.js measures: only a worker may wait for threads. */

import { Engine } from "./engine.js";
import { loadOurs } from "./web.js";

const THREADS = 2;

let story;

onmessage = async ({ data }) => {
  if (data.model) {
    const engine = await Engine.loadThreaded("engine-threads.wasm", THREADS);
    story = await loadOurs(data.model, data.steps, engine);
    postMessage(0);
  } else {
    postMessage(story(data.seed));
  }
};

/**
 * The StoryLlamas engine as a JavaScript class. It needs engine.wasm and nothing else; with threads,
 * engine-threads.wasm and thread.js:
 *
 *     const engine = await Engine.load("engine.wasm");
 *     engine.open(await (await fetch("model.slm")).arrayBuffer());
 *     for (const token of engine.generate("Once upon a time", { seed: 7 })) show(token.text);
 *
 * An engine holds one model and one sequence. Every method but load runs until it has its result,
 * so use a worker where a page must stay responsive; worker.js does. A method that fails throws an
 * Error whose message is a sentence for the user.
 */

/** Browsers that run WebAssembly SIMD, for the message that one does not. */
const BROWSERS = "Chrome or Edge from 91, Firefox from 89, or Safari from 16.4";

/** A module with one function, which uses a SIMD instruction. */
const SIMD_MODULE = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
  253, 98, 11,
];

/** The options of sampling and their defaults; csrc/storyllamas.h describes them. */
export const DEFAULTS = Object.freeze({
  temperature: 0.8,
  top_k: 0,
  top_p: 0.9,
  min_p: 0,
  repetition_penalty: 1,
  repetition_window: 64,
  seed: 42n,
  max_tokens: 512,
});

/** Return whether this browser can run the engine. */
export function hasSimd() {
  return typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(SIMD_MODULE));
}

const EBADF = 8;

/** Pages of 64 kB: of engine-threads.wasm at first, and at most, where a browser may allow less. */
const FIRST_PAGES = 64, MAX_PAGES = [65536, 16384, 4096];

/** Bytes of a thread's stack, and the alignment of its end. */
const STACK = 1 << 18, STACK_ALIGNMENT = 16;

/** More threads wait for each other longer than they compute. */
const MAX_THREADS = 4;

/** Milliseconds in which a worker must start. */
const PATIENCE = 10_000;

/**
 * Return all that a module imports. It has no files: each function of the system fails.
 *
 * @param {WebAssembly.Module} module
 * @param {WebAssembly.Memory} memory of engine-threads.wasm; engine.wasm imports none
 */
export function importsOf(module, memory) {
  const imports = {};
  for (const { module: from, name } of WebAssembly.Module.imports(module))
    (imports[from] ??= {})[name] = () => EBADF;
  if (memory) Object.assign(imports.env, { memory, clock: () => 1e6 * performance.now() });
  return imports;
}

/**
 * Return how many threads the engine can use here: 1 unless the page is isolated, which the headers
 * of its server decide, and this is a worker. A page itself must not wait for threads.
 */
export function countThreads() {
  const isWorker = typeof WorkerGlobalScope === "function" && self instanceof WorkerGlobalScope;
  if (!isWorker || !self.crossOriginIsolated || typeof Worker !== "function") return 1;
  return Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS);
}

async function compile(url) {
  if (!hasSimd()) throw new Error(`This browser does not run WebAssembly SIMD: use ${BROWSERS}.`);
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} cannot be loaded: ${response.status}.`);
  return WebAssembly.compile(await response.arrayBuffer());
}

/** Return memory for several threads, as large as the browser allows. */
function shareMemory() {
  for (const maximum of MAX_PAGES)
    try {
      return new WebAssembly.Memory({ initial: FIRST_PAGES, maximum, shared: true });
    } catch (error) {
      if (maximum === MAX_PAGES.at(-1)) throw error;
    }
}

/** Start a thread with its message for thread.js, and return its worker once it is ready. */
function startThread(message) {
  const worker = new Worker(new URL("thread.js", import.meta.url), { type: "module" });
  return new Promise((resolve, reject) => {
    const fail = () => {
      worker.terminate();
      reject(new Error("A thread cannot be started."));
    };
    const timer = setTimeout(fail, PATIENCE);
    worker.onerror = fail;
    worker.onmessage = ({ data: isReady }) => {
      clearTimeout(timer);
      if (isReady) resolve(worker);
      else fail();
    };
    worker.postMessage(message);
  });
}

export class Engine {
  #exports;
  #memoryObject;
  #workers = []; // one for each thread but this one
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #bytes; // the engine's memory, also as #words and #floats: see #memory
  #words;
  #floats;
  #length; // where piece() writes a length
  #stops = []; // names of stops, by number
  #isOpen = false;

  constructor(exports, memory = exports.memory) {
    this.#exports = exports;
    this.#memoryObject = memory;
    this.#length = exports.allocate(4);
  }

  /**
   * Load engine.wasm.
   *
   * @param {string | URL} url
   * @returns {Promise<Engine>}
   */
  static async load(url) {
    const module = await compile(url);
    const { exports } = await WebAssembly.instantiate(module, importsOf(module));
    exports._initialize();
    return new Engine(exports);
  }

  /**
   * Load engine-threads.wasm and start its threads, in a worker of an isolated page.
   *
   * @param {string | URL} url
   * @param {number} threads with this one; see countThreads
   * @returns {Promise<Engine>}
   */
  static async loadThreaded(url, threads) {
    const module = await compile(url), memory = shareMemory();
    const { exports } = await WebAssembly.instantiate(module, importsOf(module, memory));
    exports._initialize();
    const engine = new Engine(exports, memory);
    await engine.#startThreads(module, threads - 1);
    return engine;
  }

  async #startThreads(module, count) {
    const starts = [];
    for (let number = 0; number < count; number++) {
      const end = (this.#exports.allocate(STACK) >>> 0) + STACK;
      const stack = end - (end % STACK_ALIGNMENT);
      starts.push(startThread({ module, memory: this.#memoryObject, stack, number }));
    }
    const results = await Promise.allSettled(starts);
    this.#workers = results.filter((each) => each.value).map((each) => each.value);
    if (this.#workers.length < count) {
      for (const worker of this.#workers) worker.terminate();
      throw new Error("The threads cannot be started.");
    }
    this.#exports.set_workers(count);
  }

  /**
   * Open a weight file. It replaces the model that was open before.
   *
   * @param {ArrayBuffer} data the whole file
   * @param {string} name of the file, for messages
   * @param {number} threads 0: as many as suit the model, of those that were loaded
   * @returns {object} parameters, bytes, type, context, vocabulary, kernels, and threads: the most
   *     that the model may use
   */
  open(data, name = "data", threads = 0) {
    this.#isOpen = false;
    this.#exports.close();
    const address = this.#copy(new Uint8Array(data));
    const status = this.#exports.open(address, data.byteLength, threads);
    this.#isOpen = !status;
    if (status) throw new Error(this.#message().replace(/\bdata\b/i, () => name));
    return { ...JSON.parse(this.#string(this.#exports.info())), threads: this.#workers.length + 1 };
  }

  /**
   * Start a sequence: put the prompt through the model.
   *
   * @param {string} prompt
   * @param {object} options those of DEFAULTS that differ; seed is a number or a BigInt
   * @param {number} alternatives how many of the most probable tokens come with each token, up to
   *     20; without any, tokens have no probability either, which is faster
   * @returns {number} the tokens of the prompt
   */
  start(prompt, options = {}, alternatives = 0) {
    if (!this.#isOpen) throw new Error("No model is open: open a weight file first.");
    const o = { ...DEFAULTS, ...options };
    const text = new TextEncoder().encode(prompt);
    const address = this.#copy(text);
    const status = this.#exports.start(
      address, text.length, o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty,
      o.repetition_window, BigInt(o.seed), o.max_tokens, alternatives,
    );
    this.#exports.release(address);
    this.#check(status);
    return this.#exports.prompt_tokens();
  }

  /**
   * Generate the next token.
   *
   * @returns {object} text; id, or -1 if the sequence stopped without a token; stop, which is
   *     "running" or why the sequence ends here; probability; alternatives, a list of {id, text,
   *     probability}. Probabilities are the model's, before any option of sampling.
   */
  next() {
    this.#check(this.#exports.next());
    this.#memory();
    const at = (this.#exports.result() >>> 0) / 4, words = this.#words, floats = this.#floats;
    const alternatives = [];
    for (let i = 0; i < words[at + 5]; i++)
      alternatives.push({ id: words[at + 6 + 2 * i], probability: floats[at + 7 + 2 * i] });
    const token = {
      text: this.#text(words[at], words[at + 1]),
      id: words[at + 2],
      stop: (this.#stops[words[at + 3]] ??= this.#string(this.#exports.stop_name(words[at + 3]))),
      probability: floats[at + 4],
      alternatives,
    };
    for (const each of alternatives) each.text = this.piece(each.id);
    return token;
  }

  /** Generate the tokens of a sequence one by one; the arguments are those of start. */
  *generate(prompt, options = {}, alternatives = 0) {
    this.start(prompt, options, alternatives);
    let token;
    do {
      token = this.next();
      yield token;
    } while (token.stop === "running");
  }

  /** Return a token as the vocabulary spells it, with spaces as they are. */
  piece(id) {
    const address = this.#exports.piece(id, this.#length);
    this.#memory();
    return this.#text(address, this.#words[this.#length / 4]).replaceAll("\u2581", " ");
  }

  /** Copy bytes into the engine's memory and return their address. */
  #copy(bytes) {
    const address = this.#exports.allocate(bytes.length) >>> 0;
    if (!address) throw new Error(`There is not enough memory for ${bytes.length} bytes.`);
    this.#memory().set(bytes, address);
    return address;
  }

  /** Return the engine's memory as bytes. The views end to be valid when it grows. */
  #memory() {
    const { buffer } = this.#memoryObject;
    if (this.#bytes?.buffer !== buffer) {
      this.#bytes = new Uint8Array(buffer);
      this.#words = new Int32Array(buffer);
      this.#floats = new Float32Array(buffer);
    }
    return this.#bytes;
  }

  /** Return a text. JavaScript gets addresses beyond 2 GB as negative numbers. */
  #text(address, length) {
    const start = address >>> 0;
    if (!length) return "";
    // A browser does not decode shared memory, so this is a copy.
    return this.#decoder.decode(this.#memory().slice(start, start + length));
  }

  /** Return a text that ends with NUL. */
  #string(address) {
    const start = address >>> 0;
    return this.#text(start, this.#memory().indexOf(0, start) - start);
  }

  /** Return the message of the last error as a sentence. */
  #message() {
    const message = this.#string(this.#exports.error());
    return `${message[0].toUpperCase()}${message.slice(1)}.`;
  }

  #check(status) {
    if (status) throw new Error(this.#message());
  }
}

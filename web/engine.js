/**
 * The StoryLlamas engine as a JavaScript class. It needs engine.wasm and nothing else:
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
  max_tokens: 256,
});

/** Return whether this browser can run the engine. */
export function hasSimd() {
  return typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(SIMD_MODULE));
}

const EBADF = 8;

/** Return functions for all that a module imports from the system. It has no files: each fails. */
function withoutSystem(module) {
  const imports = {};
  for (const { module: from, name } of WebAssembly.Module.imports(module))
    (imports[from] ??= {})[name] = () => EBADF;
  return imports;
}

export class Engine {
  #exports;
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #bytes; // the engine's memory, also as #words and #floats: see #memory
  #words;
  #floats;
  #length; // where piece() writes a length
  #stops = []; // names of stops, by number
  #isOpen = false;

  constructor(exports) {
    this.#exports = exports;
    this.#length = exports.allocate(4);
  }

  /**
   * Load engine.wasm.
   *
   * @param {string | URL} url
   * @returns {Promise<Engine>}
   */
  static async load(url) {
    if (!hasSimd())
      throw new Error(`This browser does not run WebAssembly SIMD: use ${BROWSERS}.`);
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url} cannot be loaded: ${response.status}.`);
    const module = await WebAssembly.compile(await response.arrayBuffer());
    const { exports } = await WebAssembly.instantiate(module, withoutSystem(module));
    exports._initialize();
    return new Engine(exports);
  }

  /**
   * Open a weight file. It replaces the model that was open before.
   *
   * @param {ArrayBuffer} data the whole file
   * @param {string} name of the file, for messages
   * @returns {object} parameters, bytes, type, context, vocabulary, kernels
   */
  open(data, name = "data") {
    this.#isOpen = false;
    this.#exports.close();
    const address = this.#copy(new Uint8Array(data));
    const status = this.#exports.open(address, data.byteLength);
    this.#isOpen = !status;
    if (status) throw new Error(this.#message().replace(/\bdata\b/i, () => name));
    return JSON.parse(this.#string(this.#exports.info()));
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
    const { buffer } = this.#exports.memory;
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
    return length ? this.#decoder.decode(this.#memory().subarray(start, start + length)) : "";
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

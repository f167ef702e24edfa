/** The prompt and the options of sampling: the form, and the link that holds them. */

import { DEFAULTS } from "./engine.js";

/** The options that have a control, by the id of the control. */
const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens",
];

const MAX_SEED = 2n ** 64n;

function control(id) {
  return document.getElementById(id);
}

/** Show the value of a slider next to it. */
function showValue(input) {
  const output = document.querySelector(`output[for="${input.id}"]`);
  if (output) output.value = Number(input.value).toFixed(2);
}

/** Prepare the controls: their defaults are the engine's. */
export function prepare() {
  for (const id of NUMBERS) {
    control(id).value = DEFAULTS[id];
    control(id).addEventListener("input", () => showValue(control(id)));
    showValue(control(id));
  }
}

/** Return a random seed. It is short enough to read out. */
function randomSeed() {
  return BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** Return the seed that a text gives; null if it is empty. */
function parseSeed(text) {
  if (text.trim() === "") return null;
  if (!/^\s*\d{1,20}\s*$/.test(text) || BigInt(text) >= MAX_SEED)
    throw new Error(`The seed is ${text} and must be a whole number from 0 to ${MAX_SEED - 1n}.`);
  return BigInt(text);
}

/** Return the label of a control. */
function labelOf(input) {
  return input.labels[0].textContent;
}

/**
 * Return the prompt and the options in the form; an empty seed becomes a random one. Raises an
 * Error whose message names a control with a wrong value.
 */
export function read() {
  const options = { seed: parseSeed(control("seed").value) ?? randomSeed() };
  for (const id of NUMBERS) {
    const input = control(id);
    if (input.value === "" || !input.checkValidity()) {
      const range = input.max ? `from ${input.min} to ${input.max}` : `of at least ${input.min}`;
      throw new Error(`${labelOf(input)} must be a number ${range}.`);
    }
    options[id] = Number(input.value);
  }
  return { prompt: control("prompt").value, options };
}

/** Return the part of a link after "#" that holds a prompt, options and a model. */
export function toFragment({ prompt, options, model }) {
  const fields = new URLSearchParams({ prompt });
  for (const id of NUMBERS)
    if (options[id] !== DEFAULTS[id]) fields.set(id, options[id]);
  fields.set("seed", options.seed);
  if (model) fields.set("model", model);
  return fields.toString();
}

/** Fill the form from a link. Returns the model that the link names, or null. */
export function fill(fragment) {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  for (const id of ["prompt", "seed", ...NUMBERS])
    if (fields.has(id)) {
      control(id).value = fields.get(id);
      showValue(control(id));
    }
  return fields.get("model");
}

/** The page: connects the form, the story and the worker with the engine. */

import { addressOf, forgetOldModels, listModels } from "./models.js";
import * as settings from "./settings.js";
import * as story from "./story.js";

const find = (id) => document.getElementById(id);
const form = find("form"), select = find("model"), fileInput = find("file");
const status = find("status"), alert = find("alert"), speed = find("speed");

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });

/** What the story on the page was made from: prompt, options and the name of the model. */
let run = null;
let models = [];
let isOpen = false, isRunning = false, startsWhenOpen = false;

// ---- Messages to the reader ----------------------------------------------------------------------

/** Say something that screen readers announce when they have time; `more` is only for them. */
function say(text, more = "") {
  status.textContent = text;
  const hidden = document.createElement("span");
  hidden.className = "hidden";
  hidden.textContent = ` ${more}`;
  if (more) status.append(hidden);
}

/** Show an error, or remove it if the text is empty. */
function showError(text) {
  alert.textContent = text;
  alert.hidden = !text;
}

function setRunning(value) {
  isRunning = value;
  find("stop").disabled = !value;
  find("write").disabled = value;
  for (const id of ["again", "copy"]) find(id).disabled = value || !run;
  find("result").hidden = !run;
}

function count(number) {
  return Math.round(number).toLocaleString("en");
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function showSpeed({ count: tokens, seconds }) {
  const rate = seconds > 0 ? `, ${count(tokens / seconds)} tokens a second` : "";
  speed.textContent = `${count(tokens)} tokens${rate}`;
}

const STOPS = {
  eos: "The model ended the story.",
  bos: "The model ended the story.",
  max_tokens: "The story has reached its largest length.",
  context: "The story fills the model's context.",
  stopped: "You stopped the story.",
};

// ---- Models --------------------------------------------------------------------------------------

function openModel(source, name) {
  isOpen = false;
  showError("");
  say(`Opening ${name} …`);
  find("model-info").textContent = "";
  worker.postMessage({ kind: "open", name, ...source });
}

function openSelected() {
  const model = models.find((each) => each.name === select.value);
  if (model) openModel({ address: addressOf(model) }, model.name);
}

/** Open a file of the reader. It becomes an entry of the list, which can only be left. */
function openFile(file) {
  find("own-file")?.remove();
  const option = new Option(`${file.name} (your file)`, "", true, true);
  option.id = "own-file";
  select.append(option);
  openModel({ file }, file.name);
}

/** Return the model's name for a link; that of a file of the reader would mean nothing elsewhere. */
function modelName() {
  return models.some((each) => each.name === select.value) ? select.value : "";
}

async function loadModels() {
  models = await listModels().catch(() => []);
  select.replaceChildren(...models.map((each) => new Option(each.description, each.name)));
  forgetOldModels(models);
  if (models.length === 0) {
    select.append(new Option("No model: open a .slm file", ""));
    say("This site has no model: open a .slm file, or drop one onto the page.");
  }
}

// ---- Writing -------------------------------------------------------------------------------------

function start() {
  startsWhenOpen = false;
  try {
    run = { ...settings.read(), model: modelName() };
  } catch (error) {
    showError(error.message);
    return;
  }
  showError("");
  say("Writing …");
  story.begin(run.prompt);
  find("used-seed").textContent = String(run.options.seed);
  speed.textContent = "";
  setRunning(true);
  worker.postMessage({ kind: "generate", prompt: run.prompt, options: run.options });
}

function submit() {
  if (isRunning) return;
  if (isOpen) start();
  else if (alert.hidden && models.length) startsWhenOpen = true;
  else if (alert.hidden) showError("There is no model: open a .slm file, or drop one onto the page.");
}

const handlers = {
  progress({ share }) {
    find("model-info").textContent = `${Math.round(100 * share)} % loaded`;
  },
  opened({ info }) {
    isOpen = true;
    const threads = info.threads > 1 ? `, up to ${info.threads} threads` : "";
    find("model-info").textContent =
      `${count(info.parameters)} parameters, ${info.type}, ${megabytes(info.bytes)}, ` +
      `context of ${count(info.context)} tokens${threads}`;
    say("The model is ready.");
    if (startsWhenOpen) start();
  },
  tokens(message) {
    story.append(message.tokens);
    showSpeed(message);
  },
  finished(message) {
    setRunning(false);
    say(STOPS[message.stop], `${speed.textContent}, seed ${run.options.seed}.`);
  },
  failed({ during, message }) {
    if (during === "open") isOpen = startsWhenOpen = false;
    say("");
    showError(message);
    setRunning(false);
  },
};

worker.onmessage = ({ data }) => handlers[data.kind](data);
worker.onerror = () => handlers.failed({
  during: "open",
  message: "The engine cannot be loaded: use Chrome or Edge from 91, Firefox from 114, " +
    "or Safari from 16.4.",
});

// ---- Controls ------------------------------------------------------------------------------------

/** Copy a text, or say where it is if the browser forbids that. */
async function copy(text, done, otherwise) {
  try {
    await navigator.clipboard.writeText(text);
    say(done);
  } catch {
    say(otherwise);
  }
}

function copyLink() {
  const current = run ?? { ...settings.read(), model: modelName() };
  const link = new URL(`#${settings.toFragment(current)}`, location.href);
  history.replaceState(null, "", link);
  copy(link.href, "The link is copied.", "The link is in the address bar.");
}

function followLink() {
  const name = settings.fill(location.hash);
  if (models.some((each) => each.name === name)) select.value = name;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
find("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
});
find("stop").addEventListener("click", () => worker.postMessage({ kind: "stop" }));
find("again").addEventListener("click", submit);
find("copy").addEventListener("click", () =>
  copy(story.text(), "The story is copied.", "The browser does not allow to copy: select the text."));
find("link").addEventListener("click", () => {
  try {
    copyLink();
  } catch (error) {
    showError(error.message);
  }
});
find("keep-seed").addEventListener("click", () => {
  find("seed").value = find("used-seed").textContent;
  say("The next story has the same seed.");
});
select.addEventListener("change", openSelected);
fileInput.addEventListener("change", () => {
  if (fileInput.files.length) openFile(fileInput.files[0]);
  fileInput.value = "";
});
addEventListener("hashchange", () => {
  const before = select.value;
  followLink();
  if (select.value !== before) openSelected();
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
});

// ---- Start ---------------------------------------------------------------------------------------

settings.prepare();
setRunning(false);
navigator.serviceWorker?.register("sw.js").catch(() => {}); // without it, only offline use is missing
await loadModels();
followLink();
openSelected();

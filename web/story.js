/**
 * The story on the page. Each token is an element; pointing at it, or moving to it with the arrow
 * keys, shows its probability and the alternatives.
 */

const story = document.getElementById("story");
const details = document.getElementById("details");

/** What the worker sent for each element. */
const tokens = new WeakMap();
let shown = null;

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Return a share as a percentage; small ones have more digits. */
function percent(share) {
  if (share >= 0.9995) return "100 %";
  return `${(100 * share).toPrecision(share < 0.001 ? 1 : share < 0.1 ? 2 : 3)} %`;
}

/** Return a token's text with marks for what has no shape of its own. */
function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎") || "∅";
}

// ---- Details -------------------------------------------------------------------------------------

function row(alternative, isChosen) {
  const made = element("li", isChosen ? "chosen" : "", "");
  const bar = element("span", "bar", "");
  bar.style.width = `${100 * alternative.probability}%`;
  made.append(
    bar,
    element("span", "piece", visible(alternative.text)),
    element("span", "share", percent(alternative.probability)),
  );
  if (isChosen) made.append(element("span", "hidden", "(chosen)"));
  return made;
}

/** Fill the details with a token and its alternatives. */
function describe(token) {
  const rows = token.alternatives.map((each) => row(each, each.id === token.id));
  if (token.alternatives.every((each) => each.id !== token.id))
    rows.push(row({ text: token.piece, probability: token.probability }, true));
  const list = element("ol", "", "");
  list.append(...rows);
  details.replaceChildren(element("p", "", "What the model could write here"), list);
}

/** Put the details under an element, or above it where there is no room, within the window. */
function place(target) {
  const margin = 8;
  const at = target.getClientRects()[0] ?? target.getBoundingClientRect();
  const { width, height } = details.getBoundingClientRect();
  const left = Math.min(at.left, document.documentElement.clientWidth - width - margin);
  const isBelow = at.bottom + height + margin < document.documentElement.clientHeight;
  details.style.left = `${Math.max(margin, left) + scrollX}px`;
  details.style.top = `${(isBelow ? at.bottom : at.top - height) + scrollY}px`;
}

function show(target) {
  if (target === shown) return;
  hide();
  describe(tokens.get(target));
  details.hidden = false;
  place(target);
  target.classList.add("shown");
  target.setAttribute("aria-describedby", "details");
  shown = target;
}

export function hide() {
  if (!shown) return;
  shown.classList.remove("shown");
  shown.removeAttribute("aria-describedby");
  details.hidden = true;
  shown = null;
}

// ---- Pointer and keyboard ------------------------------------------------------------------------

function tokenAt(event) {
  const target = event.target.closest?.(".token");
  return target && story.contains(target) ? target : null;
}

/** Move the one place of the story that the Tab key reaches. */
function focusOn(target) {
  if (!target) return;
  for (const each of story.querySelectorAll('.token[tabindex="0"]')) each.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

/** Return where a key leads from a token; undefined for other keys. */
function neighbour(from, key) {
  const all = [...story.querySelectorAll(".token")], index = all.indexOf(from);
  const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: all.length - 1 };
  return all[to[key]];
}

story.addEventListener("keydown", (event) => {
  const from = tokenAt(event), to = from && neighbour(from, event.key);
  if (!to) return;
  event.preventDefault();
  focusOn(to);
});
story.addEventListener("focusin", (event) => {
  if (tokenAt(event)) show(tokenAt(event));
});
story.addEventListener("focusout", hide);
story.addEventListener("click", (event) => focusOn(tokenAt(event)));
document.addEventListener("pointerover", (event) => {
  if (tokenAt(event)) show(tokenAt(event));
  else if (shown && shown !== document.activeElement && !details.contains(event.target)) hide();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
});

// ---- Content -------------------------------------------------------------------------------------

let pieces = [];

/** Begin a story with its prompt. */
export function begin(prompt) {
  hide();
  pieces = [prompt];
  story.replaceChildren(element("span", "prompt", prompt));
}

/** Append tokens. A token without text, a part of a character, has no element. */
export function append(added) {
  const made = document.createDocumentFragment();
  for (const token of added) {
    pieces.push(token.text);
    const isEnd = token.stop === "eos" || token.stop === "bos";
    if (!token.text && !isEnd) continue;
    const span = element("span", isEnd ? "token end" : "token", token.text);
    if (isEnd) {
      span.setAttribute("role", "img");
      span.setAttribute("aria-label", "The model ends the story here");
    }
    span.tabIndex = -1;
    tokens.set(span, { ...token, piece: token.text || "end" });
    made.append(span);
  }
  story.append(made);
  const first = story.querySelector(".token");
  if (first && !story.querySelector('.token[tabindex="0"]')) first.tabIndex = 0;
}

/** Return the prompt and the story. */
export function text() {
  return pieces.join("");
}

/** The story on the page: each token is an element, whose details token_details.js shows. */

const story = document.getElementById("story");

/** What the worker sent for each element. */
const tokens = new WeakMap();

/** Return a share as a percentage; small ones have more digits. */
function percentage(share) {
  if (share >= 0.9995) return "100 %";
  return `${(100 * share).toPrecision(share < 0.001 ? 1 : share < 0.1 ? 2 : 3)} %`;
}

function row({ text, probability }, isChosen) {
  return { text, percent: 100 * probability, label: percentage(probability), isChosen };
}

const hide = showTokenDetails("#story .token", (target) => {
  const token = tokens.get(target);
  const rows = token.alternatives.map((each) => row(each, each.id === token.id));
  if (!rows.some((each) => each.isChosen))
    rows.push(row({ text: token.piece, probability: token.probability }, true));
  return rows;
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

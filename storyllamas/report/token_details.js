"use strict";

/**
 * The details of a token: pointing at it, or moving to it with the arrow keys, shows its probability
 * and the alternatives. The report and the page of stories in web/ load it before their own script.
 */

/** Make an element of the page. */
function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/**
 * Show details in the element with the id `details`.
 *
 * @param {string} selector - of the elements of tokens; those of a story are siblings, and the Tab
 *     key reaches the one whose tabIndex is 0.
 * @param {(token: Element) => {text: string, percent: number, label: string, isChosen: boolean}[]}
 *     rowsOf - returns the alternatives of a token, with the token itself: the label is the
 *     percentage as text.
 * @returns {() => void} a function that hides the details.
 */
function showTokenDetails(selector, rowsOf) {
  const details = document.getElementById("details");
  let shown = null;

  /** Return a token's text with marks for what has no shape of its own. */
  function visible(text) {
    return text.replaceAll(" ", "␣").replaceAll("\n", "⏎") || "∅";
  }

  function item({ text, percent, label, isChosen }) {
    const made = element("li", isChosen ? "chosen" : "", "");
    const bar = element("span", "bar", "");
    bar.style.width = `${percent}%`;
    made.append(bar, element("span", "piece", visible(text)), element("span", "share", label));
    if (isChosen) made.append(element("span", "hidden", "(chosen)"));
    return made;
  }

  /** Put the details under an element, or above it where there is no room, within the window. */
  function place(target) {
    const margin = 8, gap = 4;
    const at = target.getClientRects()[0] ?? target.getBoundingClientRect();
    const { width, height } = details.getBoundingClientRect();
    const left = Math.min(at.left, document.documentElement.clientWidth - width - margin);
    const isBelow = at.bottom + height + margin < document.documentElement.clientHeight;
    details.style.left = `${Math.max(margin, left) + scrollX}px`;
    details.style.top = `${(isBelow ? at.bottom + gap : at.top - height - gap) + scrollY}px`;
  }

  function show(target) {
    if (target === shown) return;
    hide();
    const list = element("ol", "", "");
    list.append(...rowsOf(target).map(item));
    details.replaceChildren(element("p", "", "What the model could write here"), list);
    details.hidden = false;
    place(target);
    target.classList.add("shown");
    target.setAttribute("aria-describedby", "details");
    shown = target;
  }

  function hide() {
    if (!shown) return;
    shown.classList.remove("shown");
    shown.removeAttribute("aria-describedby");
    details.hidden = true;
    shown = null;
  }

  function tokenAt(event) {
    return event.target.closest?.(selector);
  }

  function tokensBeside(token) {
    return [...token.parentElement.querySelectorAll(selector)];
  }

  /** Move the one place of a story that the Tab key reaches. */
  function focusOn(target) {
    if (!target) return;
    for (const each of tokensBeside(target)) if (each.tabIndex === 0) each.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  }

  /** Return where a key leads from a token; undefined for other keys. */
  function neighbour(from, key) {
    const all = tokensBeside(from), index = all.indexOf(from);
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: all.length - 1 };
    return all[to[key]];
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const from = tokenAt(event), to = from && neighbour(from, event.key);
    if (!to) return;
    event.preventDefault();
    focusOn(to);
  });
  document.addEventListener("focusin", (event) => {
    if (tokenAt(event)) show(tokenAt(event));
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("click", (event) => focusOn(tokenAt(event)));
  document.addEventListener("pointerover", (event) => {
    if (tokenAt(event)) show(tokenAt(event));
    else if (shown && shown !== document.activeElement && !details.contains(event.target)) hide();
  });
  return hide;
}

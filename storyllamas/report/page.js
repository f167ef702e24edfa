"use strict";

function read(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// ---- Charts --------------------------------------------------------------------------------------

const figures = read("figures");

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Return a figure's layout in the colors of the page. */
function themed(layout) {
  const axis = { gridcolor: color("--line"), linecolor: color("--edge"), tickcolor: color("--edge") };
  return {
    ...layout,
    font: { family: color("--text"), size: 13, color: color("--ink") },
    hoverlabel: { bgcolor: color("--card"), bordercolor: color("--edge"), font: { color: color("--ink") } },
    xaxis: { ...layout.xaxis, ...axis },
    yaxis: { ...layout.yaxis, ...axis },
    shapes: (layout.shapes ?? []).map((shape) => ({
      ...shape,
      line: { ...shape.line, color: color("--edge") },
    })),
    annotations: (layout.annotations ?? []).map((note) => ({
      ...note,
      bgcolor: color("--paper"),
      font: { size: 11, color: color("--soft") },
    })),
  };
}

function isChosen(run) {
  return document.querySelector(`#runs [data-run="${run}"]`).checked;
}

function draw() {
  for (const [name, { data, layout }] of Object.entries(figures)) {
    const traces = data.map((trace) => ({ ...trace, visible: isChosen(trace.meta) }));
    const config = { displayModeBar: false, responsive: true };
    Plotly.react(`chart-${name}`, traces, themed(layout), config);
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
document.getElementById("runs").addEventListener("change", draw);

// ---- Stories: details of a token -----------------------------------------------------------------

const { texts, stories } = read("tokens");
const details = document.getElementById("details");
const groups = [...document.querySelectorAll(".story")];

/** The numbers of each token: see `compact` in stories.py. */
const numbers = new WeakMap();
let shown = null;

groups.forEach((group, story) => {
  group.querySelectorAll(".t").forEach((token, index) => {
    numbers.set(token, stories[story][index]);
    token.tabIndex = index ? -1 : 0;
    if (token.classList.contains("end")) {
      token.setAttribute("role", "img");
      token.setAttribute("aria-label", "The story ends here");
    }
  });
});

/** Return a token's text with marks for what has no shape of its own. */
function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎") || "∅";
}

function row(text, percent, isChosen) {
  const made = element("li", isChosen ? "chosen" : "", "");
  const bar = element("span", "bar", "");
  bar.style.width = `${percent}%`;
  made.append(
    bar,
    element("span", "piece", visible(texts[text])),
    element("span", "share", `${percent} %`),
  );
  if (isChosen) made.append(element("span", "hidden", "(chosen)"));
  return made;
}

/** Fill the details with a token and its alternatives. */
function describe([chosen, percent, ...alternatives]) {
  const rows = [];
  let isListed = false;
  for (let at = 0; at < alternatives.length; at += 2) {
    isListed ||= alternatives[at] === chosen;
    rows.push(row(alternatives[at], alternatives[at + 1], alternatives[at] === chosen));
  }
  if (!isListed) rows.push(row(chosen, percent, true));
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
  details.style.top = `${(isBelow ? at.bottom + 4 : at.top - height - 4) + scrollY}px`;
}

function show(target) {
  if (target === shown) return;
  hide();
  describe(numbers.get(target));
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
  const target = event.target.closest?.(".t");
  return target && numbers.has(target) ? target : null;
}

/** Move the one place of a story that the Tab key reaches. */
function focusOn(target) {
  if (!target) return;
  for (const each of target.parentElement.querySelectorAll('.t[tabindex="0"]')) each.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

/** Return where a key leads from a token; undefined for other keys. */
function neighbour(from, key) {
  const all = [...from.parentElement.querySelectorAll(".t")], index = all.indexOf(from);
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

// ---- Stories: which models -----------------------------------------------------------------------

document.querySelector(".models")?.addEventListener("change", ({ target }) => {
  for (const article of document.querySelectorAll(`article[data-model="${target.dataset.model}"]`))
    article.hidden = !target.checked;
});

/** The script of the report, after token_details.js. */

function read(id) {
  return JSON.parse(document.getElementById(id).textContent);
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

/** The numbers of each token: see `compact` in stories.py. */
const numbers = new WeakMap();

document.querySelectorAll(".story").forEach((group, story) => {
  group.querySelectorAll(".t").forEach((token, index) => {
    numbers.set(token, stories[story][index]);
    token.tabIndex = index ? -1 : 0;
    if (token.classList.contains("end")) {
      token.setAttribute("role", "img");
      token.setAttribute("aria-label", "The story ends here");
    }
  });
});

function row(text, percent, isChosen) {
  return { text: texts[text], percent, label: `${percent} %`, isChosen };
}

showTokenDetails(".story .t", (token) => {
  const [chosen, percent, ...alternatives] = numbers.get(token);
  const rows = [];
  for (let at = 0; at < alternatives.length; at += 2)
    rows.push(row(alternatives[at], alternatives[at + 1], alternatives[at] === chosen));
  return rows.some((each) => each.isChosen) ? rows : [...rows, row(chosen, percent, true)];
});

// ---- Stories: which models -----------------------------------------------------------------------

document.querySelector(".models")?.addEventListener("change", ({ target }) => {
  for (const article of document.querySelectorAll(`article[data-model="${target.dataset.model}"]`))
    article.hidden = !target.checked;
});

// What a map can show: `values` of every token, how they are written and coloured, and what must be said with it. Similarity
// and norms are of tokens after the chosen layer, occlusion of the whole network; their formulas are those of measures.py.

const SHARE = { format: (v, digits = 1) => percent(v, digits), scale: "share of attention", differs: true, diverging: false };

/** The T cosines with the chosen token, or their mean over what the classifier reads; NaN marks what has no value. */
function cosines(model) {
  const index = (state.image * layers.length + state.layer) * TOKENS * TOKENS;
  return readRows((i, j) => model.similarity[index + i * TOKENS + j] / 127);
}

function norms(model) {
  const start = (state.image * layers.length + state.layer) * TOKENS;
  return Array.from(model.norms.subarray(start, start + TOKENS));
}

function drops(model) {
  const patches = TOKENS - layout.prefix, start = state.image * patches;
  return [...new Array(layout.prefix).fill(NaN), ...model.occlusion.subarray(start, start + patches)];
}

/** [r, g, b] of a patch; null for other tokens. */
function componentColor(model, token) {
  const patches = TOKENS - layout.prefix, at = (state.image * layers.length + state.layer) * patches + token - layout.prefix;
  return token < layout.prefix ? null : [...model.components.subarray(3 * at, 3 * at + 3)];
}

const VIEWS = {
  rollout: { ...SHARE, name: "rollout", values: shares,
    about: "Product of (I + A) / 2 over the layers from the first to the chosen one; A: the mean of a layer's heads." },
  gradient: { ...SHARE, name: "gradient-weighted rollout", values: shares,
    about: "As rollout, where each link counts by how much it raises the class's logit: R + mean max(A dy/dA, 0) R." },
  mean: { ...SHARE, name: "mean of the heads", values: shares, about: "The heads of one layer, averaged." },
  max: { ...SHARE, name: "maximum of the heads", values: shares, about: "The largest share over the heads; rows divided by their sums." },
  min: { ...SHARE, name: "minimum of the heads", values: shares, about: "The smallest share over the heads; rows divided by their sums." },
  head: { ...SHARE, name: "one head", values: shares, about: "softmax(q k / √d) of one head, as it is." },
  similarity: {
    name: "similarity of tokens", values: cosines, format: (v) => v.toFixed(2), scale: "cosine", differs: true, diverging: false,
    title: (name) => (name ? `Cosine between ${name} and all tokens` : "Cosine with what the classifier reads, on average"),
    about: "x_i · x_j / (|x_i| |x_j|), x: the tokens after the layer. A direction that all tokens share raises every cosine:"
      + " compare patches within one map, not the levels of two maps.",
  },
  components: {
    name: "principal components of tokens", title: () => "The tokens' first three principal components as red, green and blue",
    about: "(x - mean x) V, V: the first three principal components of all patches of these images after the layer; each from"
      + " its 1st to its 99th percentile. Every model and layer has axes of its own: compare colours between images and patches,"
      + " not between models.",
  },
  norms: {
    name: "norms of tokens", values: norms, format: (v) => v.toFixed(1), scale: "length of the token", differs: false, diverging: false,
    title: () => "Length of each token",
    about: "|x| after the layer. A few patches of very large norm hold no part of the image: networks without registers keep there"
      + " what concerns all of it, and attention gathers on them (Darcet et al. 2023, arXiv 2309.16588). Clip outliers to see the rest.",
  },
  occlusion: {
    name: "occlusion", values: drops, format: (v) => `${(100 * v).toFixed(1)} points`, scale: "drop in probability", differs: false, diverging: true,
    title: () => "What covering each patch takes from the predicted class",
    about: "P(c | x) - P(c | x without the patch), c: the predicted class; the patch is covered with the training images' mean colour."
      + " Red speaks for the class. This is measured; but the network never saw images with holes, and where several patches say"
      + " the same thing, covering one changes nothing.",
  },
};

const METHODS = Object.keys(VIEWS).filter((name) => ["mean", "max", "head"].includes(name)
  || models.every((model) => model[{ norms: "similarity" }[name] ?? name]));

const view = () => VIEWS[state.method];

function describeQuery() {
  const name = query() === null ? null : layout.names[query()], pinned = state.pinned === null ? "" : " (pinned)";
  if (view().title) return view().title(name) + pinned;
  if (name === null) return layout.reads;
  return incoming() ? `Who looks at ${name}${pinned}` : `Where ${name} looks${pinned}`;
}

/** The three largest values, and those of the token that is pointed at. */
function describeValues(model, values) {
  const title = model.name ? `${model.name}: ` : "", told = (i) => `${layout.names[i]} (${view().format(values[i])})`;
  const itself = view() === VIEWS.similarity ? query() : null;
  const order = values.map((_, i) => i).filter((i) => Number.isFinite(values[i]) && i !== itself).sort((a, b) => values[b] - values[a]);
  const fixed = view().values !== shares && view() !== VIEWS.similarity; // one map, whatever is pointed at
  const point = fixed ? state.hovered ?? state.pinned : state.pinned !== null && state.hovered !== state.pinned ? state.hovered : null;
  const here = point !== null && Number.isFinite(values[point]) ? `; ${layout.names[point]}: ${view().format(values[point])}` : "";
  return `${title}most at ${order.slice(0, 3).map(told).join("; ")}${here}`;
}

function describeModel(model) {
  const p = model.predictions && model.predictions[state.image];
  const lines = p ? [`predicts ${p.label} (${percent(p.probability, 0)})`] : [];
  if (state.method === "gradient") lines.push(`gradient of class ${model.target[state.image]}`);
  if (state.method === "head" && model.matches) lines.push(`its head ${model.matches[state.layer][state.head]}`);
  return lines.join(", ");
}

/** The value that a share of all are not above: with share 0.02, the largest 2 % lie beyond it. */
function topOf(values, share) {
  const sorted = values.slice().sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * (1 - share)) - 1)] ?? 0;
}

function drawComponents() {
  models.forEach((model) => {
    drawMap(model.canvas, (token) => componentColor(model, token));
    model.canvas.setAttribute("aria-label", `${model.name} ${view().name}`.trim());
  });
  [...byId("scales").children].forEach((box) => { box.hidden = true; });
  byId("readout").textContent = query() === null ? "" : layout.names[query()];
}

/** Values as colours, on one scale for all models. Extra tokens do not count for it: the class token's own share would leave
    the patches in the dark. */
function drawValues() {
  const all = models.map((model) => view().values(model)), first = all[0];
  const differs = byId("difference").checked && view().differs, { diverging, format } = view(), clip = byId("clip").value / 100;
  const shown = all.map((values, i) => (differs && i ? values.map((v, j) => v - first[j]) : values));
  const patches = (vectors) => vectors.flatMap((v) => v.slice(layout.prefix));
  const spread = diverging ? all : shown.slice(1), span = Math.max(topOf(patches(spread).map(Math.abs), clip), 1e-9);
  const sequential = patches(differs ? [first] : all), least = Math.min(...sequential);
  const low = byId("stretch").checked ? least : Math.min(0, least), top = Math.max(topOf(sequential, clip), low + 1e-9);
  models.forEach((model, i) => {
    const around = diverging || (differs && i > 0);
    const position = (v) => (around ? (v / span + 1) / 2 : (v - low) / (top - low));
    const rgb = (token) => color(around ? "difference" : "attention", position(shown[i][token]));
    drawMap(model.canvas, (token) => (Number.isFinite(shown[i][token]) ? rgb(token) : null), (token) => format(shown[i][token]));
    const what = view().values === shares ? "attention map" : view().name;
    model.canvas.setAttribute("aria-label", `${model.name} ${what}. ${describeQuery()}`);
  });
  byId("scales").lastChild.hidden = true;
  if (diverging) drawScale(0, "difference", view().scale, -span, span);
  else drawScale(0, "attention", view().scale, low, top);
  const points = view().values === shares ? ", in percentage points" : "";
  if (differs) drawScale(1, "difference", `difference to ${models[0].name}${points}`, -span, span);
  byId("readout").textContent = models.map((model, i) => describeValues(model, all[i])).join("\n");
}

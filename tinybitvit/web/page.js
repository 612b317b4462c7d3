"use strict";
// The page around the networks: an image comes from the pad, an example, a file or the camera; show() asks every network
// about it and draws the answers.

const data = JSON.parse(document.getElementById("data").textContent);
const { models, examples, frame } = data, [HEIGHT, WIDTH, CHANNELS] = data.shape;
const PAD = 640, MAP = 480; // widths of the canvases for drawings and for attention; the style sheet scales them
const BARS = 10; // with more classes, the most probable ones
const byId = (id) => document.getElementById(id);
// image: what the networks see, bytes (H, W, C); it comes from `strokes` or from `picture`.
const state = { image: null, strokes: [], picture: null };

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
  node.append(...children); // strings become text, never markup
  return node;
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const say = (text) => { byId("status").textContent = text; };

// --- asking the networks ----------------------------------------------------------------------------------------------

/** Run a network on the current image: its probabilities, attention maps, and how long that took. */
function ask(model) {
  const start = performance.now(), { logits, maps } = vision_transformer(normalize(state.image, model.normalize), model);
  model.times = [...(model.times ?? []), performance.now() - start].slice(-9);
  Object.assign(model, { maps, probabilities: softmax(logits, logits.length) });
}

/** Show an image (H, W, C) of bytes; null: nothing. `quiet`: while a drawing grows, a screen reader is not told. */
function show(image, quiet = false) {
  state.image = image;
  if (image) models.forEach(ask);
  drawImage(byId("seen"), image);
  models.forEach(drawModel);
  if (!quiet) byId("readout").textContent = image ? models.map((model) => `${model.name}: ${answer(model)}`).join("; ") : "";
}

const best = (model) => model.probabilities.indexOf(Math.max(...model.probabilities));
const sure = (model) => `(${percent(Math.max(...model.probabilities))})`;
const answer = (model) => `${model.classes[best(model)]} ${sure(model)}`;

/** The share with which the classifier draws on each patch. Rollout multiplies v by (I + A) / 2 from the chosen layer down. */
function shares({ maps, config }) {
  const layer = Math.min(byId("layer").value, config.depth - 1), method = byId("method").value;
  const T = Math.sqrt(maps[0].length / config.heads), { prefix, heads } = config;
  let v = new Float64Array(T);
  if (config.pool.startsWith("cls")) v[0] = 1;
  else v.fill(1 / (T - prefix), prefix);
  const chosen = method === "head" ? [Math.min(byId("head").value, heads - 1)] : Array.from({ length: heads }, (_, h) => h);
  for (let l = layer; l >= (method === "rollout" ? 0 : layer); l--) {
    const next = method === "rollout" ? v.map((share) => share / 2) : new Float64Array(T);
    const weight = (method === "rollout" ? 0.5 : 1) / chosen.length;
    for (const h of chosen) {
      for (let i = 0; i < T; i++) {
        if (v[i]) for (let j = 0; j < T; j++) next[j] += weight * v[i] * maps[l][(h * T + i) * T + j];
      }
    }
    v = next;
  }
  return v.subarray(prefix);
}

// --- drawing the answers ----------------------------------------------------------------------------------------------

/** [r, g, b] for x in 0..1, read off a gradient through the colours of the attention page. */
const color = (() => {
  const context = element("canvas", { width: 256, height: 1 }).getContext("2d"), ramp = context.createLinearGradient(0, 0, 256, 0);
  data.colors.forEach((stop, i) => ramp.addColorStop(i / (data.colors.length - 1), stop));
  context.fillStyle = ramp;
  context.fillRect(0, 0, 256, 1);
  const pixels = context.getImageData(0, 0, 256, 1).data;
  return (x) => pixels.slice(4 * Math.round(255 * x), 4 * Math.round(255 * x) + 3);
})();

/** An image of bytes (H, W, C) fills a canvas; tone(v) changes each value. */
function drawImage(canvas, image, tone = (v) => v) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!image) return;
  const small = element("canvas", { width: WIDTH, height: HEIGHT }), pixels = new ImageData(WIDTH, HEIGHT);
  for (let i = 0; i < WIDTH * HEIGHT; i++) {
    const value = (c) => tone(image[i * CHANNELS + (CHANNELS < 3 ? 0 : c)]);
    pixels.data.set([value(0), value(1), value(2), 255], 4 * i);
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = WIDTH > canvas.width;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function drawMap(model) {
  const values = shares(model), top = Math.max(...values), context = model.canvas.getContext("2d");
  const rows = HEIGHT / model.config.patch_size[0], columns = WIDTH / model.config.patch_size[1];
  const edge = (i, n, size) => Math.round((i * size) / n);
  drawImage(model.canvas, state.image, (v) => 64 + v / 2);
  context.globalAlpha = byId("overlay").value / 100;
  values.forEach((value, patch) => {
    const [row, column] = [Math.floor(patch / columns), patch % columns];
    const [x, y] = [edge(column, columns, model.canvas.width), edge(row, rows, model.canvas.height)];
    context.fillStyle = `rgb(${color(value / top)})`;
    context.fillRect(x, y, edge(column + 1, columns, model.canvas.width) - x, edge(row + 1, rows, model.canvas.height) - y);
  });
  context.globalAlpha = 1;
}

function drawModel(model) {
  const size = model.size;
  const times = [...(model.times ?? [])].sort((a, b) => a - b), ms = times[times.length >> 1];
  model.sizeLine.replaceChildren(element("strong", {}, `${size.bytes.toLocaleString("en")} bytes`),
    ` ${size.effective_bits.toFixed(2)} bits a weight${model.bits === 32 ? "" : " with all that stays in 32 bits"}`
    + `${ms === undefined ? "" : `, ${ms.toFixed(1)} ms an image`}.`);
  model.answer.replaceChildren(...(state.image ? [element("b", {}, model.classes[best(model)]), " ", element("span", {}, sure(model))] : []));
  if (state.image) drawMap(model);
  else drawImage(model.canvas, null);
  const order = model.classes.map((_, i) => i);
  if (order.length > model.bars.length && state.image) order.sort((a, b) => model.probabilities[b] - model.probabilities[a]);
  model.bars.forEach((bar, i) => {
    const share = state.image ? model.probabilities[order[i]] : 0, name = model.classes[order[i]];
    bar.querySelector(".name").textContent = name;
    bar.querySelector(".name").title = name;
    bar.querySelector(".bar div").style.width = `${100 * share}%`;
    bar.classList.toggle("best", Boolean(state.image) && order[i] === best(model));
    bar.querySelector(".percent").textContent = percent(share);
  });
}

function drawControls() {
  byId("layer").nextElementSibling.value = byId("layer").value;
  byId("head").nextElementSibling.value = byId("method").value === "head" ? byId("head").value : "all";
  byId("overlay").nextElementSibling.value = `${byId("overlay").value} %`;
}

// --- the page ---------------------------------------------------------------------------------------------------------

function buildPanel(model) {
  model.answer = element("span", { class: "answer" });
  model.canvas = element("canvas", { width: MAP, height: Math.round((MAP * HEIGHT) / WIDTH), role: "img",
    "aria-label": `where ${model.name} looks` });
  model.bars = Array.from({ length: Math.min(model.classes.length, BARS) }, () => element("li", {}, element("span", { class: "name" }),
    element("div", { class: "bar", "aria-hidden": true }, element("div")), element("span", { class: "percent" })));
  model.sizeLine = element("p", { class: "size" });
  byId("panels").append(element("figure", {}, element("figcaption", {}, element("strong", {}, model.name), model.answer), model.canvas,
    element("ul", { class: "bars", "aria-label": `probabilities, ${model.name}` }, ...model.bars), model.sizeLine));
}

function buildExamples() {
  const length = HEIGHT * WIDTH * CHANNELS, pixels = decode_base64(examples.pixels);
  for (let i = 0; i < pixels.length / length; i++) {
    const image = pixels.subarray(i * length, (i + 1) * length), label = examples.labels?.[i];
    const canvas = element("canvas", { width: WIDTH, height: HEIGHT });
    const button = element("button", { type: "button", "aria-pressed": false, "aria-label": `example ${label ?? i + 1}` }, canvas, label ?? "");
    drawImage(canvas, image);
    const choose = () => {
      closePicture();
      button.setAttribute("aria-pressed", true);
      openPicture(image, false);
    };
    button.addEventListener("click", () => { choose(); say(""); });
    byId("images").append(button);
    if (i === 0) choose(); // so that the page begins with an answer
  }
}

function buildControls() {
  const most = (what) => Math.max(...models.map((model) => model.config[what])) - 1;
  byId("layer").max = byId("layer").value = most("depth");
  byId("head").max = most("heads");
  byId("head").addEventListener("input", () => { byId("method").value = "head"; });
  byId("controls").addEventListener("input", () => {
    drawControls();
    if (state.image) models.forEach(drawMap);
  });
  drawControls();
}

function build() {
  const drawn = frame !== null, opened = [1, 3].includes(CHANNELS);
  const ways = [drawn && "draw", opened && "open or drop a picture", examples && "choose an example"].filter(Boolean);
  const others = ways.slice(0, -1).map((way) => `${way}, `).join("");
  byId("hint").textContent = `${others}${others && "or "}${ways.at(-1) ?? ""}.`.replace(/^./, (c) => c.toUpperCase());
  byId("tools").hidden = byId("keys").hidden = !drawn;
  byId("pictures").hidden = !opened;
  byId("invert-label").hidden = true;
  byId("seen-row").hidden = !drawn; // a picture fills the pad as it is seen
  byId("seen-size").textContent = `${HEIGHT} x ${WIDTH} pixels`;
  for (const canvas of [pad, byId("seen")]) {
    canvas.width = PAD;
    canvas.height = Math.round((PAD * HEIGHT) / WIDTH);
  }
  models.forEach((model) => {
    model.state = load_state_dict(model);
    buildPanel(model);
  });
  const short = models.every((model) => model.classes.every((name) => name.length < 3));
  byId("panels").classList.toggle("short", short);
  byId("panels").style.setProperty("--columns", Math.min(4, Math.max(2, models.length))); // one alone is not blown up
  byId("panels").style.setProperty("--narrow", models.length < 4 ? Math.max(2, models.length) : 2);
  if (window.self !== window.top) {
    document.body.classList.add("framed");
    new ResizeObserver(() => parent.postMessage({ height: document.body.offsetHeight }, "*")).observe(document.body);
  }
  if (opened) listenToPictures();
  if (drawn) listenToPad();
  buildControls();
  show(null);
  if (examples) buildExamples();
}


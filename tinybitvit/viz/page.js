// --- drawing ----------------------------------------------------------------------------------------------------------

const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const stops = { attention: data.colors.attention.map(parse), difference: data.colors.difference.map(parse) };

/** The colour [r, g, b] at x in 0..1 of a colour map. */
function color(name, x) {
  const map = stops[name], at = Math.min(Math.max(x, 0), 1) * (map.length - 1), low = Math.min(Math.floor(at), map.length - 2);
  return map[low].map((c, i) => Math.round(c + (map[low + 1][i] - c) * (at - low)));
}

const brightness = (rgb) => 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];

/** One image; under a map it is grey and of low contrast, so that light and dark pixels change the map's colours little. */
function imageCanvas(index, under) {
  const canvas = document.createElement("canvas");
  canvas.width = images.width;
  canvas.height = images.height;
  const context = canvas.getContext("2d"), out = context.createImageData(images.width, images.height);
  const start = index * images.width * images.height * 3;
  for (let i = 0; i < images.width * images.height; i++) {
    const rgb = pixels.subarray(start + 3 * i, start + 3 * i + 3);
    const grey = 64 + brightness(rgb) / 2;
    out.data.set(under ? [grey, grey, grey, 255] : [...rgb, 255], 4 * i);
  }
  context.putImageData(out, 0, 0);
  return canvas;
}

const underlays = Array.from({ length: images.count }, (_, i) => imageCanvas(i, true));

/** [x, y, width, height] of a token in a map's canvas. */
function place(token, canvas) {
  if (token < layout.prefix) {
    const width = Math.min(176, canvas.width / layout.prefix);
    return [token * width, 0, width - 4, STRIP - 8];
  }
  const [rows, columns] = layout.grid, patch = token - layout.prefix, height = canvas.height - STRIP;
  const edge = (i, n, size) => Math.round((i * size) / n);
  const row = Math.floor(patch / columns), column = patch % columns;
  const x = edge(column, columns, canvas.width), y = edge(row, rows, height);
  return [x, STRIP + y, edge(column + 1, columns, canvas.width) - x, edge(row + 1, rows, height) - y];
}

function tokenAt(canvas, event) {
  const box = canvas.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * canvas.width;
  const y = ((event.clientY - box.top) / box.height) * canvas.height;
  for (let token = 0; token < TOKENS; token++) {
    const [left, top, width, height] = place(token, canvas);
    if (x >= left && x < left + width && y >= top && y < top + height) return token;
  }
  return null;
}

/** The image in grey under its map. rgb(token): its colour, or null; write(token): its value in words. */
function drawMap(canvas, rgb, write) {
  const context = canvas.getContext("2d"), alpha = byId("overlay").value / 100;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = images.width > canvas.width;
  context.drawImage(underlays[state.image], 0, STRIP, canvas.width, canvas.height - STRIP);
  layout.names.forEach((_, token) => {
    const fill = rgb(token), box = place(token, canvas), special = token < layout.prefix;
    if (!fill) return;
    context.globalAlpha = special ? 1 : alpha;
    context.fillStyle = `rgb(${fill})`;
    context.fillRect(...box);
    context.globalAlpha = 1;
    if (special) {
      context.fillStyle = brightness(fill) > 140 ? "#000" : "#fff";
      context.font = "30px sans-serif";
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(`${layout.short[token]} ${write(token)}`, box[0] + box[2] / 2, box[1] + box[3] / 2, box[2] - 8);
    }
  });
  markQuery(canvas);
}

/** A frame around the token that is pointed at. */
function markQuery(canvas) {
  if (query() === null) return;
  const context = canvas.getContext("2d"), [x, y, width, height] = place(query(), canvas);
  for (const [style, line] of [["#000", 8], ["#fff", 4]]) { // dark and light, so that it shows on every colour
    context.strokeStyle = style;
    context.lineWidth = line;
    context.setLineDash(incoming() && style === "#fff" ? [10, 8] : []);
    context.strokeRect(x + 4, y + 4, width - 8, height - 8);
  }
  context.setLineDash([]);
}

const range = (rows) => [Math.min(...rows.flat()), Math.max(...rows.flat())];

function drawOverview(canvas, overview) {
  const context = canvas.getContext("2d"), height = canvas.height / layers.length, width = canvas.width / data.heads;
  const [low, high] = range(overview.values);
  context.clearRect(0, 0, canvas.width, canvas.height);
  overview.values.forEach((row, l) => row.forEach((value, h) => {
    context.fillStyle = `rgb(${color("attention", (value - low) / (high - low || 1))})`;
    context.fillRect(h * width, l * height, width - 3, height - 3);
  }));
  const oneHead = state.method === "head";
  context.lineWidth = 5;
  context.strokeStyle = getComputedStyle(document.body).getPropertyValue("--accent");
  context.strokeRect(oneHead ? state.head * width : 0, state.layer * height, (oneHead ? width : canvas.width) - 3, height - 3);
}

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

function drawScale(index, name, title, low, high) {
  const box = byId("scales").children[index], canvas = box.querySelector("canvas"), context = canvas.getContext("2d");
  box.hidden = false;
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${color(name, x / (canvas.width - 1))})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
  box.firstChild.textContent = title;
  const digits = high < 0.1 ? 2 : 1;
  [low, (low + high) / 2, high].forEach((v, i) => { box.lastChild.children[i].textContent = view().format(v, digits); });
}

function draw() {
  byId("query").textContent = describeQuery();
  byId("about").textContent = view().about;
  if (view().values) drawValues();
  else drawComponents();
  models.forEach((model) => {
    model.caption.textContent = describeModel(model);
    drawOverview(model.overviewCanvas, model.overview);
  });
  const canvas = byId("original"), original = canvas.getContext("2d");
  original.clearRect(0, 0, PIXELS, canvas.height);
  original.imageSmoothingEnabled = images.width > PIXELS;
  original.drawImage(imageCanvas(state.image, false), 0, STRIP, PIXELS, canvas.height - STRIP);
  if (query() !== null && query() >= layout.prefix) markQuery(canvas);
  byId("truth").textContent = data.truth ? `label: ${data.truth[state.image]}` : "";
  showControls();
}

function showControls() {
  byId("method").value = state.method;
  byId("layer").value = state.layer;
  byId("head").value = state.head;
  byId("layer").nextElementSibling.value = layers[state.layer];
  byId("head").nextElementSibling.value = state.method === "head" ? state.head : "all";
  for (const id of ["overlay", "clip"]) byId(id).nextElementSibling.value = `${byId(id).value} %`;
  byId("difference-label").hidden = models.length < 2 || !view().differs;
  [...byId("images").children].forEach((button, i) => button.setAttribute("aria-pressed", i === state.image));
}

// --- the page ---------------------------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
  node.append(...children); // strings become text, never markup
  return node;
}

function mapCanvas(attributes) {
  return element("canvas", { width: PIXELS, height: STRIP + Math.round((PIXELS * images.height) / images.width), ...attributes });
}

function buildPanel(model) {
  model.caption = element("span");
  model.canvas = mapCanvas({ class: "map", tabindex: 0, role: "img" });
  model.overviewCanvas = element("canvas", {
    class: "overview", role: "img", width: PIXELS, height: Math.max(20, Math.min(40, PIXELS / data.heads)) * layers.length,
    "aria-label": `${model.overview.title}, layers by heads`,
  });
  const [low, high] = range(model.overview.values).map((v) => v.toFixed(2));
  const title = element("p", { class: "overview-title" }, `${model.overview.title}, ${low} (dark) to ${high} bits (light)`);
  byId("panels").append(element("figure", {}, element("figcaption", {}, element("strong", {}, model.name || "attention"), model.caption),
    model.canvas, title, model.overviewCanvas));
  listenToMap(model.canvas);
  listenToOverview(model);
}

function listenToMap(canvas) {
  const first = canvas.id === "original" ? layout.prefix : 0; // the image has no extra tokens
  const at = (event) => {
    const token = tokenAt(canvas, event);
    return token !== null && token >= first ? token : null;
  };
  canvas.addEventListener("pointermove", (event) => {
    state.hovered = at(event);
    state.shift = event.shiftKey;
    draw();
  });
  canvas.addEventListener("pointerleave", () => { state.hovered = null; state.shift = false; draw(); });
  canvas.addEventListener("click", (event) => { state.hovered = at(event); pin(); });
}

function listenToOverview(model) {
  const cell = (event) => {
    const box = model.overviewCanvas.getBoundingClientRect();
    const part = (at, size, n) => Math.min(n - 1, Math.max(0, Math.floor((at / size) * n)));
    return [part(event.clientY - box.top, box.height, layers.length), part(event.clientX - box.left, box.width, data.heads)];
  };
  model.overviewCanvas.addEventListener("click", (event) => {
    [state.layer, state.head] = cell(event);
    state.method = "head";
    draw();
  });
  model.overviewCanvas.addEventListener("pointermove", (event) => {
    const [l, h] = cell(event);
    model.overviewCanvas.title = `layer ${layers[l]}, head ${h}: ${model.overview.values[l][h].toFixed(3)} bits`;
  });
}

function pin() {
  state.pinned = state.pinned === null || (state.hovered !== null && state.hovered !== state.pinned) ? state.hovered : null;
  draw();
}

/** Move the query by rows and columns of patches; the first step starts in the middle of the grid. */
function move(rows, columns) {
  const [height, width] = layout.grid, from = query();
  let row = Math.floor(height / 2), column = Math.floor(width / 2);
  if (from !== null && from >= layout.prefix) {
    const patch = from - layout.prefix;
    row = Math.min(height - 1, Math.max(0, Math.floor(patch / width) + rows));
    column = Math.min(width - 1, Math.max(0, (patch % width) + columns));
  }
  const token = layout.prefix + row * width + column;
  if (state.pinned !== null) state.pinned = token;
  state.hovered = token;
  draw();
}

function step(name, by, count) {
  state[name] = Math.min(count - 1, Math.max(0, state[name] + by));
  if (name === "head") state.method = "head";
  draw();
}

const KEYS = {
  ArrowUp: () => step("layer", 1, layers.length),
  ArrowDown: () => step("layer", -1, layers.length),
  ArrowRight: () => step("head", 1, data.heads),
  ArrowLeft: () => step("head", -1, data.heads),
  ".": () => step("image", 1, images.count),
  ",": () => step("image", -1, images.count),
  w: () => move(-1, 0), s: () => move(1, 0), a: () => move(0, -1), d: () => move(0, 1),
  m: () => {
    state.method = METHODS[(METHODS.indexOf(state.method) + 1) % METHODS.length];
    draw();
  },
  t: () => { byId("incoming").checked = !byId("incoming").checked; draw(); },
  Enter: pin,
  Escape: () => { state.pinned = state.hovered = null; draw(); },
};

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Shift") { state.shift = state.hovered !== null; draw(); }
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    // a list, a slider or a button keeps the keys that it answers to itself
    const own = event.key === "Enter" ? "select, button, summary" : event.key.startsWith("Arrow") ? "select, [type=range]" : "select";
    if (!action || event.target.matches(own)) return;
    event.preventDefault();
    action();
  });
  document.addEventListener("keyup", (event) => { if (event.key === "Shift") { state.shift = false; draw(); } });
}

function build() {
  for (let i = 0; i < images.count; i++) {
    const label = `image ${i}${data.truth ? `: ${data.truth[i]}` : ""}`;
    const button = element("button", { type: "button", "aria-label": label, title: label }, imageCanvas(i, false), String(i));
    button.addEventListener("click", () => { state.image = i; draw(); });
    byId("images").append(button);
  }
  METHODS.forEach((value) => byId("method").append(element("option", { value }, VIEWS[value].name)));
  byId("layer").max = layers.length - 1;
  byId("head").max = data.heads - 1;
  byId("method").addEventListener("input", (event) => { state.method = event.target.value; draw(); });
  byId("layer").addEventListener("input", (event) => { state.layer = Number(event.target.value); draw(); });
  byId("head").addEventListener("input", (event) => { state.head = Number(event.target.value); state.method = "head"; draw(); });
  for (const id of ["overlay", "clip", "incoming", "stretch", "difference"]) byId(id).addEventListener("input", draw);
  byId("note").hidden = !data.note;
  byId("note").textContent = data.note;
  byId("panels").append(element("figure", {}, element("figcaption", {}, element("strong", {}, "image"), element("span", { id: "truth" })),
    mapCanvas({ id: "original", class: "image", role: "img", "aria-label": "the image itself" })));
  listenToMap(byId("original"));
  models.forEach(buildPanel);
  for (let i = 0; i < 2; i++) {
    byId("scales").append(element("div", { class: "scale" }, element("p"), element("canvas", { width: 256, height: 1 }),
      element("div", {}, element("span"), element("span"), element("span"))));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  listenToKeys();
  draw();
}

build();

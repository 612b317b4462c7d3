"use strict";
// Tokens are numbered as in the network: `prefix` extra tokens, then the patches row by row. Everything on the screen is
// drawn from `state` by draw(); a control or a key changes the state and calls it.

const data = JSON.parse(document.getElementById("data").textContent);
const { layout, layers, models, images } = data;
const TOKENS = layout.names.length;
const PIXELS = 560; // width of a map's canvas; the style sheet scales it
const STRIP = layout.prefix ? 60 : 0; // height of the extra tokens' row above the image
const state = {
  image: 0, layer: layers.length - 1, head: 0, method: "rollout",
  hovered: null, pinned: null, shift: false, // hovered, pinned: token numbers
};
const byId = (id) => document.getElementById(id);

// --- data -------------------------------------------------------------------------------------------------------------

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** Maps sent as one byte a value and one scale a row: {values, scale} of any number of T x T matrices. */
function unpack(block) {
  return { values: bytes(block.values), scale: new Float32Array(bytes(block.scale).buffer) };
}

for (const model of models) {
  for (const kind of ["heads", "min", "rollout", "gradient"]) model[kind] = model[kind] && unpack(model[kind]);
  model.similarity = model.similarity && new Int8Array(bytes(model.similarity).buffer);
  model.components = model.components && bytes(model.components);
  for (const kind of ["norms", "occlusion"]) model[kind] = model[kind] && new Float32Array(bytes(model[kind]).buffer);
}
const pixels = bytes(images.rgb);

function readMatrix(block, index) {
  const out = new Float32Array(TOKENS * TOKENS);
  for (let row = 0; row < TOKENS; row++) {
    const scale = block.scale[index * TOKENS + row];
    for (let j = 0; j < TOKENS; j++) out[row * TOKENS + j] = block.values[(index * TOKENS + row) * TOKENS + j] * scale;
  }
  return out;
}

/** The mean or the maximum of the heads. The minimum is sent ready-made: dividing its small rows by their sums would magnify
    the rounding of the bytes. */
function fuse(matrices, method) {
  const out = matrices[0].slice();
  for (const m of matrices.slice(1)) {
    for (let i = 0; i < out.length; i++) {
      out[i] = method === "mean" ? out[i] + m[i] : Math.max(out[i], m[i]);
    }
  }
  for (let row = 0; row < TOKENS; row++) {
    const part = out.subarray(row * TOKENS, (row + 1) * TOKENS);
    const sum = part.reduce((a, b) => a + b, 0) || 1;
    part.forEach((v, j) => { part[j] = v / sum; });
  }
  return out;
}

/** The T x T map of a model for the current image, layer, method and head; the last one is remembered. */
function matrix(model) {
  const key = [state.image, state.layer, state.method, state.method === "head" ? state.head : 0].join();
  if (model.key !== key) {
    const index = state.image * layers.length + state.layer;
    const head = (h) => readMatrix(model.heads, index * data.heads + h);
    if (state.method === "head") model.matrix = head(state.head);
    else if (model[state.method]) model.matrix = readMatrix(model[state.method], index);
    else model.matrix = fuse(Array.from({ length: data.heads }, (_, h) => head(h)), state.method);
    model.key = key;
  }
  return model.matrix;
}

const query = () => state.pinned ?? state.hovered;
const incoming = () => query() !== null && byId("incoming").checked !== state.shift;

/** The T numbers of a T x T map at(i, j) that are shown: a row, a column, or what the classifier reads. */
function readRows(at) {
  const q = query();
  if (q !== null) return Array.from({ length: TOKENS }, (_, j) => (incoming() ? at(j, q) : at(q, j)));
  const read = new Array(TOKENS).fill(0);
  layout.readout.forEach((weight, row) => {
    for (let j = 0; weight && j < TOKENS; j++) read[j] += weight * at(row, j);
  });
  return read;
}

/** The T shares of attention that are shown. */
function shares(model) {
  const m = matrix(model);
  return readRows((i, j) => m[i * TOKENS + j]);
}


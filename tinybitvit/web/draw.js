"use strict";
// From strokes to an image like those the network was trained on. A stroke is { points: [[x, y], ...], width, erase } in
// units of the canvas's width, x to the right and y down.

const SAMPLES = 4; // along each side of a pixel; a pixel's value is the number of its 16 samples that are inked

/** The ink of strokes as rows x columns samples, 0 or 1. A point goes to (x scale[0] + shift[0], y scale[1] + shift[1]);
    width(stroke) is the width of its line in samples. */
function rasterize(strokes, [rows, columns], scale, shift, width) {
  const mask = new Uint8Array(rows * columns);
  for (const stroke of strokes) {
    const points = stroke.points.map(([x, y]) => [x * scale[0] + shift[0], y * scale[1] + shift[1]]), radius = width(stroke) / 2;
    points.forEach((b, i) => fillLine(mask, rows, columns, points[Math.max(i - 1, 0)], b, radius, stroke.erase ? 0 : 1));
  }
  return mask;
}

/** Set the samples whose centres lie within a radius of the line from a to b. */
function fillLine(mask, rows, columns, a, b, radius, value) {
  const first = (i) => Math.max(0, Math.floor(Math.min(a[i], b[i]) - radius));
  const last = (i, n) => Math.min(n - 1, Math.ceil(Math.max(a[i], b[i]) + radius));
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]], length = dx * dx + dy * dy || 1;
  for (let row = first(1); row <= last(1, rows); row++) {
    for (let column = first(0); column <= last(0, columns); column++) {
      const [x, y] = [column + 0.5 - a[0], row + 0.5 - a[1]];
      const along = Math.min(Math.max((x * dx + y * dy) / length, 0), 1);
      if ((x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius * radius) mask[row * columns + column] = value;
    }
  }
}

/** { low, high, mean } of the inked samples' columns and rows, each [x, y]; null without ink. */
function extent(mask, columns) {
  const low = [Infinity, Infinity], high = [0, 0], sum = [0, 0];
  let count = 0;
  mask.forEach((ink, i) => {
    if (!ink) return;
    count++;
    [i % columns, Math.floor(i / columns)].forEach((v, axis) => {
      low[axis] = Math.min(low[axis], v);
      high[axis] = Math.max(high[axis], v + 1);
      sum[axis] += v + 0.5;
    });
  });
  return count ? { low, high, mean: sum.map((s) => s / count) } : null;
}

/** The strokes as an image (height, width) of bytes on a dark or light ground; null where nothing is drawn. `frame` says
    how the training images were made: box, the share of width and height that a drawing fills; stretch, whether a wide one is
    squeezed to the full height; centre, what stands in the middle, the "box" or the centre of "mass"; the width of lines:
    pen, in pixels, or ink, the share of inked samples that it must give, or neither: then lines scale with the drawing. */
function drawnImage(strokes, [height, width], frame, ground = "dark") {
  const size = [width * SAMPLES, height * SAMPLES], view = 128, rows = Math.ceil((view * height) / width);
  const seen = extent(rasterize(strokes, [rows, view], [view, view], [0, 0], (stroke) => stroke.width * view), view);
  if (seen === null) return null;
  const widths = strokes.filter((stroke) => !stroke.erase).map((stroke) => stroke.width);
  const pen = frame.pen || frame.ink ? Math.max(...widths) : 0;

  const draw = (line) => {
    const fits = [0, 1].map((i) => {
      const middles = (seen.high[i] - seen.low[i]) / view - pen; // what the middles of the lines extend over
      return (frame.box[i] * size[i] - line) / Math.max(middles, 0.05);
    });
    const least = Math.min(...fits), scale = frame.stretch ? [least, fits[1]] : [least, least];
    const middle = [0, 1].map((i) => size[i] / 2 - ((seen.low[i] + seen.high[i]) / 2 / view) * scale[i]);
    const wide = (stroke) => (line && !stroke.erase ? line : stroke.width * least);
    const ink = (shift) => rasterize(strokes, [size[1], size[0]], scale, shift, wide);
    if (frame.centre === "box") return ink(middle);
    const { mean } = extent(ink(middle), size[0]) ?? { mean: size.map((n) => n / 2) };
    return ink(middle.map((v, i) => v + size[i] / 2 - mean[i]));
  };
  const ink = draw(frame.ink ? lineFor(frame.ink, draw, Math.min(...size)) : (frame.pen ?? 0) * SAMPLES);
  return sumBlocks(ink, height, width).map((v) => (ground === "light" ? 255 - v : v));
}

/** The width of lines, in samples, with which a drawing inks that share of all samples. */
function lineFor(share, draw, most) {
  let [low, high] = [1, most / 2];
  for (let i = 0; i < 7; i++) {
    const middle = (low + high) / 2, mask = draw(middle);
    if (mask.reduce((a, b) => a + b, 0) > share * mask.length) high = middle;
    else low = middle;
  }
  return low;
}

/** Samples to pixels: 0 to 16 of them inked, as 0 to 255. */
function sumBlocks(mask, height, width) {
  const sums = new Float32Array(height * width);
  mask.forEach((ink, i) => {
    const row = Math.floor(i / (width * SAMPLES * SAMPLES)), column = Math.floor((i % (width * SAMPLES)) / SAMPLES);
    sums[row * width + column] += ink;
  });
  return Uint8Array.from(sums, (n) => Math.round((n * 255) / SAMPLES ** 2));
}

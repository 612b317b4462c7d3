"use strict";
// Images that are not drawn: the examples, files, and the camera.

const MOST_PIXELS = 4096; // along a side: larger canvases fail on phones

/** Show a picture, bytes (H, W, C), instead of the drawing. invertible: it came from outside, where paper may be white. */
function openPicture(bytes, invertible) {
  state.strokes = [];
  state.picture = bytes;
  byId("invert-label").hidden = !(invertible && CHANNELS === 1);
  show(byId("invert").checked && !byId("invert-label").hidden ? bytes.map((v) => 255 - v) : bytes);
  drawPad();
}

/** Leave the picture, for a drawing or for another one. */
function closePicture() {
  stopCamera();
  state.picture = null;
  byId("invert-label").hidden = true;
  for (const button of byId("images").children) button.setAttribute("aria-pressed", false);
}

/** A part [x, y, width, height] of a bitmap or video as bytes (H, W, C), stretched to the networks' size. */
function toBytes(source, part) {
  const scale = Math.min(1, MOST_PIXELS / Math.max(part[2], part[3]));
  const [width, height] = part.slice(2).map((side) => Math.max(1, Math.round(side * scale)));
  const context = element("canvas", { width, height }).getContext("2d");
  context.fillStyle = "#fff"; // under what is transparent, as data/folder.py has it
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, ...part, 0, 0, width, height);
  const rgba = resize(context.getImageData(0, 0, width, height).data, [height, width], [HEIGHT, WIDTH]);
  const bytes = new Uint8Array(HEIGHT * WIDTH * CHANNELS);
  for (let i = 0; i < HEIGHT * WIDTH; i++) {
    const rgb = rgba.subarray(4 * i, 4 * i + 3);
    bytes.set(CHANNELS === 3 ? rgb : [Math.round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2])], i * CHANNELS);
  }
  return bytes;
}

/** RGBA of [height, width] stretched to [H, W] by Pillow's bilinear filter, which the library uses: along rows, then along
    columns, rounded to bytes after each. (Some versions begin with the columns, which moves the last bit.) A browser's
    own resizing differs by many levels. */
function resize(rgba, [height, width], [H, W]) {
  return resizeAxis(resizeAxis(rgba, height, width, W, 4, 4 * width, 4 * W), W, height, H, 4 * W, 4, 4);
}

/** n numbers along one axis, `step` apart, become m. Of `lines` such lines one begins `skip` after the other, in the
    result `skipped` after the other. */
function resizeAxis(x, lines, n, m, step, skip, skipped) {
  if (n === m) return x;
  const y = new Uint8ClampedArray((x.length / n) * m), scale = n / m, reach = Math.max(scale, 1);
  for (let i = 0; i < m; i++) {
    const centre = (i + 0.5) * scale, low = Math.max(0, Math.trunc(centre - reach + 0.5));
    const weights = Array.from({ length: Math.min(n, Math.trunc(centre + reach + 0.5)) - low },
      (_, j) => Math.max(0, 1 - Math.abs((j + low - centre + 0.5) / reach)));
    const sum = weights.reduce((a, b) => a + b, 0), whole = weights.map((w) => Math.trunc(0.5 + (w / sum) * 2 ** 22));
    for (let line = 0; line < lines; line++) {
      for (let c = 0; c < 4; c++) {
        let total = 2 ** 21;
        for (let j = 0; j < whole.length; j++) total += x[line * skip + (low + j) * step + c] * whole[j];
        y[line * skipped + i * step + c] = Math.floor(total / 2 ** 22);
      }
    }
  }
  return y;
}

/** Whether a grey image has another border, dark or light, than the training images: the rule of data/folder.py. */
function looksInverted(bytes) {
  const border = [...bytes].filter((_, i) => [0, WIDTH - 1].includes(i % WIDTH) || [0, HEIGHT - 1].includes(Math.floor(i / WIDTH)));
  return (border.reduce((a, b) => a + b, 0) > 127.5 * border.length) !== (data.ground === "light");
}

async function openFile(file) {
  closePicture();
  try {
    // The pixels as they are in the file: a colour profile is not applied, for the library applies none.
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" }), bytes = toBytes(bitmap, [0, 0, bitmap.width, bitmap.height]);
    byId("invert").checked = CHANNELS === 1 && data.ground !== null && looksInverted(bytes);
    openPicture(bytes, true);
    say(`${file.name}, stretched to ${HEIGHT} x ${WIDTH} pixels`);
  } catch {
    say(`${file.name} is not a picture that this browser can open; try a PNG or JPEG file.`);
  }
}

function listenToPictures() {
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files.length) openFile(target.files[0]);
    target.value = ""; // so that the same file can be opened again
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); pad.classList.add("drop"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) pad.classList.remove("drop"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    pad.classList.remove("drop");
    if (event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
    else say("What was dropped is no file: save the picture first, then drop it here.");
  });
  byId("invert").addEventListener("change", () => openPicture(state.picture, true));
  byId("camera").addEventListener("click", () => (camera ? stopCamera() : startCamera()));
}

// --- camera -----------------------------------------------------------------------------------------------------------

let camera = null; // its stream while it is on

async function startCamera() {
  try {
    if (!navigator.mediaDevices) throw new Error("this browser gives it to no page that is opened from a file");
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(`No camera: ${error.message}. Open a picture instead.`);
    return;
  }
  byId("camera").setAttribute("aria-pressed", true);
  say("The camera is on. Press its button again to keep the picture.");
  const stream = camera, video = element("video", { playsinline: "" });
  video.muted = true;
  video.srcObject = stream;
  await video.play();
  while (camera === stream) {
    const scale = Math.min(video.videoWidth / WIDTH, video.videoHeight / HEIGHT), size = [WIDTH * scale, HEIGHT * scale];
    openPicture(toBytes(video, [(video.videoWidth - size[0]) / 2, (video.videoHeight - size[1]) / 2, ...size]), true);
    await new Promise((resume) => { setTimeout(resume, 100); });
  }
}

function stopCamera() {
  if (!camera) return;
  camera.getTracks().forEach((track) => track.stop());
  camera = null;
  byId("camera").setAttribute("aria-pressed", false);
  say("");
}

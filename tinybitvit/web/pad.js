"use strict";
// The surface on which strokes are drawn: by mouse, finger, pen or keys.

const pad = byId("pad"), brush = pad.getContext("2d");
let tool = "pen";
let pointer = null; // the id of the finger or button that draws; a second one does not
let cursor = null; // where the keys hold the pen, null while they are not used
let down = false; // whether the keys have put it down
let timer = null; // of the next look at a growing drawing

const lineWidth = () => byId("width").value / 100;

function drawPad() {
  brush.clearRect(0, 0, pad.width, pad.height);
  if (state.picture) drawImage(pad, state.image);
  brush.lineCap = brush.lineJoin = "round";
  brush.strokeStyle = data.ground === "light" ? "#000" : "#fff";
  for (const { points, width, erase } of state.strokes) {
    brush.globalCompositeOperation = erase ? "destination-out" : "source-over";
    brush.lineWidth = width * PAD;
    brush.beginPath();
    [points[0], ...points].forEach(([x, y]) => brush.lineTo(x * PAD, y * PAD)); // the first twice, so that a dot shows
    brush.stroke();
  }
  brush.globalCompositeOperation = "source-over";
  if (cursor) drawCursor(...cursor.map((v) => v * PAD), Math.max((lineWidth() * PAD) / 2, 6));
}

function drawCursor(x, y, radius) {
  for (const [style, line] of [["#000", 8], ["#fff", 3]]) { // dark and light, so that it shows on ink and ground
    brush.strokeStyle = style;
    brush.lineWidth = line;
    brush.beginPath();
    brush.arc(x, y, radius, 0, 2 * Math.PI);
    brush.stroke();
  }
}

/** Show the drawing to the networks: now, or, while it grows, as often as they can follow. */
function lookAtDrawing(now) {
  const look = () => {
    timer = null;
    show(drawnImage(state.strokes, [HEIGHT, WIDTH], frame, data.ground), !now);
  };
  if (now) {
    clearTimeout(timer);
    look();
  } else timer ??= setTimeout(look, models.reduce((ms, model) => ms + (model.times?.at(-1) ?? 0), 0));
}

function beginStroke(point) {
  closePicture();
  state.strokes.push({ points: [point], width: lineWidth(), erase: tool === "eraser" });
  drawPad();
}

function continueStroke(...points) {
  state.strokes.at(-1).points.push(...points);
  drawPad();
  lookAtDrawing(false);
}

function changeDrawing(change) {
  closePicture();
  change(state.strokes);
  drawPad();
  lookAtDrawing(true);
}

const undo = () => changeDrawing((strokes) => strokes.pop());
const clear = () => changeDrawing((strokes) => strokes.splice(0));

function choose(name) {
  tool = name;
  for (const id of ["pen", "eraser"]) byId(id).setAttribute("aria-pressed", id === name);
}

function listenToPointer() {
  const at = (event) => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.width];
  };
  pad.addEventListener("pointerdown", (event) => {
    if (event.button || pointer !== null) return;
    pointer = event.pointerId;
    pad.setPointerCapture(pointer);
    putKeyPen(false);
    cursor = null;
    beginStroke(at(event));
  });
  pad.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    continueStroke(...(events.length ? events : [event]).map(at));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    pad.addEventListener(end, (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      lookAtDrawing(true);
    });
  }
}

// --- keys -------------------------------------------------------------------------------------------------------------

function moveCursor(dx, dy) {
  const height = HEIGHT / WIDTH, [x, y] = cursor ?? [0.5, height / 2]; // first in the middle
  cursor = [Math.min(Math.max(x + dx, 0), 1), Math.min(Math.max(y + dy, 0), height)];
  if (down) continueStroke(cursor);
  else drawPad();
}

function putKeyPen(toDown) {
  if (down === toDown) return;
  down = toDown;
  cursor ??= [0.5, HEIGHT / WIDTH / 2];
  if (down) beginStroke(cursor);
  else lookAtDrawing(true);
  say(`${tool} ${down ? "down" : "up"}`);
}

function listenToKeys() {
  const lifted = (action) => () => { putKeyPen(false); action(); };
  const keys = {
    ArrowLeft: (step) => moveCursor(-step, 0),
    ArrowRight: (step) => moveCursor(step, 0),
    ArrowUp: (step) => moveCursor(0, -step),
    ArrowDown: (step) => moveCursor(0, step),
    " ": () => putKeyPen(!down),
    p: lifted(() => choose("pen")),
    e: lifted(() => choose("eraser")),
    Backspace: lifted(undo),
    Escape: lifted(clear),
  };
  pad.addEventListener("keydown", (event) => {
    const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault(); // the page does not scroll
    action(event.shiftKey ? 0.1 : 0.02);
  });
  pad.addEventListener("blur", () => {
    putKeyPen(false);
    cursor = null;
    drawPad();
  });
}

function listenToPad() {
  pad.classList.add("draws");
  pad.classList.toggle("light", data.ground === "light");
  pad.tabIndex = 0;
  pad.setAttribute("role", "application"); // so that a screen reader leaves the keys to it
  pad.setAttribute("aria-label", "Drawing. Arrow keys move the pen, Space puts it down and lifts it.");
  listenToPointer();
  listenToKeys();
  byId("pen").addEventListener("click", () => choose("pen"));
  byId("eraser").addEventListener("click", () => choose("eraser"));
  byId("undo").addEventListener("click", undo);
  byId("clear").addEventListener("click", clear);
}

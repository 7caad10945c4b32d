// The page: photos with layers of colour, tools, keys and the file of strokes.

const BRUSH_SMALLEST = 0.004; // radius of the smallest brush as a share of the photo's longer side
const BRUSH_GROWTH = 1.28; // from one brush to the next
const POINT_DISTANCE = 0.2; // between points of a stroke at least, in radii
const MAP_PIXELS = 4; // of a drawn map along the side of a patch
const FAR = 5; // how much farther Shift moves

const data = JSON.parse(document.getElementById("data").textContent);
const elements = Object.fromEntries(
  [...document.querySelectorAll("[id]")].map((element) => [element.id, element]),
);
const title = document.title;
const scales = Float64Array.from(data.scales);
const numClasses = data.classes.length;
const heatColours = fillScale(data.heat);
const photos = data.photos.map(readPhoto);

// what is shown and done; everything on the page follows from it
const state = {
  tool: "alike", // "alike", "erase" or the index of a class
  photo: 0, // the one on the easel
  alike: null, // {photo, patch}: the patch that others are compared with
  cursor: { x: 0, y: 0 }, // of the brush, in pixels of the photo
  stroke: null, // the one that is being painted
  order: [], // the photo of each stroke, in the order in which undo takes them back
  head: null,
  next: null, // the photo to paint next
  isSaved: true,
};
// milliseconds from the end of the last stroke: until the head was trained, and until maps were drawn
const timing = { trained: 0, drawn: 0 };

function readPhoto(entry, index) {
  const button = document.querySelector(`[data-photo="${index}"]`);
  return {
    ...entry,
    label: button.querySelector(".name").textContent, // the name without invisible characters
    codes: decodeCodes(entry.codes),
    painted: null, // made with the first stroke
    probabilities: null, // of the head's classes, patch after patch
    doubt: null,
    mapPixels: null, // of the map that is shown: classes, or similarities
    button,
    picture: button.querySelector("img"),
    map: button.querySelector("canvas"),
    stateText: button.querySelector(".state"),
  };
}

function decodeCodes(base64) {
  const characters = atob(base64);
  const codes = new Int8Array(characters.length);
  for (let i = 0; i < codes.length; i++) codes[i] = characters.charCodeAt(i);
  return codes;
}

// --- strokes ---------------------------------------------------------------------------------------

function classIndexOf(stroke) {
  return stroke.class === null ? null : data.classes.indexOf(stroke.class);
}

/** Count a photo's painted pixels again from its strokes. */
function repaint(photo) {
  photo.painted = photo.strokes.length > 0 ? new PaintedPixels(photo, numClasses) : null;
  for (const stroke of photo.strokes) photo.painted.add(stroke, classIndexOf(stroke));
}

function brushRadius() {
  const photo = photos[state.photo];
  const share = BRUSH_SMALLEST * BRUSH_GROWTH ** Number(elements.brush.value);
  return rounded(Math.max(0.5, share * Math.max(photo.width, photo.height)));
}

/** Two digits are kept in the file; the page uses what the file says. */
function rounded(value) {
  return Math.round(value * 100) / 100;
}

function beginStroke() {
  const className = state.tool === "erase" ? null : data.classes[state.tool];
  state.stroke = { class: className, radius: brushRadius(), points: [] };
  extendStroke();
}

/** Add the place of the cursor to the stroke that is being painted. */
function extendStroke() {
  const { points, radius } = state.stroke;
  const point = [rounded(state.cursor.x), rounded(state.cursor.y)];
  const last = points[points.length - 1];
  if (last && Math.hypot(point[0] - last[0], point[1] - last[1]) < POINT_DISTANCE * radius) return;
  points.push(point);
  drawStrokes();
}

function endStroke() {
  const started = performance.now();
  const photo = photos[state.photo];
  photo.strokes.push(state.stroke);
  photo.painted ??= new PaintedPixels(photo, numClasses);
  photo.painted.add(state.stroke, classIndexOf(state.stroke));
  state.order.push(state.photo);
  state.stroke = null;
  state.isSaved = false;
  update(started);
}

function dropStroke() {
  state.stroke = null;
  drawStrokes();
}

function undo() {
  if (state.order.length === 0) return;
  const started = performance.now();
  const index = state.order.pop();
  photos[index].strokes.pop();
  repaint(photos[index]);
  state.isSaved = false;
  if (index !== state.photo) showPhoto(index);
  update(started);
}

/** The content of strokes.json. */
function strokesDocument() {
  const images = photos
    .filter((photo) => photo.strokes.length > 0)
    .map(({ name, sha256, width, height, strokes }) => ({ name, sha256, width, height, strokes }));
  return { format: "dinoneck strokes", version: 1, classes: data.classes, images };
}

function save() {
  const text = JSON.stringify(strokesDocument(), null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "strokes.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  state.isSaved = true;
  showButtons();
  say(`${counted(state.order.length, "stroke")} saved as strokes.json.`);
}

// --- the head and what follows from it -------------------------------------------------------------

function gatherExamples() {
  const examples = [];
  for (const photo of photos) {
    if (photo.painted === null) continue;
    for (const { patch, classIndex, weight } of photo.painted.examples()) {
      examples.push({ classIndex, weight, features: featuresOfPatch(photo.codes, scales, patch) });
    }
  }
  return examples;
}

/** Train the head on all strokes and show the maps. */
function update(started) {
  state.head = trainHead(gatherExamples(), scales.length, data.penalty);
  timing.trained = performance.now() - started;
  for (const photo of photos) predict(photo);
  state.next = nextPhoto();
  drawMaps();
  drawEasel();
  timing.drawn = performance.now() - started;
  say(describeUpdate());
}

function predict(photo) {
  photo.probabilities = state.head && predictPhoto(state.head, photo.codes, scales);
  photo.doubt = state.head && meanEntropy(photo.probabilities, state.head.classes.length);
}

/** The unpainted photo that the head doubts most; of all photos, where each is painted; null without a head. */
function nextPhoto() {
  if (state.head === null) return null;
  const unpainted = photos.filter((photo) => photo.strokes.length === 0);
  const candidates = unpainted.length > 0 ? unpainted : photos;
  const most = candidates.reduce((best, photo) => (photo.doubt > best.doubt ? photo : best));
  return photos.indexOf(most);
}

function describeUpdate() {
  if (state.order.length === 0) return "No strokes.";
  if (state.head === null) return "Paint a second class: the map appears as soon as there are two.";
  const strokes = counted(state.order.length, "stroke");
  const seconds = (timing.drawn / 1000).toFixed(2);
  return (
    `${counted(photos.length, "photo")} mapped from ${strokes} in ${seconds} s. ` +
    `Paint next: ${photos[state.next].label}.`
  );
}

/** The patch that is most alike the chosen one, in words. */
function describeAlike(similarities) {
  const { photo: ownPhoto, patch: ownPatch } = state.alike;
  let best = { value: -Infinity };
  similarities.forEach((values, photo) => {
    values.forEach((value, patch) => {
      const isItself = photo === ownPhoto && patch === ownPatch;
      if (!isItself && value > best.value) best = { value, photo, patch };
    });
  });
  if (best.photo === undefined) return "";
  const { label, cols } = photos[best.photo];
  const row = Math.floor(best.patch / cols) + 1;
  const col = (best.patch % cols) + 1;
  return `Most alike: row ${row}, column ${col} of ${label} (${best.value.toFixed(2)}).`;
}

// --- drawing ---------------------------------------------------------------------------------------

function isAlike() {
  return state.tool === "alike";
}

/** Draw the maps of all photos: of the classes, or of what is alike the chosen patch. */
function drawMaps() {
  if (isAlike()) drawSimilarities();
  else for (const photo of photos) photo.mapPixels = state.head && classPixels(photo);
  for (const photo of photos) showMap(photo.map, photo.mapPixels);
}

/** Draw the photo on the easel with its map and strokes, and what the tools and the list say of it. */
function drawEasel() {
  document.body.classList.toggle("alike", isAlike());
  elements.scale.hidden = !isAlike();
  showMap(elements.map, photos[state.photo].mapPixels);
  drawStrokes();
  drawCursor();
  showStates();
  showButtons();
}

function showMap(canvas, pixels) {
  canvas.width = pixels === null ? 1 : pixels.width; // which also clears it
  canvas.height = pixels === null ? 1 : pixels.height;
  if (pixels !== null) canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** The colour of the most probable class, with probabilities interpolated between patches. */
function classPixels(photo) {
  const width = photo.cols * MAP_PIXELS;
  const height = photo.rows * MAP_PIXELS;
  const pixels = new ImageData(width, height);
  const colours = state.head.classes.map((index) => data.colours[index]);
  const across = interpolation(width, photo.cols);
  const down = interpolation(height, photo.rows);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const best = mostProbable(photo, across[x], down[y], colours.length);
      const first = 4 * (y * width + x);
      pixels.data[first] = colours[best][0];
      pixels.data[first + 1] = colours[best][1];
      pixels.data[first + 2] = colours[best][2];
      pixels.data[first + 3] = 255;
    }
  }
  return pixels;
}

/** For each of `length` pixels the two cells whose centres surround it, and the share of the second. */
function interpolation(length, cells) {
  return Array.from({ length }, (_, pixel) => {
    const position = Math.min(Math.max(((pixel + 0.5) * cells) / length - 0.5, 0), cells - 1);
    const before = Math.floor(position);
    return { before, after: Math.min(before + 1, cells - 1), share: position - before };
  });
}

function mostProbable(photo, across, down, classCount) {
  const { probabilities, cols } = photo;
  const topLeft = (down.before * cols + across.before) * classCount;
  const topRight = (down.before * cols + across.after) * classCount;
  const bottomLeft = (down.after * cols + across.before) * classCount;
  const bottomRight = (down.after * cols + across.after) * classCount;
  let best = 0;
  let highest = -1;
  for (let k = 0; k < classCount; k++) {
    const top =
      probabilities[topLeft + k] * (1 - across.share) + probabilities[topRight + k] * across.share;
    const bottom =
      probabilities[bottomLeft + k] * (1 - across.share) + probabilities[bottomRight + k] * across.share;
    const probability = top * (1 - down.share) + bottom * down.share;
    if (probability > highest) {
      highest = probability;
      best = k;
    }
  }
  return best;
}

function drawSimilarities() {
  const { photo: chosenPhoto, patch } = state.alike;
  const vector = featuresOfPatch(photos[chosenPhoto].codes, scales, patch);
  const similarities = photos.map((photo) => cosines(vector, photo.codes, scales));
  photos.forEach((photo, index) => {
    photo.mapPixels = new ImageData(photo.cols, photo.rows);
    similarities[index].forEach((value, i) => {
      photo.mapPixels.data.set(heatColour(value), 4 * i);
    });
  });
  say(describeAlike(similarities));
}

/** The colour (red, green, blue, opacity) of a similarity; those below 0 have the colour of 0. */
function heatColour(value) {
  return heatColours[Math.round(Math.min(1, Math.max(0, value)) * (heatColours.length - 1))];
}

/** The colours of similarities from 0 to 1, between the anchors of the scale. */
function fillScale(anchors, length = 256) {
  return Array.from({ length }, (_, i) => {
    const position = (i / (length - 1)) * (anchors.length - 1);
    const below = Math.min(Math.floor(position), anchors.length - 2);
    const share = position - below;
    const mix = (channel) =>
      anchors[below][channel] * (1 - share) + anchors[below + 1][channel] * share;
    return Uint8ClampedArray.of(mix(0), mix(1), mix(2), 255);
  });
}

/** Draw the strokes of the photo on the easel: the colour of the class with a white edge. */
function drawStrokes() {
  const photo = photos[state.photo];
  const canvas = elements.strokes;
  const pen = canvas.getContext("2d");
  const scale = canvas.width / photo.width;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (isAlike()) return;
  const shown = state.stroke === null ? photo.strokes : [...photo.strokes, state.stroke];
  for (const stroke of shown) {
    if (stroke.class === null) {
      pen.globalCompositeOperation = "destination-out";
      drawLine(pen, stroke, scale, 2 * stroke.radius * scale, "#000");
      pen.globalCompositeOperation = "source-over";
    } else {
      const [red, green, blue] = data.colours[classIndexOf(stroke)];
      drawLine(pen, stroke, scale, 2 * stroke.radius * scale + 3, "#fff");
      drawLine(pen, stroke, scale, 2 * stroke.radius * scale, `rgb(${red} ${green} ${blue})`);
    }
  }
}

function drawLine(pen, stroke, scale, width, colour) {
  pen.lineCap = "round";
  pen.lineJoin = "round";
  pen.lineWidth = width;
  pen.strokeStyle = colour;
  pen.beginPath();
  pen.moveTo(stroke.points[0][0] * scale, stroke.points[0][1] * scale);
  for (const [x, y] of stroke.points) pen.lineTo(x * scale, y * scale); // also to the only point: a disc
  pen.stroke();
}

/** Show the brush, or the frame of the chosen patch. */
function drawCursor() {
  const photo = photos[state.photo];
  let { x, y } = state.cursor;
  let width = 2 * brushRadius();
  let height = width;
  if (isAlike()) {
    width = photo.width / photo.cols;
    height = photo.height / photo.rows;
    x = ((state.alike.patch % photo.cols) + 0.5) * width;
    y = (Math.floor(state.alike.patch / photo.cols) + 0.5) * height;
  }
  const style = elements.cursor.style;
  style.left = `${(100 * x) / photo.width}%`;
  style.top = `${(100 * y) / photo.height}%`;
  style.width = `${(100 * width) / photo.width}%`;
  style.height = `${(100 * height) / photo.height}%`;
  elements.cursor.hidden = isAlike() && state.alike.photo !== state.photo;
}

function showStates() {
  photos.forEach((photo, index) => {
    const isNext = index === state.next && !isAlike();
    const words = [];
    if (isNext) words.push("paint next");
    if (photo.strokes.length > 0) words.push(counted(photo.strokes.length, "stroke"));
    if (photo.doubt !== null && !isAlike()) words.push(`doubt ${photo.doubt.toFixed(2)}`);
    photo.stateText.textContent = words.join(", ");
    photo.button.classList.toggle("next", isNext);
    photo.button.setAttribute("aria-current", String(index === state.photo));
  });
}

function showButtons() {
  elements.undo.disabled = state.order.length === 0;
  elements.save.classList.toggle("primary", !state.isSaved);
  elements.save.disabled = state.isSaved && state.order.length === 0;
  elements.next.disabled = state.next === null || state.next === state.photo;
  document.title = `${state.isSaved ? "" : "* "}${title}`;
  elements["brush-size"].textContent = `${Math.round(2 * brushRadius())} px`;
  elements["opacity-size"].textContent = `${elements.opacity.value} %`;
}

function say(text) {
  elements.status.textContent = text;
}

function counted(number, what) {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}

// --- what the user does ----------------------------------------------------------------------------

/** Put a photo on the easel. */
function showPhoto(index) {
  state.photo = index;
  state.stroke = null;
  const photo = photos[index];
  state.cursor = { x: photo.width / 2, y: photo.height / 2 };
  elements.picture.src = photo.picture.src;
  elements["photo-name"].textContent = photo.label;
  elements.easel.style.aspectRatio = `${photo.width} / ${photo.height}`;
  elements.easel.style.maxWidth = `${(80 * photo.width) / photo.height}vh`;
  elements.strokes.width = photo.picture.naturalWidth;
  elements.strokes.height = photo.picture.naturalHeight;
  elements.surface.setAttribute("aria-label", `photo ${photo.label}`);
  drawEasel();
}

function chooseTool(tool) {
  if (state.stroke !== null) dropStroke();
  state.tool = tool;
  document.querySelector(`input[name="tool"][value="${tool}"]`).checked = true;
  drawMaps();
  drawEasel();
  if (tool !== "alike") {
    const name = tool === "erase" ? "Eraser" : `Class ${data.classes[tool]}`;
    say(`${name} chosen. ${describeUpdate()}`);
  }
}

function changeBrush(step) {
  elements.brush.value = Number(elements.brush.value) + step;
  drawCursor();
  showButtons();
}

function chooseAlike(patch) {
  state.alike = { photo: state.photo, patch };
  drawMaps();
  drawEasel();
}

function goToNext() {
  if (state.next === null) return;
  showPhoto(state.next);
  elements.surface.focus();
}

/** Move the cursor to where the pointer is. */
function followPointer(event) {
  const photo = photos[state.photo];
  const box = elements.surface.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * photo.width;
  const y = ((event.clientY - box.top) / box.height) * photo.height;
  moveCursor(x, y);
}

function moveCursor(x, y) {
  const photo = photos[state.photo];
  state.cursor.x = Math.min(photo.width, Math.max(0, x));
  state.cursor.y = Math.min(photo.height, Math.max(0, y));
  if (state.stroke !== null) extendStroke();
  if (!isAlike()) drawCursor();
}

function patchUnderCursor() {
  const photo = photos[state.photo];
  const col = Math.min(photo.cols - 1, Math.floor((state.cursor.x / photo.width) * photo.cols));
  const row = Math.min(photo.rows - 1, Math.floor((state.cursor.y / photo.height) * photo.rows));
  return row * photo.cols + col;
}

/** Keep a finger that paints from being taken for a swipe, after which browsers ignore the next tap. */
function startTouch(event) {
  if (!isAlike()) event.preventDefault();
}

function startPointer(event) {
  if (!event.isPrimary || event.button !== 0) return;
  elements.surface.focus({ preventScroll: true });
  elements.surface.setPointerCapture(event.pointerId);
  followPointer(event);
  if (isAlike()) chooseAlike(patchUnderCursor());
  else if (state.stroke === null) beginStroke();
}

function movePointer(event) {
  if (!event.isPrimary) return;
  const isDown = event.buttons > 0;
  const events = isDown && event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const each of events.length > 0 ? events : [event]) followPointer(each);
  if (isDown && isAlike() && state.alike.patch !== patchUnderCursor()) chooseAlike(patchUnderCursor());
}

function stopPointer(event) {
  if (event.isPrimary && state.stroke !== null) endStroke();
}

const ARROWS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

/** Keys while the photo has the focus: arrows move, space and Enter paint. */
function pressOnPhoto(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in ARROWS) moveByKey(ARROWS[event.key], event.shiftKey ? FAR : 1);
  else if (event.key === " " && !event.repeat) pressSpace();
  else if (event.key === "Enter" && !event.repeat) pressEnter();
  else if (event.key === "Escape" && state.stroke !== null) dropStroke();
  else if (event.key !== " " && event.key !== "Enter") return;
  event.preventDefault();
}

function moveByKey([right, down], factor) {
  const photo = photos[state.photo];
  if (isAlike()) {
    movePatch(right * factor, down * factor);
    return;
  }
  const step = factor * Math.max(brushRadius(), Math.max(photo.width, photo.height) / 200);
  moveCursor(state.cursor.x + right * step, state.cursor.y + down * step);
}

/** Choose the patch that lies so many columns and rows from the chosen one. */
function movePatch(right, down) {
  const photo = photos[state.photo];
  const isHere = state.alike.photo === state.photo;
  const patch = isHere ? state.alike.patch : middlePatch(photo);
  const col = Math.min(photo.cols - 1, Math.max(0, (patch % photo.cols) + right));
  const row = Math.min(photo.rows - 1, Math.max(0, Math.floor(patch / photo.cols) + down));
  chooseAlike(row * photo.cols + col);
}

function middlePatch(photo) {
  return Math.floor(photo.rows / 2) * photo.cols + Math.floor(photo.cols / 2);
}

function pressSpace() {
  if (!isAlike() && state.stroke === null) beginStroke();
}

/** Enter starts a line, and ends it: for those who cannot hold one key and press another. */
function pressEnter() {
  if (isAlike()) return;
  if (state.stroke === null) beginStroke();
  else endStroke();
}

function releaseOnPhoto(event) {
  if (event.key === " " && state.stroke !== null) endStroke();
}

/** Keys anywhere on the page. */
function pressOnPage(event) {
  const isBrush = event.key === "[" || event.key === "]"; // AltGr types them on some keyboards
  const isUndo = event.key.toLowerCase() === "z"; // also with Ctrl, as elsewhere
  const isPlain = !event.ctrlKey && !event.metaKey && !event.altKey;
  if (!isPlain && !isBrush && !isUndo) return;
  if (runShortcut(event.key.toLowerCase())) event.preventDefault();
}

/** Do what a key stands for; false if it stands for nothing. */
function runShortcut(key) {
  if (key >= "1" && key <= "9" && Number(key) <= numClasses) {
    chooseTool(Number(key) - 1);
    return true;
  }
  switch (key) {
    case "0":
      chooseTool("erase");
      return true;
    case "a":
      chooseTool("alike");
      return true;
    case "[":
      changeBrush(-1);
      return true;
    case "]":
      changeBrush(1);
      return true;
    case "z":
      undo();
      return true;
    case "n":
      goToNext();
      return true;
    case "s":
      if (!elements.save.disabled) save();
      return true;
    default:
      return false;
  }
}

function listen() {
  elements.surface.addEventListener("touchstart", startTouch, { passive: false });
  elements.surface.addEventListener("pointerdown", startPointer);
  elements.surface.addEventListener("pointermove", movePointer);
  elements.surface.addEventListener("pointerup", stopPointer);
  elements.surface.addEventListener("pointercancel", () => state.stroke !== null && dropStroke());
  elements.surface.addEventListener("keydown", pressOnPhoto);
  elements.surface.addEventListener("keyup", releaseOnPhoto);
  elements.surface.addEventListener("blur", () => state.stroke !== null && endStroke());
  document.addEventListener("keydown", pressOnPage);
  for (const input of document.querySelectorAll('input[name="tool"]')) {
    const isClass = input.value !== "alike" && input.value !== "erase";
    const tool = isClass ? Number(input.value) : input.value;
    input.addEventListener("change", () => chooseTool(tool));
  }
  elements.brush.addEventListener("input", () => changeBrush(0));
  elements.opacity.addEventListener("input", showOpacity);
  elements.undo.addEventListener("click", undo);
  elements.save.addEventListener("click", save);
  elements.next.addEventListener("click", goToNext);
  photos.forEach((photo, index) => {
    photo.button.addEventListener("click", () => {
      showPhoto(index);
      elements.surface.focus();
    });
  });
  addEventListener("beforeunload", (event) => {
    if (!state.isSaved) event.preventDefault();
  });
}

function showOpacity() {
  document.documentElement.style.setProperty("--map-opacity", Number(elements.opacity.value) / 100);
  showButtons();
}

/** Colour the tools and the scale: the content security policy allows no style attributes. */
function colourLegends() {
  for (const swatch of document.querySelectorAll("[data-class]")) {
    swatch.style.background = `rgb(${data.colours[swatch.dataset.class].join(" ")})`;
  }
  const anchors = data.heat.map((colour) => `rgb(${colour.join(" ")})`);
  const gradient = `linear-gradient(to right, ${anchors.join(", ")})`;
  elements["scale-bar"].style.background = gradient;
  document.querySelector(".swatch.heat").style.background = gradient;
}

/** Show the page as it begins: with strokes their maps, without strokes what is alike the middle patch. */
function begin() {
  photos.forEach((photo, index) => {
    repaint(photo);
    photo.strokes.forEach(() => state.order.push(index));
  });
  state.alike = { photo: 0, patch: middlePatch(photos[0]) };
  colourLegends();
  listen();
  showOpacity();
  const firstPainted = photos.findIndex((photo) => photo.strokes.length > 0);
  showPhoto(Math.max(0, firstPainted));
  if (firstPainted >= 0) state.tool = 0;
  chooseTool(state.tool);
  if (firstPainted >= 0) update(performance.now());
}

addEventListener("load", begin); // then the pictures have their sizes

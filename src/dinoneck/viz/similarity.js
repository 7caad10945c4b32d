"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const canvases = [...document.querySelectorAll("canvas")];
const heat = document.getElementById("heat"), fixed = document.getElementById("fixed"), spoken = document.getElementById("spoken");
// coordinates of all patches: image after image, row after row
const coded = Uint8Array.from(atob(data.codes), (letter) => letter.charCodeAt(0));
const codes = new Int8Array(coded.buffer), count = data.scales.length;
const coordinates = Float32Array.from(codes, (code, i) => code * data.scales[i % count]);
const images = data.images.map((image) => Object.assign(new Image(), { src: image.uri }));
const starts = data.images.reduce((all, image) => [...all, all[all.length - 1] + image.rows * image.cols], [0]);
let chosen = null, held = false;

function similarities(place, row, col) {
  const from = (starts[place] + row * data.images[place].cols + col) * count, found = new Float32Array(starts[starts.length - 1]);
  for (let patch = 0; patch < found.length; patch++) {
    let sum = 0;
    for (let k = 0; k < count; k++) sum += coordinates[from + k] * coordinates[patch * count + k];
    found[patch] = Math.min(1, Math.max(-1, sum));
  }
  found[from / count] = 1;
  return found;
}

function colour(share) {
  const at = Math.min(1, Math.max(0, share)) * (data.colours.length - 1), below = Math.min(Math.floor(at), data.colours.length - 2);
  return data.colours[below].map((value, i) => value + (at - below) * (data.colours[below + 1][i] - value));
}

function draw() {
  const found = chosen && similarities(...chosen);
  const low = !found || fixed.checked ? 0 : found.reduce((a, b) => Math.min(a, b), 1);
  canvases.forEach((canvas, place) => {
    const { rows, cols } = data.images[place], image = images[place], pen = canvas.getContext("2d");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    pen.filter = found ? "grayscale(1)" : "none";
    pen.drawImage(image, 0, 0);
    pen.filter = "none";
    if (!found) return;
    const cells = new ImageData(cols, rows), small = Object.assign(document.createElement("canvas"), { width: cols, height: rows });
    for (let i = 0; i < rows * cols; i++) cells.data.set([...colour((found[starts[place] + i] - low) / (1 - low)), 255], 4 * i);
    small.getContext("2d").putImageData(cells, 0, 0);
    pen.globalAlpha = heat.value / 100;
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = 1;
    if (place === chosen[0]) {
      const width = canvas.width / cols, height = canvas.height / rows;
      pen.lineWidth = 3;
      pen.strokeStyle = "#fff";
      pen.strokeRect(chosen[2] * width, chosen[1] * height, width, height);
    }
  });
  spoken.textContent = found ? nearest(found) : "";
}

function nearest(found) {
  const own = starts[chosen[0]] + chosen[1] * data.images[chosen[0]].cols + chosen[2];
  const best = found.reduce((best, value, i) => (i !== own && (best < 0 || value > found[best]) ? i : best), -1);
  if (best < 0) return "";
  const place = starts.findIndex((start) => start > best) - 1, patch = best - starts[place], cols = data.images[place].cols;
  return `most like row ${Math.floor(patch / cols)}, column ${patch % cols} of ${data.images[place].name} (${found[best].toFixed(2)})`;
}

function choose(place, row, col) {
  const image = data.images[place];
  if (!image) return;
  chosen = [place, Math.min(image.rows - 1, Math.max(0, row)), Math.min(image.cols - 1, Math.max(0, col))];
  draw();
}

function under(event) {
  const canvas = event.currentTarget, box = canvas.getBoundingClientRect(), place = Number(canvas.dataset.place);
  const { rows, cols } = data.images[place];
  choose(place, Math.floor(((event.clientY - box.top) / box.height) * rows), Math.floor(((event.clientX - box.left) / box.width) * cols));
}

function hold() {
  held = true;
  history.replaceState(null, "", `#${chosen.join(",")}`);
}

function release() {
  held = false;
  chosen = null;
  history.replaceState(null, "", "#");
  draw();
}

const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
for (const canvas of canvases) {
  canvas.addEventListener("pointermove", (event) => held || under(event));
  canvas.addEventListener("pointerdown", (event) => { under(event); hold(); });
  canvas.addEventListener("keydown", (event) => {
    const step = steps[event.key], size = event.shiftKey ? 5 : 1, place = Number(canvas.dataset.place);
    if (event.key === "Escape") return release();
    if (!step) return;
    event.preventDefault();
    const [, row, col] = chosen && chosen[0] === place ? chosen : [place, 0, 0];
    choose(place, row + step[0] * size, col + step[1] * size);
    hold();
  });
}
heat.addEventListener("input", draw);
fixed.addEventListener("change", draw);
function follow() {
  const parts = location.hash.slice(1).split(",").map(Number);
  if (parts.length === 3 && parts.every(Number.isInteger)) { choose(...parts); held = chosen !== null; }
}
addEventListener("hashchange", follow);
Promise.all(images.map((image) => image.decode())).then(() => { draw(); follow(); });

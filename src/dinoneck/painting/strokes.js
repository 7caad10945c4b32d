"use strict";

// Strokes, the pixels that they paint, and the training examples that follow from them.
//
// A stroke is {class, radius, points}: it covers the pixels whose centre lies within `radius` of the
// line through `points`. Coordinates are pixels of the original photo, x to the right, y down; the
// centre of the first pixel is (0.5, 0.5). Later strokes win; class null erases.

const UNPAINTED = 255;

/** The painted pixels of a photo, with their number per patch and class. */
class PaintedPixels {
  constructor(photo, numClasses) {
    this.width = photo.width;
    this.height = photo.height;
    this.cols = photo.cols;
    this.numClasses = numClasses;
    this.classOfPixel = new Uint8Array(photo.width * photo.height).fill(UNPAINTED);
    this.counts = new Float64Array(photo.rows * photo.cols * numClasses);
    this.colOfX = cellsOfPixels(photo.width, photo.cols);
    this.rowOfY = cellsOfPixels(photo.height, photo.rows);
    this.colWidths = pixelsPerCell(this.colOfX, photo.cols);
    this.rowHeights = pixelsPerCell(this.rowOfY, photo.rows);
  }

  /** Paint a stroke of the class with this index; null erases. */
  add(stroke, classIndex) {
    const value = classIndex === null ? UNPAINTED : classIndex;
    const points = stroke.points;
    if (points.length === 1) {
      this.paintSegment(points[0], points[0], stroke.radius, value);
    }
    for (let i = 1; i < points.length; i++) {
      this.paintSegment(points[i - 1], points[i], stroke.radius, value);
    }
  }

  paintSegment(start, end, radius, value) {
    // the first and last pixel whose centre, at a half, may lie within the radius
    const left = Math.max(0, Math.floor(Math.min(start[0], end[0]) - radius));
    const right = Math.min(this.width - 1, Math.ceil(Math.max(start[0], end[0]) + radius));
    const top = Math.max(0, Math.floor(Math.min(start[1], end[1]) - radius));
    const bottom = Math.min(this.height - 1, Math.ceil(Math.max(start[1], end[1]) + radius));
    for (let y = top; y <= bottom; y++) {
      for (let x = left; x <= right; x++) {
        // discs of one stroke overlap: most pixels have the value already
        if (this.classOfPixel[y * this.width + x] === value) continue;
        if (squaredDistance(x + 0.5, y + 0.5, start, end) <= radius * radius) {
          this.setPixel(x, y, value);
        }
      }
    }
  }

  setPixel(x, y, value) {
    const pixel = y * this.width + x;
    const previous = this.classOfPixel[pixel];
    const firstCount = (this.rowOfY[y] * this.cols + this.colOfX[x]) * this.numClasses;
    if (previous !== UNPAINTED) this.counts[firstCount + previous] -= 1;
    if (value !== UNPAINTED) this.counts[firstCount + value] += 1;
    this.classOfPixel[pixel] = value;
  }

  /** One example {patch, classIndex, weight} for each class in each patch; weight = share of the patch. */
  examples() {
    const examples = [];
    for (let i = 0; i < this.counts.length; i++) {
      if (this.counts[i] === 0) continue;
      const patch = Math.floor(i / this.numClasses);
      const pixels = this.colWidths[patch % this.cols] * this.rowHeights[Math.floor(patch / this.cols)];
      examples.push({ patch, classIndex: i % this.numClasses, weight: this.counts[i] / pixels });
    }
    return examples;
  }
}

/** The cell that the centre of each pixel lies in, where `cells` of equal length share `length` pixels. */
function cellsOfPixels(length, cells) {
  return Int32Array.from({ length }, (_, pixel) => Math.floor(((pixel + 0.5) * cells) / length));
}

function pixelsPerCell(cellOfPixel, cells) {
  const counts = new Float64Array(cells);
  for (const cell of cellOfPixel) counts[cell] += 1;
  return counts;
}

/** The squared distance between a point and a segment. */
function squaredDistance(x, y, start, end) {
  const alongX = end[0] - start[0];
  const alongY = end[1] - start[1];
  const squaredLength = alongX * alongX + alongY * alongY;
  let share = 0; // of the way from start to end, of the nearest point
  if (squaredLength > 0) {
    share = ((x - start[0]) * alongX + (y - start[1]) * alongY) / squaredLength;
    share = Math.min(1, Math.max(0, share));
  }
  const dx = x - (start[0] + share * alongX);
  const dy = y - (start[1] + share * alongY);
  return dx * dx + dy * dy;
}

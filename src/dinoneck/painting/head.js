// A linear softmax head on the tokens of patches, and the similarity of patches.
//
// Features of a patch are codes (int8) times the scale of their component. With weights W (classes x
// components) and biases b, class k has the probability p_k = exp(z_k) / sum_j exp(z_j) where
// z = W x + b. Training minimises
//
//   sum_i weight_i * -log p_(class of i)(x_i) / sum_i weight_i  +  penalty * |W|^2
//
// over all examples i, as fit_strokes does in Python on whole tokens. That is convex, and with the biases of the classes summing to zero the minimum
// is unique: the same strokes always give the same map.

const MOST_STEPS = 500;
const PAST_STEPS = 10; // that L-BFGS remembers
const TOLERANCE = 1e-8; // largest entry of the gradient
const SUFFICIENT_DECREASE = 1e-4; // share of the decrease that the slope promises (Armijo)

/**
 * Train a head on examples {features, classIndex, weight}.
 *
 * Classes without an example are left out: their bias has no minimum, and their probability is 0.
 * Returns {classes, weights, biases, steps}: `classes` are the indices of those with examples,
 * `weights` one Float64Array each. Returns null for fewer than two classes.
 */
function trainHead(examples, numComponents, penalty) {
  const classes = [...new Set(examples.map((example) => example.classIndex))].sort((a, b) => a - b);
  if (classes.length < 2) return null;
  const total = examples.reduce((sum, example) => sum + example.weight, 0);
  const problem = {
    numClasses: classes.length,
    numComponents,
    penalty,
    features: examples.map((example) => example.features),
    targets: examples.map((example) => classes.indexOf(example.classIndex)),
    weights: examples.map((example) => example.weight / total),
  };
  const solution = minimise(
    (parameters, gradient) => softmaxObjective(problem, parameters, gradient),
    inverseCurvature(problem),
  );

  const stride = numComponents + 1;
  const weights = classes.map((_, k) => solution.point.slice(k * stride, k * stride + numComponents));
  const biases = classes.map((_, k) => solution.point[k * stride + numComponents]);
  return { classes, weights, biases, steps: solution.steps };
}

/**
 * The objective at `parameters`; its gradient is written to `gradient`.
 *
 * Parameters are, class after class, the weights of the components and then the bias.
 */
function softmaxObjective(problem, parameters, gradient) {
  const { numClasses, numComponents, penalty } = problem;
  const stride = numComponents + 1;
  const logits = new Float64Array(numClasses);
  let objective = 0;
  for (let k = 0; k < numClasses; k++) {
    for (let c = 0; c < numComponents; c++) {
      const weight = parameters[k * stride + c];
      objective += penalty * weight * weight;
      gradient[k * stride + c] = 2 * penalty * weight;
    }
    gradient[k * stride + numComponents] = 0; // biases have no penalty
  }
  for (let i = 0; i < problem.features.length; i++) {
    const features = problem.features[i];
    for (let k = 0; k < numClasses; k++) {
      let logit = parameters[k * stride + numComponents];
      for (let c = 0; c < numComponents; c++) logit += parameters[k * stride + c] * features[c];
      logits[k] = logit;
    }
    const target = problem.targets[i];
    const targetLogit = logits[target];
    const logSum = softmax(logits); // logits become probabilities
    objective += problem.weights[i] * (logSum - targetLogit);
    for (let k = 0; k < numClasses; k++) {
      // the derivative of -log p_target by z_k is p_k - [k is the target]
      const slope = problem.weights[i] * (logits[k] - (k === target ? 1 : 0));
      for (let c = 0; c < numComponents; c++) gradient[k * stride + c] += slope * features[c];
      gradient[k * stride + numComponents] += slope;
    }
  }
  return objective;
}

/** Replace logits by their softmax, and return log(sum(exp(logits))). */
function softmax(logits) {
  let largest = -Infinity;
  for (const logit of logits) largest = Math.max(largest, logit);
  let sum = 0;
  for (let k = 0; k < logits.length; k++) {
    logits[k] = Math.exp(logits[k] - largest); // at most 1: no overflow
    sum += logits[k];
  }
  for (let k = 0; k < logits.length; k++) logits[k] /= sum;
  return largest + Math.log(sum);
}

/**
 * One over the diagonal of the Hessian at zero, where all classes are equally probable.
 *
 * There the second derivative by weight (k, c) is sum_i weight_i p (1 - p) x_ic^2 + 2 penalty, with
 * p = 1 / classes. Components have very different variances; as the first guess of the inverse
 * Hessian this makes steps along all of them of the right size.
 */
function inverseCurvature(problem) {
  const { numClasses, numComponents, penalty } = problem;
  const share = (1 / numClasses) * (1 - 1 / numClasses);
  const curvature = new Float64Array(numComponents + 1);
  problem.features.forEach((features, i) => {
    for (let c = 0; c < numComponents; c++) {
      curvature[c] += problem.weights[i] * share * features[c] * features[c];
    }
    curvature[numComponents] += problem.weights[i] * share;
  });
  const inverse = new Float64Array(numClasses * (numComponents + 1));
  for (let k = 0; k < numClasses; k++) {
    for (let c = 0; c <= numComponents; c++) {
      const added = c < numComponents ? 2 * penalty : 0;
      inverse[k * (numComponents + 1) + c] = 1 / (curvature[c] + added);
    }
  }
  return inverse;
}

/**
 * Minimise a smooth convex function from zero with L-BFGS (Nocedal and Wright, algorithm 7.5).
 *
 * `evaluate(point, gradient)` returns the value and writes the gradient. Ends where no entry of the
 * gradient is larger than TOLERANCE. Returns {point, value, steps}.
 */
function minimise(evaluate, inverseDiagonal) {
  const size = inverseDiagonal.length;
  let point = new Float64Array(size);
  let gradient = new Float64Array(size);
  let value = evaluate(point, gradient);
  const past = [];
  let steps = 0;
  while (steps < MOST_STEPS && largestEntry(gradient) > TOLERANCE) {
    const direction = descentDirection(gradient, past, inverseDiagonal);
    const slope = dot(direction, gradient);
    const next = searchLine(evaluate, point, value, direction, slope);
    if (next === null) break; // the value cannot be told from a smaller one: as exact as it gets
    const move = next.point.map((x, i) => x - point[i]);
    const turn = next.gradient.map((g, i) => g - gradient[i]);
    const curvature = dot(move, turn);
    if (curvature > 1e-12 * dot(turn, turn)) {
      past.push({ move, turn, curvature });
      if (past.length > PAST_STEPS) past.shift();
    }
    point = next.point;
    gradient = next.gradient;
    value = next.value;
    steps += 1;
  }
  return { point, value, steps };
}

/** Minus the gradient times the inverse Hessian that the past steps imply (the two-loop recursion). */
function descentDirection(gradient, past, inverseDiagonal) {
  const direction = gradient.map((g) => -g);
  const shares = [];
  for (const { move, turn, curvature } of [...past].reverse()) {
    const share = dot(move, direction) / curvature;
    shares.unshift(share);
    addScaled(direction, -share, turn);
  }
  for (let i = 0; i < direction.length; i++) direction[i] *= inverseDiagonal[i];
  past.forEach(({ move, turn, curvature }, i) => {
    addScaled(direction, shares[i] - dot(turn, direction) / curvature, move);
  });
  return direction;
}

/** The first of the step lengths 1, 1/2, 1/4, ... that lowers the value enough; null if none does. */
function searchLine(evaluate, point, value, direction, slope) {
  for (let length = 1; length > 1e-9; length /= 2) {
    const nextPoint = point.map((x, i) => x + length * direction[i]);
    const nextGradient = new Float64Array(point.length);
    const nextValue = evaluate(nextPoint, nextGradient);
    const rounding = 1e-15 * Math.abs(value);
    if (nextValue <= value + SUFFICIENT_DECREASE * length * slope + rounding) {
      return { point: nextPoint, gradient: nextGradient, value: nextValue };
    }
  }
  return null;
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function addScaled(vector, factor, other) {
  for (let i = 0; i < vector.length; i++) vector[i] += factor * other[i];
}

function largestEntry(vector) {
  let largest = 0;
  for (const entry of vector) largest = Math.max(largest, Math.abs(entry));
  return largest;
}

/**
 * The probabilities of the head's classes for every patch of a photo, patch after patch.
 *
 * Scales are multiplied into the weights once, so that codes need not be decoded.
 */
function predictPhoto(head, codes, scales) {
  const numComponents = scales.length;
  const numClasses = head.classes.length;
  const weights = head.weights.map((row) => row.map((weight, c) => weight * scales[c]));
  const numPatches = codes.length / numComponents;
  const probabilities = new Float32Array(numPatches * numClasses);
  const logits = new Float64Array(numClasses);
  for (let patch = 0; patch < numPatches; patch++) {
    const first = patch * numComponents;
    for (let k = 0; k < numClasses; k++) {
      const row = weights[k];
      let logit = head.biases[k];
      for (let c = 0; c < numComponents; c++) logit += row[c] * codes[first + c];
      logits[k] = logit;
    }
    softmax(logits);
    probabilities.set(logits, patch * numClasses);
  }
  return probabilities;
}

/** How much a head doubts: the mean entropy over patches, 0 (sure) to 1 (all classes equal). */
function meanEntropy(probabilities, numClasses) {
  let sum = 0;
  for (const p of probabilities) {
    if (p > 0) sum -= p * Math.log(p);
  }
  return sum / (probabilities.length / numClasses) / Math.log(numClasses);
}

/** The cosine similarities of every patch of a photo to a vector of features. */
function cosines(vector, codes, scales) {
  const numComponents = scales.length;
  const norm = Math.sqrt(dot(vector, vector));
  const similarities = new Float32Array(codes.length / numComponents);
  for (let patch = 0; patch < similarities.length; patch++) {
    const first = patch * numComponents;
    let product = 0;
    let squares = 0;
    for (let c = 0; c < numComponents; c++) {
      const feature = codes[first + c] * scales[c];
      product += vector[c] * feature;
      squares += feature * feature;
    }
    similarities[patch] = product / Math.max(norm * Math.sqrt(squares), 1e-12);
  }
  return similarities;
}

/** The features of one patch. */
function featuresOfPatch(codes, scales, patch) {
  return Float64Array.from(scales, (scale, c) => codes[patch * scales.length + c] * scale);
}

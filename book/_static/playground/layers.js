// The layers of bnbook.models.mlp and their gradients, as plain loops over Float32Array. A batch of N examples
// with C values each is an array of N * C numbers, one example after another.
//
// The worker gets the text of this function, so it uses nothing outside itself.
"use strict";

function playgroundLayers() {
  /**
   * One layer. `forward` returns y, `backward` takes dy and returns dx, and both keep their arrays for the
   * next call: whoever wants to keep the numbers has to copy them.
   * @typedef {object} Layer
   * @property {(x: Float32Array, N: number, training: boolean) => Float32Array} forward
   * @property {(dy: Float32Array) => Float32Array} backward for the batch of the last `forward`
   * @property {Parameter[]} parameters
   *
   * @typedef {{value: Float32Array, gradient: Float32Array}} Parameter
   */

  const EPS = 1e-5; // under the root of every norm

  function parameter(size, fill = 0) {
    return { value: new Float32Array(size).fill(fill), gradient: new Float32Array(size) };
  }

  // --------------------------------------------------------------------- matrix products

  /** y = x wᵀ + b, for x (N, K), w (J, K), y (N, J). Four sums at a time: each waits for its last addition. */
  function multiply(x, w, b, y, N, K, J) {
    const whole = J - J % 4;
    for (let n = 0; n < N; n += 1) {
      const row = n * K;
      for (let j = 0; j < whole; j += 4) {
        const w0 = j * K, w1 = w0 + K, w2 = w1 + K, w3 = w2 + K;
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (let k = 0; k < K; k += 1) {
          const value = x[row + k];
          s0 += value * w[w0 + k];
          s1 += value * w[w1 + k];
          s2 += value * w[w2 + k];
          s3 += value * w[w3 + k];
        }
        const at = n * J + j;
        y[at] = s0 + b[j];
        y[at + 1] = s1 + b[j + 1];
        y[at + 2] = s2 + b[j + 2];
        y[at + 3] = s3 + b[j + 3];
      }
      for (let j = whole; j < J; j += 1) {
        let sum = 0;
        for (let k = 0; k < K; k += 1) sum += x[row + k] * w[j * K + k];
        y[n * J + j] = sum + b[j];
      }
    }
  }

  /**
   * out = a b, of M x K, where a's element (m, l) stands at m * step + l * stride:
   * dx = dy w with (J, 1), dw = dyᵀ x with (1, J).
   */
  function product(a, step, stride, b, out, M, L, K) {
    for (let m = 0; m < M; m += 1) {
      for (let k = 0; k < K; k += 4) { // K is 64 or the width, a multiple of 4
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (let l = 0; l < L; l += 1) {
          const value = a[m * step + l * stride];
          const at = l * K + k;
          s0 += value * b[at];
          s1 += value * b[at + 1];
          s2 += value * b[at + 2];
          s3 += value * b[at + 3];
        }
        const at = m * K + k;
        out[at] = s0;
        out[at + 1] = s1;
        out[at + 2] = s2;
        out[at + 3] = s3;
      }
    }
  }

  // --------------------------------------------------------------------- layers

  /**
   * nn.Linear: y = x wᵀ + b. The first layer of a network needs no dx.
   * @param {number} K values that come in
   * @param {number} J values that go out
   * @param {{bias: boolean, first: boolean, batch: number}} settings
   * @returns {Layer & {weight: Parameter, inputs: number}}
   */
  function linear(K, J, { bias, first, batch }) {
    const weight = parameter(J * K);
    const shift = parameter(J);
    const y = new Float32Array(batch * J);
    const dx = new Float32Array(first ? 0 : batch * K);
    let x = null, N = 0;
    return {
      weight, inputs: K,
      parameters: bias ? [weight, shift] : [weight],
      forward(input, examples) {
        [x, N] = [input, examples];
        multiply(x, weight.value, shift.value, y, N, K, J);
        return y;
      },
      backward(dy) {
        product(dy, 1, J, x, weight.gradient, J, N, K); // dyᵀ x
        if (bias) sumRows(dy, shift.gradient, N, J);
        if (!first) product(dy, J, 1, weight.value, dx, N, J, K); // dy w
        return dx;
      },
    };
  }

  /** sums[j] = the sum of column j. */
  function sumRows(values, sums, N, J) {
    sums.fill(0);
    for (let n = 0, at = 0; n < N; n += 1) {
      for (let j = 0; j < J; j += 1, at += 1) sums[j] += values[at];
    }
  }

  /**
   * The activations, and their derivatives from the output y.
   * @param {"sigmoid" | "tanh" | "relu"} kind
   * @returns {Layer & {input: () => Float32Array}}
   */
  function activation(kind, C, batch) {
    const y = new Float32Array(batch * C), dx = new Float32Array(batch * C);
    let x = null, size = 0;
    return {
      input: () => x.subarray(0, size),
      parameters: [],
      forward(input, N) {
        [x, size] = [input, N * C];
        if (kind === "sigmoid") for (let i = 0; i < size; i += 1) y[i] = 1 / (1 + Math.exp(-x[i]));
        if (kind === "tanh") for (let i = 0; i < size; i += 1) y[i] = Math.tanh(x[i]);
        // Written so that NaN stays NaN
        if (kind === "relu") for (let i = 0; i < size; i += 1) y[i] = x[i] <= 0 ? 0 : x[i];
        return y;
      },
      backward(dy) {
        if (kind === "sigmoid") for (let i = 0; i < size; i += 1) dx[i] = dy[i] * y[i] * (1 - y[i]);
        if (kind === "tanh") for (let i = 0; i < size; i += 1) dx[i] = dy[i] * (1 - y[i] * y[i]);
        if (kind === "relu") for (let i = 0; i < size; i += 1) dx[i] = y[i] <= 0 ? 0 : dy[i];
        return dx;
      },
    };
  }

  /**
   * Batch norm: each unit has the mean and the variance of the batch, and keeps running ones for the evaluation.
   * @param {number} C units
   * @param {{batch: number, momentum: number}} settings momentum: the weight of the new value
   * @returns {Layer & {batchMean: Float64Array, batchVar: Float64Array, runningMean: Float32Array,
   *     runningVar: Float32Array}} both variances as the package has them: the batch's is the biased one
   */
  function batchNorm(C, { batch, momentum }) {
    const gamma = parameter(C, 1), beta = parameter(C);
    const xHat = new Float32Array(batch * C), y = new Float32Array(batch * C), dx = new Float32Array(batch * C);
    const batchMean = new Float64Array(C), batchVar = new Float64Array(C), inverse = new Float64Array(C);
    const runningMean = new Float32Array(C), runningVar = new Float32Array(C).fill(1);
    let N = 0;

    /** Two passes: first the means, then the squares of what is left. */
    function measure(x) {
      batchMean.fill(0);
      batchVar.fill(0);
      for (let n = 0, at = 0; n < N; n += 1) {
        for (let c = 0; c < C; c += 1, at += 1) batchMean[c] += x[at];
      }
      for (let c = 0; c < C; c += 1) batchMean[c] /= N;
      for (let n = 0, at = 0; n < N; n += 1) {
        for (let c = 0; c < C; c += 1, at += 1) batchVar[c] += (x[at] - batchMean[c]) ** 2;
      }
      for (let c = 0; c < C; c += 1) batchVar[c] /= N;
    }

    return {
      batchMean, batchVar, runningMean, runningVar,
      parameters: [gamma, beta],
      /** @param {"training" | "batch" | "running"} mode "batch": as in training, but nothing is kept */
      forward(x, examples, mode) {
        N = examples;
        if (mode !== "running") measure(x);
        const mean = mode === "running" ? runningMean : batchMean;
        const variance = mode === "running" ? runningVar : batchVar;
        for (let c = 0; c < C; c += 1) inverse[c] = 1 / Math.sqrt(variance[c] + EPS);
        for (let n = 0, at = 0; n < N; n += 1) {
          for (let c = 0; c < C; c += 1, at += 1) {
            xHat[at] = (x[at] - mean[c]) * inverse[c];
            y[at] = gamma.value[c] * xHat[at] + beta.value[c];
          }
        }
        if (mode === "training") {
          for (let c = 0; c < C; c += 1) {
            runningMean[c] += momentum * (batchMean[c] - runningMean[c]);
            runningVar[c] += momentum * (batchVar[c] * N / (N - 1) - runningVar[c]);
          }
        }
        return y;
      },
      /** dx = γ / σ (dy - mean of dy - x̂ · mean of dy x̂): the part of dy that the batch can answer. */
      backward(dy) {
        const sum = beta.gradient.fill(0), along = gamma.gradient.fill(0);
        for (let n = 0, at = 0; n < N; n += 1) {
          for (let c = 0; c < C; c += 1, at += 1) {
            sum[c] += dy[at];
            along[c] += dy[at] * xHat[at];
          }
        }
        for (let n = 0, at = 0; n < N; n += 1) {
          for (let c = 0; c < C; c += 1, at += 1) {
            dx[at] = gamma.value[c] * inverse[c] * (dy[at] - (sum[c] + xHat[at] * along[c]) / N);
          }
        }
        return dx;
      },
    };
  }

  /**
   * The norms of single examples: of each of G groups of units, less its mean or, for RMS norm, as it is.
   * @param {number} C units
   * @param {{batch: number, groups: number, centred: boolean}} settings
   * @returns {Layer}
   */
  function groupNorm(C, { batch, groups, centred }) {
    const gamma = parameter(C, 1), beta = parameter(C);
    const xHat = new Float32Array(batch * C), y = new Float32Array(batch * C), dx = new Float32Array(batch * C);
    const inverse = new Float64Array(batch * groups);
    const m = C / groups;
    let N = 0;
    return {
      parameters: centred ? [gamma, beta] : [gamma],
      forward(x, examples) {
        N = examples;
        for (let set = 0; set < N * groups; set += 1) {
          const start = set * m, first = start % C;
          let mean = 0, square = 0;
          if (centred) for (let i = 0; i < m; i += 1) mean += x[start + i] / m;
          for (let i = 0; i < m; i += 1) square += (x[start + i] - mean) ** 2;
          inverse[set] = 1 / Math.sqrt(square / m + EPS);
          for (let i = 0; i < m; i += 1) {
            xHat[start + i] = (x[start + i] - mean) * inverse[set];
            y[start + i] = gamma.value[first + i] * xHat[start + i] + beta.value[first + i];
          }
        }
        return y;
      },
      /** As in batch norm; here γ differs within a set, so the means are those of γ dy. */
      backward(dy) {
        gamma.gradient.fill(0);
        beta.gradient.fill(0);
        for (let set = 0; set < N * groups; set += 1) {
          const start = set * m, first = start % C;
          let sum = 0, along = 0;
          for (let i = 0; i < m; i += 1) {
            const scaled = gamma.value[first + i] * dy[start + i];
            sum += scaled;
            along += scaled * xHat[start + i];
            gamma.gradient[first + i] += dy[start + i] * xHat[start + i];
            beta.gradient[first + i] += dy[start + i];
          }
          if (!centred) sum = 0;
          for (let i = 0; i < m; i += 1) {
            const scaled = gamma.value[first + i] * dy[start + i];
            dx[start + i] = inverse[set] * (scaled - (sum + xHat[start + i] * along) / m);
          }
        }
        return dx;
      },
    };
  }

  /**
   * The layer that a norm's name stands for; none for "none".
   * @param {string} kind as in bnbook.models.NORMS
   * @returns {Layer[]}
   */
  function norm(kind, C, { batch, momentum }) {
    switch (kind) {
      case "none": return [];
      case "batch": return [batchNorm(C, { batch, momentum })];
      case "group": return [groupNorm(C, { batch, groups: 4, centred: true })];
      case "layer": return [groupNorm(C, { batch, groups: 1, centred: true })];
      case "rms": return [groupNorm(C, { batch, groups: 1, centred: false })];
      default: throw new Error(`norm: got ${kind}`);
    }
  }

  /**
   * The mean cross-entropy of the softmax of some scores (N, J), and its gradient.
   * @param {Float32Array} dScores takes the gradient
   */
  function crossEntropy(scores, labels, dScores, N, J) {
    let loss = 0;
    for (let n = 0; n < N; n += 1) {
      const row = n * J;
      let highest = -Infinity, total = 0;
      for (let j = 0; j < J; j += 1) highest = Math.max(highest, scores[row + j]);
      for (let j = 0; j < J; j += 1) total += Math.exp(scores[row + j] - highest);
      const logTotal = highest + Math.log(total);
      loss += (logTotal - scores[row + labels[n]]) / N;
      for (let j = 0; j < J; j += 1) dScores[row + j] = Math.exp(scores[row + j] - logTotal) / N;
      dScores[row + labels[n]] -= 1 / N;
    }
    return loss;
  }

  return { linear, norm, activation, crossEntropy, multiply, product, EPS };
}

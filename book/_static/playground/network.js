// One network of the playground: bnbook.models.mlp, trained as bnbook.training.fit trains it.
//
// The worker gets the text of this function, so it uses nothing outside itself.
"use strict";

function playgroundNetwork(random, layers) {
  const PIXELS = 64, CLASSES = 10, EVALUATED_AT_ONCE = 250;

  /**
   * What a reader sets of a network.
   * @typedef {object} Settings
   * @property {"none" | "batch" | "layer" | "group" | "rms"} norm
   * @property {"before" | "after"} placement of the norm: before or after the activation
   * @property {"sigmoid" | "tanh" | "relu"} activation
   * @property {number} depth hidden layers
   * @property {number} gain of the first weights, whose deviation is gain / √inputs
   * @property {number} rate the learning rate
   * @property {number} batch examples in a mini-batch
   * @property {number} momentum weight of the new value in the running statistics
   *
   * @typedef {{x: Float32Array, y: Uint8Array}} Images pixels (N, 64) from 0 to 1, and the digits
   */

  /**
   * A network with first weights and mini-batches drawn from a seed, as the package draws them.
   * @param {Settings} settings
   * @param {{train: Images, test: Images, width: number}} data
   * @param {number} seed
   */
  function network(settings, { train, test, width }, seed) {
    const batch = Math.max(settings.batch, EVALUATED_AT_ONCE);
    const linears = [], norms = [], activations = [];
    // A norm right behind a layer takes away its bias; RMS norm subtracts no mean, so it does not.
    const bias = ["none", "rms"].includes(settings.norm) || settings.placement === "after";
    for (let depth = 0, inputs = PIXELS; depth < settings.depth; depth += 1, inputs = width) {
      linears.push(layers.linear(inputs, width, { bias, first: depth === 0, batch }));
      norms.push(...layers.norm(settings.norm, width, { batch, momentum: settings.momentum }));
      activations.push(layers.activation(settings.activation, width, batch));
    }
    linears.push(layers.linear(width, CLASSES, { bias: true, first: false, batch }));
    /** @type {Layer[]} in the order in which they run */
    const stack = linears.flatMap((linear, i) => {
      const [norm, activation] = [norms.slice(i, i + 1), activations.slice(i, i + 1)];
      return [linear, ...(settings.placement === "before" ? [norm, activation] : [activation, norm]).flat()];
    });
    drawWeights(linears, settings.gain, random.torchGenerator(seed));

    const nextBatch = random.endless(train.y.length, settings.batch, seed);
    const x = new Float32Array(batch * PIXELS), y = new Uint8Array(batch);
    const dScores = new Float32Array(batch * CLASSES);
    let coming = nextBatch(), steps = 0;
    /** The step whose loss was the first that is not finite. */
    let diverged = null;

    /** Scores (N, 10); mode as in batch norm. */
    function forward(input, N, mode) {
      return stack.reduce((values, layer) => layer.forward(values, N, mode), input);
    }

    /** The loss of the coming mini-batch and all its gradients. */
    function look(mode) {
      coming.forEach((from, to) => {
        x.set(train.x.subarray(from * PIXELS, (from + 1) * PIXELS), to * PIXELS);
        y[to] = train.y[from];
      });
      const loss = layers.crossEntropy(forward(x, coming.length, mode), y, dScores, coming.length, CLASSES);
      stack.reduceRight((dy, layer) => layer.backward(dy), dScores);
      return loss;
    }

    /** One update with the coming mini-batch; returns its loss before the update. */
    function step() {
      const loss = look("training");
      if (!Number.isFinite(loss)) {
        diverged = steps;
        return loss;
      }
      for (const layer of stack) {
        for (const { value, gradient } of layer.parameters) {
          for (let i = 0; i < value.length; i += 1) value[i] -= settings.rate * gradient[i];
        }
      }
      steps += 1;
      coming = nextBatch();
      return loss;
    }

    /**
     * Share of the test images that get their digit.
     * @param {"running" | "batch"} mode "batch": with the statistics of test batches as large as those of training
     */
    function accuracy(mode) {
      const atOnce = mode === "batch" ? settings.batch : EVALUATED_AT_ONCE;
      const count = test.y.length;
      let right = 0;
      for (let start = 0; start < count; start += atOnce) {
        const N = Math.min(atOnce, count - start);
        const scores = forward(test.x.subarray(start * PIXELS, (start + N) * PIXELS), N, mode);
        for (let n = 0; n < N; n += 1) {
          const row = scores.subarray(n * CLASSES, (n + 1) * CLASSES);
          if (row.indexOf(Math.max(...row)) === test.y[start + n]) right += 1;
        }
      }
      return right / count;
    }

    /** What a reader sees of the hidden layers, on the coming mini-batch, before its update. */
    function observe() {
      look("batch");
      return activations.map((activation, i) => ({
        ...seen(activation.input(), settings.activation, width),
        gradient: length(linears[i].weight.gradient),
        lag: settings.norm === "batch" ? lag(norms[i]) : null,
      }));
    }

    return {
      settings, linears, norms, step, accuracy, observe,
      get diverged() { return diverged; },
      get steps() { return steps; },
    };
  }

  // Beyond it sigmoid and tanh are within 5 % of an end of their range, as in bnbook.probes.saturated_share.
  const SATURATED = { sigmoid: Math.log(19), tanh: Math.log(19) / 2 };
  const BINS = 40, EDGE = 6;

  /**
   * What an activation gets: a histogram from -6 to 6, whose outer bins take what lies beyond, and the share of
   * values that are saturated, or for ReLU of units that are dead, at most 0 in the whole batch.
   * @param {Float32Array} values (N, C)
   */
  function seen(values, activation, C) {
    const counts = new Float32Array(BINS);
    let outside = 0;
    const alive = new Uint8Array(C);
    for (let i = 0; i < values.length; i += 1) {
      const bin = Math.floor((values[i] + EDGE) / (2 * EDGE) * BINS);
      counts[Math.min(Math.max(bin, 0), BINS - 1)] += 1;
      if (Math.abs(values[i]) > SATURATED[activation]) outside += 1;
      if (!(values[i] <= 0)) alive[i % C] = 1;
    }
    const dead = 1 - alive.reduce((sum, one) => sum + one, 0) / C;
    return { counts, share: activation === "relu" ? dead : outside / values.length };
  }

  /** How far the running statistics of a batch norm are from the batch's: medians over the units. */
  function lag({ batchMean, batchVar, runningMean, runningVar }) {
    const deviation = Array.from(batchVar, (variance) => Math.sqrt(variance + layers.EPS));
    return {
      mean: median(deviation.map((std, c) => Math.abs(runningMean[c] - batchMean[c]) / std)),
      deviation: median(deviation.map((std, c) => Math.sqrt(runningVar[c] + layers.EPS) / std)),
    };
  }

  function median(values) {
    const sorted = values.sort((a, b) => a - b), half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }

  function length(values) {
    return Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
  }

  /**
   * Draw the first weights as models.mlp does after torch.manual_seed(seed). nn.Linear has by then drawn weights
   * and biases of its own, which mlp draws anew.
   */
  function drawWeights(linears, gain, generator) {
    for (const { parameters } of linears) {
      for (const { value } of parameters) generator.skip(value.length);
    }
    for (const { weight, inputs } of linears) generator.fillNormal(weight.value, gain / Math.sqrt(inputs));
  }

  return network;
}

// The worker of the playground: it trains both networks when the page asks, and never by itself.
"use strict";

/**
 * Answer the page's messages; runs in the worker.
 *
 * { images, width }            the first message: the digits, and the units of a hidden layer
 * { id, start: Settings[], seed, ... }  two new networks, and then as below
 * { id, steps, milliseconds, last, look }   so many steps, or fewer if time is up; `last`: evaluate at the end,
 *                                           `look`: tell what the layers look like
 *
 * Each but the first is answered with { id, steps, sides }: for each network `losses` and `accuracy` since the
 * last answer, `layers` as the network observes them or null, and `diverged`.
 */
function playgroundWorker(network) {
  const EVALUATE_EVERY = 10; // steps
  let data = null, sides = [], steps = 0, id = null;

  /** @returns {Promise<{train: Images, test: Images}>} */
  async function unpacked({ packed, train }) {
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const raw = new Uint8Array(await new Response(stream).arrayBuffer());
    const count = raw.length / 65, pixels = Float32Array.from(raw.subarray(0, 64 * count), (value) => value / 16);
    const labels = raw.subarray(64 * count);
    return {
      train: { x: pixels.subarray(0, 64 * train), y: labels.subarray(0, train) },
      test: { x: pixels.subarray(64 * train), y: labels.subarray(train) },
    };
  }

  function evaluate(side) {
    if (side.network.diverged !== null || side.evaluated === steps) return;
    side.evaluated = steps;
    const running = side.network.accuracy("running");
    // Only batch norm tells the two apart.
    const batch = side.network.settings.norm === "batch" ? side.network.accuracy("batch") : running;
    side.accuracy.push({ steps, running, batch });
  }

  function step() {
    for (const side of sides) {
      if (side.network.diverged === null) side.losses.push(side.network.step());
    }
    steps += 1;
    if (steps % EVALUATE_EVERY === 0) sides.forEach(evaluate);
  }

  function answer(look) {
    postMessage({
      id, steps,
      sides: sides.map((side) => ({
        losses: side.losses.splice(0),
        accuracy: side.accuracy.splice(0),
        diverged: side.network.diverged,
        layers: look && side.network.diverged === null ? side.network.observe() : null,
      })),
    });
  }

  const running = () => sides.some((side) => side.network.diverged === null);

  self.onmessage = async ({ data: message }) => {
    if (message.images) {
      data = unpacked(message.images).then((images) => ({ ...images, width: message.width }));
      return;
    }
    const images = await data;
    if (message.start) {
      [id, steps] = [message.id, 0];
      sides = message.start.map((settings) => {
        return { network: network(settings, images, message.seed), losses: [], accuracy: [], evaluated: null };
      });
      sides.forEach(evaluate);
    }
    if (message.id !== id) return; // asked before the last start
    const end = steps + message.steps, until = performance.now() + (message.milliseconds ?? Infinity);
    while (steps < end && running() && performance.now() < until) step();
    if (message.last) sides.forEach(evaluate);
    answer(message.look);
  };
}

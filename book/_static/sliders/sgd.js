// SGD on a loss with a narrow and a wide minimum: the loss and the update of the chapter, and one fixed table
// of shuffles in place of a random generator.
"use strict";

(() => {
  // The gradient of J(θ) = -exp(-|θ - a|² / 2·0.15²) / 2 - exp(-|θ - b|² / 2·0.6²) + 0.05 |θ|², a = (-1, 0), b = (1, 0).
  function well(theta, centre, width) {
    return Math.exp(-((theta[0] - centre) ** 2 + theta[1] ** 2) / (2 * width ** 2));
  }

  function loss(theta) {
    return -0.5 * well(theta, -1, 0.15) - well(theta, 1, 0.6) + 0.05 * (theta[0] ** 2 + theta[1] ** 2);
  }

  function gradient(theta) {
    const narrow = 0.5 * well(theta, -1, 0.15) / 0.15 ** 2;
    const wide = well(theta, 1, 0.6) / 0.6 ** 2;
    return [
      narrow * (theta[0] + 1) + wide * (theta[0] - 1) + 0.1 * theta[0],
      (narrow + wide + 0.1) * theta[1],
    ];
  }

  BookSlider.register("sgd", (panel, data) => {
    const { start, xi, order, letters } = data;
    const runs = 5;
    const index = new Map([...letters].map((letter, i) => [letter, i]));
    // In step t of run r the mini-batch has the first N letters of row t + 60 r; or all examples.
    function noise(step, batch, run) {
      const row = order[(step + run * order.length / runs) % order.length];
      const examples = batch < xi.length ? [...row.slice(0, batch)].map((letter) => index.get(letter)) : xi.keys();
      let [count, first, second] = [0, 0, 0];
      for (const i of examples) {
        count += 1;
        first += xi[i][0];
        second += xi[i][1];
      }
      return [first / count, second / count];
    }

    function descend(batch, rate, steps, run) {
      const path = [[-1, 0]];
      for (let step = 0; step < steps; step += 1) {
        const theta = path[step];
        const g = gradient(theta);
        const extra = noise(step, batch, run);
        path.push([theta[0] - rate * (g[0] + extra[0]), theta[1] - rate * (g[1] + extra[1])]);
      }
      return path;
    }

    const distance = (theta) => Math.hypot(theta[0] + 1, theta[1]);
    const outside = (theta) => distance(theta) > 0.5;

    panel.range("batch", "batch size N", {
      min: 0, max: 6, step: 1, value: start.batch, show: (exponent) => String(2 ** exponent),
    });
    panel.range("rate", "learning rate η", { min: 0.01, max: 0.08, step: 0.01, value: start.rate });
    panel.range("steps", "steps", { min: 0, max: 300, step: 10, value: start.steps });
    panel.select("run", "run drawn", { 1: "1", 2: "2", 3: "3", 4: "4", 5: "5" }, start.run);
    panel.value("distance", "distance from the narrow minimum");
    panel.value("loss", "loss J at the last step");
    panel.value("left", "first step outside (distance > 0.5)");
    panel.value("share", "of the five runs, outside now");

    const plot = panel.plot({
      height: 270,
      x: { min: -1.7, max: 2.3, ticks: [-1, 0, 1, 2], label: "θ₁" },
      y: { min: -1.2, max: 1.2, ticks: [-1, 0, 1], label: "θ₂" },
    });

    return () => {
      const batch = 2 ** panel.get("batch");
      const settings = [batch, panel.get("rate"), panel.get("steps")];
      const path = descend(...settings, Number(panel.get("run")) - 1);
      const last = path.at(-1);
      const left = path.findIndex(outside);
      // A full batch adds up to 1e-17, not to 0.
      panel.show("distance", Number(distance(last).toFixed(9)));
      panel.show("loss", loss(last));
      panel.show("left", left < 0 ? "none" : left);
      panel.show("share", [0, 1, 2, 3, 4].filter((run) => outside(descend(...settings, run).at(-1))).length);

      plot.clear();
      for (const line of data.contours) plot.line(line, { class: "faint", "stroke-width": 0.8 });
      plot.line(path, { stroke: data.methods.batch.colour, "stroke-width": 0.8 });
      plot.dots(path, { stroke: data.methods.batch.colour, "stroke-width": 3 });
      plot.dots([last], { stroke: data.methods.noisy.colour, "stroke-width": 10 });
    };
  });
})();

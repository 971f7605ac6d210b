// The moving average of a layer's batch means, whose level jumps once: lag against noise.
"use strict";

BookSlider.register("inference", (panel, data) => {
  const { start, jump, noise, methods } = data;
  panel.range("alpha", "weight α", {
    min: -2, max: 0, step: 0.1, value: start.alpha, show: (exponent) => BookSlider.format(10 ** exponent, 3),
  });
  panel.range("batch", "batch size m", {
    min: 1, max: 10, step: 1, value: start.batch, show: (exponent) => String(2 ** exponent),
  });
  panel.value("age", "mean age of a value, (1 − α)/α steps");
  panel.value("half", "steps from the jump to half of the way");
  panel.value("derived", "noise of the average, derived");
  panel.value("measured", "measured before the jump");

  const plot = panel.plot({
    x: { min: 0, max: noise.length, ticks: [0, 200, 400, 600], label: "step" },
    y: { min: -1, max: 2, ticks: [-1, 0, 1, 2], label: "mean of a channel" },
  });

  return () => {
    const alpha = 10 ** panel.get("alpha");
    const spread = 1 / Math.sqrt(2 ** panel.get("batch")); // a batch mean of m values of variance 1
    const stream = noise.map((value, i) => (i < jump ? 0 : 1) + spread * value);
    // As norms.RunningStats: the new value has the weight α; the start is 0.
    let stored = 0;
    const average = stream.map((value) => (stored += alpha * (value - stored)));

    panel.show("age", (1 - alpha) / alpha);
    const half = average.findIndex((value, i) => i >= jump && value >= 0.5);
    panel.show("half", half < 0 ? "never" : half - jump + 1);
    panel.show("derived", Math.sqrt(alpha / (2 - alpha)) * spread);
    // About the true mean, 0, and without the first 100 steps
    panel.show("measured", Math.sqrt(BookSlider.mean(average.slice(100, jump).map((value) => value ** 2))));

    plot.clear();
    plot.dots(stream.map((value, i) => [i + 1, value]), { class: "faint", "stroke-width": 2.5 });
    plot.line([[0, 0], [jump, 0], [jump, 1], [noise.length, 1]], { class: "thin", "stroke-width": 1.2 });
    plot.line([[0, 0], ...average.map((value, i) => [i + 1, value])], { stroke: methods.batch.colour, "stroke-width": 2.2 });
  };
});

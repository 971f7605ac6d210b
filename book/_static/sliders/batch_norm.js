// y = γ x̂ + β of a real hidden unit under the sigmoid: how much of it lies in the nearly linear middle?
"use strict";

(() => {
  const sigmoid = (z) => 1 / (1 + Math.exp(-z));

  // As norms.batch_norm for one channel.
  function batchNorm(x, gamma, beta, eps) {
    const mean = BookSlider.mean(x);
    const scale = 1 / Math.sqrt(BookSlider.variance(x) + eps);
    return x.map((value) => gamma * (value - mean) * scale + beta);
  }

  // Where the sigmoid departs from its tangent at 0 by less than 10 % of the tangent's rise.
  const nearlyLinear = (y) => Math.abs(sigmoid(y) - 0.5 - y / 4) < 0.1 * Math.abs(y / 4);

  const percent = (share) => `${BookSlider.format(100 * share)} %`;

  function build(panel, data) {
    const { start, methods, simple } = data;
    panel.range("gamma", "γ, the width", { min: 0.1, max: 10, step: 0.1, value: start.gamma });
    if (!simple) {
      panel.range("beta", "β, the place", { min: -6, max: 6, step: 0.1, value: start.beta });
      panel.range("eps", "ε, under the root", {
        min: -8, max: 1, step: 0.5, value: start.eps, show: (exponent) => BookSlider.format(10 ** exponent, 2),
      });
      panel.select("scale", "input", { 1: "a hidden unit", 0.01: "the same unit / 100" }, start.scale);
      panel.value("std", "standard deviation of x̂");
      panel.value("mean", "mean of y");
      panel.value("width", "standard deviation of y");
    }
    panel.value("linear", "in the nearly linear middle");
    panel.value("saturated", "saturated");

    const plot = panel.plot({
      height: simple ? 210 : 250,
      x: { min: -10, max: 10, ticks: [-10, -5, 0, 5, 10], label: simple ? "what the sigmoid gets" : "y = γ x̂ + β" },
      y: { min: 0, max: 1.05, ticks: [0, 0.5, 1], label: simple ? "what it gives" : "σ(y)" },
    });
    const curve = Array.from({ length: 101 }, (_, i) => [i / 5 - 10, sigmoid(i / 5 - 10)]);
    const bins = 40;

    return () => {
      const gamma = panel.get("gamma");
      const beta = simple ? 0 : panel.get("beta");
      const eps = 10 ** (simple ? start.eps : panel.get("eps"));
      const scale = simple ? 1 : Number(panel.get("scale"));
      const x = data.inputs.map((value) => value * scale);
      const y = batchNorm(x, gamma, beta, eps);

      if (!simple) {
        panel.show("std", Math.sqrt(BookSlider.variance(batchNorm(x, 1, 0, eps))));
        // A mean of 1e-17 is a rounding error.
        panel.show("mean", Number(BookSlider.mean(y).toFixed(9)));
        panel.show("width", Math.sqrt(BookSlider.variance(y)));
      }
      panel.show("linear", percent(y.filter(nearlyLinear).length / y.length));
      panel.show("saturated", percent(y.filter((value) => Math.abs(value) > data.saturated).length / y.length));

      const counts = Array(bins).fill(0);
      for (const value of y) {
        const bin = Math.floor((value + 10) / 20 * bins);
        if (bin >= 0 && bin < bins) counts[bin] += 1;
      }
      const highest = Math.max(...counts, 1);
      plot.clear();
      plot.area(-data.middle, data.middle, 0, 1.05, { class: "tint", fill: methods.batch.colour });
      counts.forEach((count, bin) => {
        const left = -10 + bin * 20 / bins;
        if (count) plot.area(left, left + 20 / bins, 0, count / highest, { class: "soft" });
      });
      plot.line(curve, { stroke: methods.batch.colour, "stroke-width": 2.5 });
    };
  }

  BookSlider.register("batch_norm", build);
  BookSlider.register("gamma", build);
})();

// The loss of five networks along their gradient, with and without batch norm, as the chapter measured it,
// and what the gradient alone promises.
"use strict";

BookSlider.register("landscape", (panel, data) => {
  const { lengths, start, methods } = data;
  const names = { none: "plain", batch: "batch norm" };
  const losses = Object.fromEntries(Object.keys(names).map((norm) => {
    return [norm, lengths.map((_, i) => BookSlider.median(data[norm].loss.map((row) => row[i])))];
  }));
  // To first order a step t lowers J by t |∇J|²; slope is |∇J|² / J.
  const promise = (norm, i) => BookSlider.median(data[norm].slope.map((slope) => 1 - lengths[i] * slope));

  panel.range("length", "length of the step, t", {
    min: 0, max: lengths.length - 1, step: 1, value: start.length, show: (index) => BookSlider.format(lengths[index], 3),
  });
  panel.table(names, { promise: "promised loss / start", loss: "loss / start", below: "networks of 5 that improve" });

  const plot = panel.plot({
    x: {
      min: 1e-3, max: 31, log: true, ticks: [0.001, 0.01, 0.1, 1, 10], label: "length of the step, times the gradient",
    },
    y: { min: 0.1, max: 1000, log: true, ticks: [0.1, 1, 10, 100, 1000], label: "loss / loss at the start" },
  });

  return () => {
    const index = panel.get("length");
    for (const norm of Object.keys(names)) {
      panel.show(`promise-${norm}`, promise(norm, index));
      panel.show(`loss-${norm}`, losses[norm][index]);
      panel.show(`below-${norm}`, data[norm].loss.filter((row) => row[index] < 1).length);
    }

    plot.clear();
    plot.line([[1e-3, 1], [31, 1]], { class: "thin", "stroke-width": 1 });
    plot.line([[lengths[index], 0.1], [lengths[index], 1000]], { class: "thin", "stroke-width": 1 });
    for (const [norm, row] of Object.entries(losses)) {
      for (const one of data[norm].loss) {
        plot.line(one.map((value, i) => [lengths[i], value]), { stroke: methods[norm].colour, "stroke-width": 0.6, opacity: 0.7 });
      }
      plot.line(row.map((value, i) => [lengths[i], value]), {
        stroke: methods[norm].colour, "stroke-width": 2.4, "stroke-dasharray": methods[norm].dash,
      });
      plot.dots([[lengths[index], row[index]]], { stroke: methods[norm].colour, "stroke-width": 9 });
    }
    plot.text(0.6, 40, methods.none.name, { "text-anchor": "end" });
    plot.text(26, 3.5, methods.batch.name, { "text-anchor": "end" });
  };
});

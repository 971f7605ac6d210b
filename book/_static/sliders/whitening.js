// A correlated cloud through centring, scaling and rotating, with its covariance and its condition numbers.
"use strict";

(() => {
  // Eigenvalues of a symmetric matrix, largest first, and their axes as rows: Jacobi's rotations.
  function eigen(matrix) {
    const a = matrix.map((row) => [...row]);
    const d = a.length;
    const axes = a.map((row, i) => row.map((_, j) => Number(i === j)));
    for (let sweep = 0; sweep < 20; sweep += 1) {
      for (let p = 0; p < d; p += 1) {
        for (let q = p + 1; q < d; q += 1) {
          const angle = 0.5 * Math.atan2(2 * a[p][q], a[q][q] - a[p][p]);
          const [c, s] = [Math.cos(angle), Math.sin(angle)];
          for (let k = 0; k < d; k += 1) {
            [a[k][p], a[k][q]] = [c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]];
          }
          for (let k = 0; k < d; k += 1) {
            [a[p][k], a[q][k]] = [c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]];
            [axes[p][k], axes[q][k]] = [c * axes[p][k] - s * axes[q][k], s * axes[p][k] + c * axes[q][k]];
          }
        }
      }
    }
    return a.map((row, i) => ({ value: row[i], axis: axes[i] })).sort((one, other) => other.value - one.value);
  }

  const dot = (u, v) => u.reduce((sum, value, i) => sum + value * v[i], 0);
  const column = (rows, i) => rows.map((row) => row[i]);
  const moment = (rows, i, j) => BookSlider.mean(rows.map((row) => row[i] * row[j]));

  function covariance(rows) {
    const centre = [0, 1].map((i) => BookSlider.mean(column(rows, i)));
    const centred = rows.map((row) => row.map((value, i) => value - centre[i]));
    return [0, 1].map((i) => [0, 1].map((j) => moment(centred, i, j)));
  }

  function conditionNumber(matrix) {
    const values = eigen(matrix);
    return values[0].value / values.at(-1).value;
  }

  // The maps of bnbook.whitening, and the rotation alone.
  function prepare(rows, stage) {
    if (stage === "raw") return rows;
    const centre = [0, 1].map((i) => BookSlider.mean(column(rows, i)));
    const centred = rows.map((row) => row.map((value, i) => value - centre[i]));
    if (stage === "centred") return centred;
    const cov = covariance(rows);
    if (stage === "standardized") {
      return centred.map((row) => row.map((value, i) => value / Math.sqrt(cov[i][i])));
    }
    const axes = eigen(cov).map(({ value, axis }) => {
      // The sign of an axis is free; its largest entry is made positive.
      const largest = Math.abs(axis[0]) > Math.abs(axis[1]) ? axis[0] : axis[1];
      return { std: Math.sqrt(value), axis: axis.map((entry) => entry * Math.sign(largest)) };
    });
    const rotated = centred.map((row) => axes.map(({ axis }) => dot(axis, row)));
    if (stage === "rotated") return rotated;
    const white = rotated.map((row) => row.map((value, i) => value / axes[i].std));
    if (stage === "pca") return white;
    return white.map((row) => [0, 1].map((i) => row[0] * axes[0].axis[i] + row[1] * axes[1].axis[i]));
  }

  BookSlider.register("whitening", (panel, data) => {
    panel.range("correlation", "correlation ρ", {
      min: -0.95, max: 0.95, step: 0.05, value: data.start.correlation, show: (rho) => BookSlider.format(rho, 2),
    });
    panel.select("stage", "stage", {
      raw: "raw", centred: "centred", standardized: "scaled: standardized",
      rotated: "rotated to its axes", pca: "rotated, scaled: PCA", zca: "and rotated back: ZCA",
    }, data.start.stage);
    panel.value("cov", "covariance matrix");
    panel.value("condition", "condition number of the covariance");
    panel.value("bowl", "condition number κ of the loss, with a bias");

    const plot = panel.plot({
      height: 276,
      x: { min: -4, max: 8, ticks: [-4, -2, 0, 2, 4, 6, 8], label: "first" },
      y: { min: -4, max: 4, ticks: [-4, -2, 0, 2, 4], label: "second" },
    });
    // Colours follow the first raw input, from small to large.
    const order = data.noise.map((_, i) => i).sort((i, j) => data.noise[i][0] - data.noise[j][0]);

    return () => {
      const rho = panel.get("correlation");
      const raw = data.noise.map(([first, other]) => [
        data.mean[0] + data.std[0] * first,
        data.mean[1] + data.std[1] * (rho * first + Math.sqrt(1 - rho ** 2) * other),
      ]);
      const z = prepare(raw, panel.get("stage"));
      const cov = covariance(z);
      const entry = (value) => ((Math.abs(value) < 5e-5 ? 0 : value).toFixed(4)).replace("-", "−").padStart(9, "\u2007");
      panel.show("cov", cov.map((row) => row.map(entry).join("")).join("\n"));
      panel.show("condition", conditionNumber(cov));
      const withOne = z.map((row) => [...row, 1]);
      panel.show("bowl", conditionNumber([0, 1, 2].map((i) => [0, 1, 2].map((j) => moment(withOne, i, j)))));

      plot.clear();
      plot.line([[0, -4], [0, 4]], { class: "thin", "stroke-width": 1 });
      plot.line([[-4, 0], [8, 0]], { class: "thin", "stroke-width": 1 });
      plot.dots(z, { class: "halo", "stroke-width": 5.5 }); // keeps the dark dots visible on a dark page
      data.shades.forEach((shade, part) => {
        const chosen = order.slice(part * order.length / data.shades.length, (part + 1) * order.length / data.shades.length);
        plot.dots(chosen.map((i) => z[i]), { stroke: shade });
      });
      // The ellipse at two standard deviations.
      const axes = eigen(cov);
      const centre = [0, 1].map((i) => BookSlider.mean(column(z, i)));
      plot.line(Array.from({ length: 73 }, (_, step) => {
        const turn = step * Math.PI / 36;
        const [u, v] = [2 * Math.cos(turn) * Math.sqrt(axes[0].value), 2 * Math.sin(turn) * Math.sqrt(axes[1].value)];
        return [0, 1].map((i) => centre[i] + u * axes[0].axis[i] + v * axes[1].axis[i]);
      }), { class: "thin", "stroke-width": 1.5 });
    };
  });
})();

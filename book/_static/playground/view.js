// What one sees of the two networks: the curves of both, and a table of the layers of each.
"use strict";

const PlaygroundView = (() => {
  const { html, svg, format, Plot } = BookSlider;
  const DASHES = { A: "none", B: "7 4" };
  const POINTS = 150;

  /** Write a text where it is another one: what does not change costs no layout. */
  function tell(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  const percent = (share) => `${Math.round(100 * share)} %`;

  /** Two digits of a number that may be very small. */
  const short = (value) => (value > 0 && value < 1e-3 ? value.toExponential(1).replaceAll("-", "−") : format(value, 2));

  /** Means of so many neighbours, with the step in their middle: [step, mean] pairs. */
  function thinned(values, size) {
    const points = [];
    for (let start = 0; start < values.length; start += size) {
      const part = values.slice(start, start + size);
      points.push([start + part.length / 2, BookSlider.mean(part)]);
    }
    return points;
  }

  /**
   * A plot with a curve for each network, whose axis of steps grows by itself.
   * @param {{title: string, alt: string, y: object}} settings y: an axis as BookSlider.Plot has them
   */
  function curves({ title, alt, y }, id) {
    const box = svg("svg", { viewBox: "0 0 340 200", role: "img", "aria-label": alt });
    const root = html("div", {}, html("div", { class: "playground-title", id: `${id}-title` }, title), box);
    let length = null, plot = null;
    const lines = {};

    /** A new frame, up to so many steps. */
    function frame(steps) {
      length = steps;
      box.replaceChildren();
      const x = { min: 0, max: steps, ticks: [0, steps / 2, steps], label: "step" };
      plot = new Plot(box, { width: 340, height: 200, x, y }, id);
      for (const [name, dash] of Object.entries(DASHES)) {
        const [before, curve] = ["curve before", "curve"].map((kind) => {
          return svg("polyline", { class: `${kind} of-${name}`, "stroke-dasharray": dash });
        });
        const label = svg("text", { class: "end" });
        plot.layer.append(before, curve);
        box.append(label);
        lines[name] = { before, curve, label };
      }
    }

    const onPlot = (points) => points.filter(([, value]) => Number.isFinite(value)).map(([step, value]) => [plot.X(step), plot.Y(value)]);
    const polyline = (places) => places.map((place) => place.map((at) => at.toFixed(1))).join(" ");

    /** @param {{name: string, points: number[][], before: number[][], diverged: boolean}[]} networks */
    function draw(networks, steps) {
      if (length !== steps) frame(steps);
      const { top, bottom } = plot.frame;
      const ends = networks.map(({ name, points, before, diverged }) => {
        const places = onPlot(points);
        if (places.length === 1) places.push([places[0][0] + 3, places[0][1]]); // one point is a short line
        lines[name].curve.setAttribute("points", polyline(places));
        lines[name].before.setAttribute("points", polyline(onPlot(before)));
        const [x, at] = places.at(-1) ?? [-99, 0];
        return { name, text: diverged ? `${name} ×` : name, x: x + 5, y: Math.min(Math.max(at, top), bottom) };
      });
      // Where two names would meet, they part.
      if (Math.abs(ends[0].y - ends[1].y) < 14 && Math.abs(ends[0].x - ends[1].x) < 14) {
        const [low, high] = ends[0].y > ends[1].y ? ends : [ends[1], ends[0]];
        const middle = (low.y + high.y) / 2;
        [low.y, high.y] = [middle + 7, middle - 7];
      }
      for (const { name, text, x, y: at } of ends) {
        const { label } = lines[name];
        label.setAttribute("x", x.toFixed(1));
        label.setAttribute("y", (at + 4).toFixed(1));
        tell(label, text);
      }
    }

    return { root, draw };
  }

  // --------------------------------------------------------------------- the layers of one network

  const WIDTH = 120, HEIGHT = 26, EDGE = 6; // of a histogram, whose axis runs from -6 to 6
  const at = (value) => WIDTH * (value + EDGE) / (2 * EDGE);
  // Where an activation's output hardly changes
  const FLAT = {
    sigmoid: [[-EDGE, -Math.log(19)], [Math.log(19), EDGE]],
    tanh: [[-EDGE, -Math.log(19) / 2], [Math.log(19) / 2, EDGE]],
    relu: [[-EDGE, 0]],
  };
  const LOWEST = 1e-6, HIGHEST = 1e2; // the axis of gradients

  /** A table of the hidden layers, the last one on top, as in a network's diagram the output is. */
  function layerTable(name) {
    const head = html("tr");
    const body = html("tbody");
    const table = html("table", { class: "playground-layers" },
      html("caption", {}, `Network ${name}, layer by layer`), html("thead", {}, head), body);
    let rows = [], kind = "";

    function build(settings) {
      const running = settings.norm === "batch";
      const columns = ["", "what the activation gets", settings.activation === "relu" ? "dead" : "saturated", "gradient"];
      if (running) columns.push("running σ / batch σ");
      head.replaceChildren(...columns.map((text) => html(text ? "th" : "td", text ? { scope: "col" } : {}, text)));
      rows = Array.from({ length: settings.depth }, (_, i) => {
        const bars = svg("path", { class: "bars" });
        const flat = FLAT[settings.activation].map(([from, to]) => {
          return svg("rect", { class: "flat", x: at(from), y: 0, width: at(to) - at(from), height: HEIGHT });
        });
        const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true", preserveAspectRatio: "none" },
          ...flat, bars, svg("line", { class: "zero", x1: WIDTH / 2, x2: WIDTH / 2, y1: 0, y2: HEIGHT }));
        const dot = svg("circle", { class: "dot", cy: 4, r: 4 });
        const rail = svg("svg", { class: "rail", viewBox: "0 0 64 8", "aria-hidden": "true" },
          svg("line", { class: "zero", x1: 0, x2: 64, y1: 4, y2: 4 }), dot);
        const [share, gradient, lag] = ["share", "gradient", "lag"].map((value) => html("output", { name: `${name}-${value}-${i + 1}`, "aria-live": "off" }));
        const cells = [html("td", {}, picture), html("td", {}, share), html("td", {}, gradient, rail)];
        if (running) cells.push(html("td", {}, lag));
        const row = html("tr", {}, html("th", { scope: "row" }, String(i + 1)), ...cells);
        return { row, bars, dot, share, gradient, lag };
      });
      body.replaceChildren(...rows.map(({ row }) => row).reverse());
    }

    /** @param {object[] | null} layers as the network observes them; null keeps what stands */
    function draw(settings, layers) {
      const wanted = [settings.norm, settings.activation, settings.depth].join();
      if (wanted !== kind) build(settings);
      kind = wanted;
      layers?.forEach(({ counts, share, gradient, lag }, i) => {
        const row = rows[i], highest = Math.max(...counts), width = WIDTH / counts.length;
        row.bars.setAttribute("d", Array.from(counts, (count, bin) => {
          return count ? `M${bin * width} ${HEIGHT}v${(-HEIGHT * count / highest).toFixed(1)}h${width}V${HEIGHT}` : "";
        }).join(""));
        tell(row.share, percent(share));
        tell(row.gradient, short(gradient));
        const place = Math.log(Math.min(Math.max(gradient, LOWEST), HIGHEST) / LOWEST) / Math.log(HIGHEST / LOWEST);
        row.dot.setAttribute("cx", (4 + 56 * place).toFixed(1));
        if (lag) tell(row.lag, format(lag.deviation, 2));
      });
    }

    return { root: table, draw };
  }

  return { curves, layerTable, percent, tell, thinned, POINTS };
})();

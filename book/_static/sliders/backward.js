// Algorithm 1 as a graph: the gradient walks back through it, one node a step.
"use strict";

(() => {
  // Name: place, label, subscript. Steps carry the gradient back to one node each.
  const NODES = {
    x: [32, 150, "x", "i"], mu: [104, 34, "μ", "B"], var: [180, 76, "σ²", "B"], x_hat: [258, 150, "x̂", "i"],
    y: [330, 150, "y", "i"], J: [396, 150, "J", ""], gamma: [292, 226, "γ", ""], beta: [366, 226, "β", ""],
  };
  const EDGES = [
    ["x", "x_hat"], ["x", "mu"], ["x", "var"], ["mu", "var"], ["mu", "x_hat"], ["var", "x_hat"],
    ["x_hat", "y"], ["y", "J"], ["gamma", "y"], ["beta", "y"],
  ];
  const STEPS = [
    ["y", "forward pass, and dy from above"],
    ["x_hat", "1: dx̂ᵢ, one arrow"],
    ["var", "2: dσ², an arrow to each x̂ᵢ"],
    ["mu", "3: dμ, to each x̂ᵢ and to σ²"],
    ["x", "4: dxᵢ, three arrows"],
    ["gamma", "5: dγ, an arrow to each yᵢ"],
    ["beta", "6: dβ, an arrow to each yᵢ"],
  ];
  const RADIUS = 17;

  // All derivatives, by the names of the values on the page; lists have an entry for each example.
  function derivatives({ x, gamma, eps }, dy) {
    const { mean, variance } = BookSlider;
    const m = x.length;
    const sum = (values) => m * mean(values);
    const mu = mean(x);
    const std = Math.sqrt(variance(x) + eps);
    const x_hat = x.map((value) => (value - mu) / std);
    const dx_hat = dy.map((value) => value * gamma);
    const dvar = sum(dx_hat.map((value, i) => (value * (x[i] - mu) * -0.5) / std ** 3));
    const dmu = -sum(dx_hat) / std + dvar * mean(x.map((value) => -2 * (value - mu)));
    const straight = dx_hat.map((value) => value / std);
    const by_var = x.map((value) => (dvar * 2 * (value - mu)) / m);
    const by_mu = x.map(() => dmu / m);
    const dx = straight.map((value, i) => value + by_var[i] + by_mu[i]);
    const dgamma = sum(dy.map((value, i) => value * x_hat[i]));
    return { x_hat, dy, dx_hat, dvar, dmu, straight, by_var, by_mu, dx, dgamma, dbeta: sum(dy) };
  }

  // A line between the rims of two nodes; the one from mu to x̂ passes above sigma squared.
  function arrow(from, to) {
    const [[x0, y0], [x1, y1]] = [NODES[from], NODES[to]];
    const bend = from === "mu" && to === "x_hat" ? [238, 30] : [(x0 + x1) / 2, (y0 + y1) / 2];
    const rim = (x, y, gap) => {
      const length = Math.hypot(bend[0] - x, bend[1] - y);
      return [x + (gap * (bend[0] - x)) / length, y + (gap * (bend[1] - y)) / length].map((v) => v.toFixed(1));
    };
    return `M${rim(x0, y0, RADIUS)}Q${bend} ${rim(x1, y1, RADIUS + 8)}`;
  }

  BookSlider.register("backward", (panel, data) => {
    const { svg } = BookSlider;
    panel.range("step", "step", { min: 0, max: STEPS.length - 1, step: 1, value: 0, show: (k) => STEPS[k][1] });
    panel.select("loss", "the loss J", Object.fromEntries(data.losses.map(({ text }, k) => [k, text])), 0);
    const columns = Object.fromEntries(data.x.map((value, i) => [i + 1, `x = ${value}`]));
    panel.table(columns, {
      x_hat: "x̂ᵢ", dy: "dyᵢ", dx_hat: "(1) dx̂ᵢ",
      straight: "straight", by_var: "by σ²", by_mu: "by μ", dx: "(4) dxᵢ",
    });
    panel.value("dvar", "(2) dσ²");
    panel.value("dmu", "(3) dμ");
    panel.value("dgamma", "(5) dγ");
    panel.value("dbeta", "(6) dβ");

    const box = panel.canvas(420, 252);
    box.style.setProperty("--here", data.methods.batch.colour);
    const head = svg("marker", {
      id: `${panel.id}-head`, viewBox: "0 0 10 10", refX: 1, refY: 5, markerWidth: 9, markerHeight: 9,
      markerUnits: "userSpaceOnUse", orient: "auto", fill: "context-stroke",
    }, svg("path", { d: "M0 0L10 5L0 10z" }));
    box.append(svg("defs", {}, head));
    const edges = EDGES.map(([from, to]) => {
      const path = svg("path", { d: arrow(from, to), "marker-end": `url(#${head.id})` });
      box.append(path);
      return { from, path };
    });
    const circles = {};
    for (const [name, [x, y, label, below]] of Object.entries(NODES)) {
      circles[name] = svg("circle", { cx: x, cy: y, r: RADIUS });
      const text = svg("text", { x, y: y + 5, "text-anchor": "middle" }, label);
      if (below) text.append(svg("tspan", { dy: 4, "font-size": "75%" }, below));
      box.append(circles[name], text);
    }

    // The step at which a value is known.
    const since = { x_hat: 0, dy: 0, dx_hat: 1, dvar: 2, dmu: 3, straight: 4, by_var: 4, by_mu: 4, dx: 4, dgamma: 5, dbeta: 6 };
    return () => {
      const step = panel.get("step");
      const found = derivatives(data, data.losses[panel.get("loss")].dy);
      for (const [name, value] of Object.entries(found)) {
        const shown = (number) => (step < since[name] ? "·" : BookSlider.format(Number(number.toFixed(10)), 3));
        if (Array.isArray(value)) value.forEach((number, i) => panel.show(`${name}-${i + 1}`, shown(number)));
        else panel.show(name, shown(value));
      }
      const node = STEPS[step][0];
      for (const { from, path } of edges) {
        path.setAttribute("class", from === node ? "edge leaves" : "edge");
      }
      for (const [name, circle] of Object.entries(circles)) {
        circle.setAttribute("class", name === node ? "node here" : "node");
      }
    };
  });
})();

// What all interactive figures share: labelled controls, values, and a plot with axes.
//
// A figure's script calls BookSlider.register(name, build). `build(panel, data)` adds controls, values and a
// drawing to the panel, and returns a function that draws them anew; it is called after every change of a
// control. `data` is what Python embedded in the page. Nothing moves unless the reader moves it.
"use strict";

const BookSlider = (() => {
  const builders = {};

  // An HTML element; attributes that are undefined are left out.
  function html(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }

  // An SVG element.
  function svg(tag, attributes = {}, ...children) {
    return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  }

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  // A number with four significant digits, without trailing zeros, with a true minus sign.
  function format(value, digits = 4) {
    if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : "∞";
    return minus(String(Number(value.toPrecision(digits))));
  }

  function minus(text) {
    return text.replaceAll("-", "−");
  }

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const variance = (values) => {
    const centre = mean(values);
    return mean(values.map((value) => (value - centre) ** 2));
  };
  const median = (values) => {
    const sorted = [...values].sort((a, b) => a - b);
    const half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  };

  // Labelled controls; `refresh` is called after every change.
  class Controls {
    constructor(id, refresh) {
      this.id = id;
      this.box = html("div", { class: "slider-controls", role: "group", "aria-label": "Controls" });
      this.box.addEventListener("input", refresh);
      this.inputs = {};
      this.shown = {};
    }

    // A range with a label and its value; `show` turns the number into the text beside it.
    range(name, label, { min, max, step, value, show = (number) => format(number) }) {
      const input = html("input", { type: "range", id: `${this.id}-${name}`, name, min, max, step, value });
      // The range speaks for itself: a live region would say everything twice.
      const output = html("output", { for: input.id, "aria-live": "off" });
      this.shown[name] = () => {
        output.value = show(Number(input.value));
        input.setAttribute("aria-valuetext", output.value);
      };
      return this.control(name, label, input, output);
    }

    // A choice; `options` maps values to texts.
    select(name, label, options, value) {
      const entries = Object.entries(options).map(([key, text]) => {
        return html("option", { value: key, selected: key === String(value) ? "" : undefined }, text);
      });
      return this.control(name, label, html("select", { id: `${this.id}-${name}`, name }, ...entries));
    }

    control(name, label, input, ...more) {
      this.inputs[name] = input;
      const box = html("div", { class: "slider-control" }, html("label", { for: input.id }, label), ...more, input);
      this.box.append(box);
      return box;
    }

    get(name) {
      const input = this.inputs[name];
      return input.tagName === "SELECT" ? input.value : Number(input.value);
    }

    // Write the value of each range beside it.
    tell() {
      for (const show of Object.values(this.shown)) show();
    }
  }

  class Panel extends Controls {
    constructor(figure, name, alt) {
      super(figure.id || name, () => this.refresh());
      this.alt = alt;
      this.drawing = html("div");
      this.values = html("div", { class: "slider-values" });
      this.reset = html("button", { type: "button" }, "Reset");
      this.root = html("div", { class: "slider-panel" }, this.drawing, this.values, this.box, this.reset);
      this.outputs = {};
      this.update = () => {};
      this.reset.addEventListener("click", () => {
        for (const input of Object.values(this.inputs)) {
          if (input.tagName === "SELECT") {
            for (const option of input.options) option.selected = option.defaultSelected;
          } else {
            input.value = input.defaultValue;
          }
        }
        this.refresh();
      });
    }

    // A line with a computed value.
    value(name, label) {
      const output = html("output", { id: `${this.id}-out-${name}`, name });
      this.outputs[name] = output;
      this.values.append(
        html("div", { class: "slider-value" }, html("label", { for: output.id }, label), output),
      );
    }

    // Computed values with one column for each thing compared; their names are "row-column".
    table(columns, rows) {
      const head = Object.values(columns).map((text) => html("th", { scope: "col" }, text));
      const body = Object.entries(rows).map(([row, label]) => {
        const cells = Object.entries(columns).map(([column, text]) => {
          const name = `${row}-${column}`;
          this.outputs[name] = html("output", { name, "aria-label": `${label}, ${text}` });
          return html("td", {}, this.outputs[name]);
        });
        return html("tr", {}, html("th", { scope: "row" }, label), ...cells);
      });
      const empty = html("td");
      this.values.append(
        html("table", {}, html("thead", {}, html("tr", {}, empty, ...head)), html("tbody", {}, ...body)),
      );
    }

    show(name, value) {
      this.outputs[name].value = typeof value === "number" ? format(value) : value;
    }

    refresh() {
      this.tell();
      this.update();
    }

    // An empty drawing with the figure's alternative text.
    canvas(width, height) {
      const box = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.alt });
      this.drawing.append(box);
      return box;
    }

    plot(settings) {
      return new Plot(this.canvas(settings.width ?? 400, settings.height ?? 250), settings, this.id);
    }
  }

  // Axes with ticks and names. What draw() adds is removed by clear(). An axis is
  // {min, max, ticks, label, log, show}.
  class Plot {
    constructor(box, { width = 400, height = 250, x, y }, id) {
      this.x = x;
      this.y = y;
      this.frame = { left: 52, right: width - 18, top: 10, bottom: height - 42 };
      const { left, right, top, bottom } = this.frame;
      for (const tick of x.ticks) {
        const at = this.X(tick);
        box.append(
          svg("line", { class: "grid", x1: at, x2: at, y1: top, y2: bottom }),
          svg("text", { x: at, y: bottom + 16, "text-anchor": "middle" }, (x.show ?? format)(tick)),
        );
      }
      for (const tick of y.ticks) {
        const at = this.Y(tick);
        box.append(
          svg("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }),
          svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, (y.show ?? format)(tick)),
        );
      }
      const middle = (top + bottom) / 2;
      box.append(
        svg("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, x.label),
        svg("text", { x: 13, y: middle, "text-anchor": "middle", transform: `rotate(-90 13 ${middle})` }, y.label),
        svg("clipPath", { id: `${id}-clip` }, svg("rect", { x: left, y: top, width: right - left, height: bottom - top })),
      );
      this.layer = svg("g", { "clip-path": `url(#${id}-clip)` });
      box.append(this.layer, svg("path", { class: "frame", d: `M${left} ${top}V${bottom}H${right}` }));
    }

    X(value) {
      const { left, right } = this.frame;
      return left + (right - left) * share(value, this.x);
    }

    Y(value) {
      const { top, bottom } = this.frame;
      return bottom - (bottom - top) * share(value, this.y);
    }

    clear() {
      this.layer.replaceChildren();
    }

    draw(tag, attributes, ...children) {
      this.layer.append(svg(tag, attributes, ...children));
    }

    // A curve through [x, y] pairs.
    line(points, attributes) {
      const path = points.map(([x, y]) => `${this.X(x).toFixed(2)},${this.Y(y).toFixed(2)}`).join(" ");
      this.draw("polyline", { points: path, fill: "none", "stroke-width": 2, ...attributes });
    }

    // Many dots as one element: a line of length zero with a round end is a dot.
    dots(points, attributes) {
      const path = points.map(([x, y]) => `M${this.X(x).toFixed(1)} ${this.Y(y).toFixed(1)}h0`).join("");
      this.draw("path", { d: path, fill: "none", "stroke-linecap": "round", "stroke-width": 4, ...attributes });
    }

    // A rectangle between two corners.
    area(x0, x1, y0, y1, attributes) {
      const [left, right, low, high] = [this.X(x0), this.X(x1), this.Y(y0), this.Y(y1)];
      this.draw("rect", { x: left, width: Math.max(right - left, 0), y: high, height: Math.max(low - high, 0), ...attributes });
    }

    text(x, y, text, attributes) {
      this.draw("text", { x: this.X(x), y: this.Y(y), ...attributes }, text);
    }
  }

  // Where a value lies between the ends of its axis, 0 to 1; far outside it is cut, which SVG needs.
  function share(value, { min, max, log }) {
    const part = log ? Math.log(value / min) / Math.log(max / min) : (value - min) / (max - min);
    return Math.min(Math.max(part, -20), 20);
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const script of document.querySelectorAll("script[data-slider]")) {
      const figure = script.closest("figure");
      const picture = figure.querySelector("img");
      const panel = new Panel(figure, script.dataset.slider, picture.alt);
      panel.update = builders[script.dataset.slider](panel, JSON.parse(script.textContent));
      panel.refresh();
      // Only now: if anything went wrong above, the picture stays.
      (picture.closest("a") ?? picture).replaceWith(panel.root);
    }
  });

  return {
    register: (name, build) => { builders[name] = build; },
    Controls, Plot, format, html, svg, mean, median, variance,
  };
})();

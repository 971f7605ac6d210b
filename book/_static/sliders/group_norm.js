// The cells of an (N, C, H·W) block whose mean one cell shares, for each norm of the family.
"use strict";

(() => {
  const GROUPS = [1, 2, 3, 6]; // the divisors of 6 channels

  // Whether cell k is in the set of cell i, for cells [example, channel, position].
  const SETS = {
    batch: (i, k) => k[1] === i[1],
    layer: (i, k) => k[0] === i[0],
    instance: (i, k) => k[0] === i[0] && k[1] === i[1],
    group: (i, k, perGroup) => k[0] === i[0] && Math.floor(k[1] / perGroup) === Math.floor(i[1] / perGroup),
    rms: (i, k) => k[0] === i[0] && k[2] === i[2],
  };

  BookSlider.register("group_norm", (panel, data) => {
    const { start, methods } = data;
    const [N, C, S] = data.shape;
    panel.select("norm", "norm", {
      batch: "batch", layer: "layer", instance: "instance", group: "group, in G groups", rms: "RMS, of one position",
    }, start.norm);
    panel.range("groups", "groups G", {
      min: 0, max: GROUPS.length - 1, step: 1, value: start.groups, show: (index) => String(GROUPS[index]),
    });
    panel.range("example", "example", { min: 1, max: N, step: 1, value: start.example });
    panel.range("channel", "channel", { min: 1, max: C, step: 1, value: start.channel });
    panel.range("position", "position", { min: 1, max: S, step: 1, value: start.position });
    panel.value("size", "m, cells that share the statistic");
    panel.value("sets", "number of sets in the block");
    panel.value("examples", "examples in the set");

    // One sheet an example, channels to the right, positions downwards.
    const side = 28;
    const box = panel.canvas(420, 312);
    const cells = [];
    for (let n = 0; n < N; n += 1) {
      const left = 24 + (n % 2) * 216;
      const top = 22 + Math.floor(n / 2) * 156;
      box.append(
        BookSlider.svg("text", { x: left, y: top - 7 }, `example ${n + 1}`),
        BookSlider.svg("text", { x: left + side * C / 2, y: top + side * S + 15, "text-anchor": "middle" }, "channels"),
        BookSlider.svg("text", {
          x: left - 8, y: top + side * S / 2, "text-anchor": "middle",
          transform: `rotate(-90 ${left - 8} ${top + side * S / 2})`,
        }, "positions"),
      );
      for (let c = 0; c < C; c += 1) {
        for (let s = 0; s < S; s += 1) {
          const [x, y] = [left + c * side, top + s * side];
          const rect = BookSlider.svg("rect", { class: "cell", x, y, width: side, height: side });
          const dot = BookSlider.svg("circle", { class: "mark", cx: x + side / 2, cy: y + side / 2, r: 6 });
          box.append(rect, dot);
          cells.push({ at: [n, c, s], rect, dot });
        }
      }
    }

    return () => {
      const norm = panel.get("norm");
      const perGroup = C / GROUPS[panel.get("groups")];
      panel.inputs.groups.disabled = norm !== "group";
      const chosen = [panel.get("example") - 1, panel.get("channel") - 1, panel.get("position") - 1];
      const inSet = (i, k) => SETS[norm](i, k, perGroup);
      const members = cells.filter(({ at }) => inSet(chosen, at));
      for (const { at, rect, dot } of cells) {
        const member = inSet(chosen, at);
        rect.setAttribute("fill", member ? methods[norm].colour : "none");
        rect.toggleAttribute("data-member", member);
        dot.setAttribute("visibility", String(at) === String(chosen) ? "visible" : "hidden");
      }
      panel.show("size", members.length);
      // A set is counted at its first cell.
      panel.show("sets", cells.filter((cell, index) => cells.findIndex(({ at }) => inSet(cell.at, at)) === index).length);
      panel.show("examples", new Set(members.map(({ at }) => at[0])).size);
    };
  });
})();

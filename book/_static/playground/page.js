// The playground: two networks with knobs, trained by a worker while the reader wants it.
"use strict";

(() => {
  const { Controls, html, format } = BookSlider;
  const { curves, layerTable, percent, tell, thinned, POINTS } = PlaygroundView;
  const NAMES = ["A", "B"];
  const MOST_STEPS = 20000;
  const LOOK_EVERY = 200; // ms between two pictures of the layers: faster nobody reads numbers
  const PACES = { slow: 5, steady: 60, fast: Infinity }; // steps a second

  /** A worker from the text of the functions: a page from the file system may not load one from a file. */
  function startWorker() {
    const parts = [playgroundRandom, playgroundLayers, playgroundNetwork, playgroundWorker];
    const start = "playgroundWorker(playgroundNetwork(playgroundRandom(), playgroundLayers()));";
    const address = URL.createObjectURL(new Blob(['"use strict";\n', parts.join("\n"), "\n", start]));
    return new Worker(address);
  }

  /** The knobs of one network. Each has a list of values; a range moves along it, a choice shows their names. */
  class Knobs extends Controls {
    constructor(name, id, knobs, refresh) {
      super(`${id}-${name}`, refresh);
      this.knobs = knobs;
      this.box.setAttribute("aria-label", `Knobs of network ${name}`);
      for (const [knob, { label, values, names }] of Object.entries(knobs)) {
        if (names) this.select(knob, label, Object.fromEntries(values.map((value, i) => [value, names[i]])), values[0]);
        else this.range(knob, label, { min: 0, max: values.length - 1, step: 1, value: 0, show: (i) => format(values[i]) });
        this.inputs[knob].parentElement.dataset.knob = knob;
      }
    }

    /** @returns {Settings} */
    settings() {
      return Object.fromEntries(Object.entries(this.knobs).map(([knob, { values, names }]) => {
        return [knob, names ? this.get(knob) : values[this.get(knob)]];
      }));
    }

    /** Turn the knobs; says which of the values there are not. */
    turn(settings) {
      const unknown = [];
      for (const [knob, value] of Object.entries(settings)) {
        const index = this.knobs[knob]?.values.indexOf(value) ?? -1;
        if (index < 0) unknown.push(`${knob}=${value}`);
        else this.inputs[knob].value = this.knobs[knob].names ? value : index;
      }
      this.tell();
      return unknown;
    }

    tell() {
      super.tell();
      const norm = this.get("norm");
      this.inputs.placement.disabled = norm === "none";
      this.inputs.momentum.disabled = norm !== "batch";
    }
  }

  /** A playground in a figure's panel. */
  function build(panel, data) {
    const { knobs, stories, methods, small } = data;
    const calm = matchMedia("(prefers-reduced-motion: reduce)");
    const worker = startWorker();
    worker.postMessage({ images: data.images, width: data.width });

    const button = (text, action, name) => {
      const made = html("button", { type: "button", name }, text);
      made.addEventListener("click", action);
      return made;
    };
    const title = (side) => (side.settings.norm === "none" ? "plain" : `${methods[side.settings.norm].name} norm`);

    // ------------------------------------------------------------------- the state

    const sides = NAMES.map((name) => {
      const controls = new Knobs(name, panel.id, knobs, () => { pause(); restart(0, true); });
      const table = layerTable(name);
      const [head, loss, accuracy] = ["name", "loss", "accuracy"].map((value) => {
        return html("output", { name: `${name}-${value}`, "aria-live": "off" });
      });
      return { name, controls, table, head, loss, accuracy, losses: [], accuracies: [], layers: null, diverged: null, before: null };
    });
    let id = 0, steps = 0, seed = 0, playing = false, waiting = false, drawn = 0, looked = 0;
    let end = 0; // where playing pauses by itself

    const story = () => stories.find((one) => ["a", "b"].every((key, i) => {
      return Object.entries(one[key]).every(([knob, value]) => sides[i].settings[knob] === value);
    }));
    const testMode = () => top.get("test");

    // ------------------------------------------------------------------- what the worker does

    /** New networks from what the knobs say, and so many steps at once. After a turn of a knob the old curves stay. */
    function restart(count = 0, turned = false) {
      for (const side of sides) {
        side.controls.tell();
        side.settings = side.controls.settings();
        if (!turned) side.before = null;
        else if (side.losses.length) side.before = { losses: side.losses, accuracies: side.accuracies };
        Object.assign(side, { losses: [], accuracies: [], layers: null, diverged: null });
        root.style.setProperty(`--${side.name}`, methods[side.settings.norm].colour);
      }
      top.tell();
      id += 1;
      steps = 0;
      waiting = true;
      root.setAttribute("aria-busy", "true");
      worker.postMessage({ id, start: sides.map((side) => side.settings), seed, steps: count, last: true, look: true });
      tellStory();
    }

    function ask(count, milliseconds, last) {
      const look = last || performance.now() - looked > LOOK_EVERY;
      if (look) looked = performance.now();
      waiting = true;
      root.setAttribute("aria-busy", "true");
      worker.postMessage({ id, steps: count, milliseconds, last, look });
    }

    worker.onmessage = ({ data: answer }) => {
      if (answer.id !== id) return;
      waiting = false;
      steps = answer.steps;
      answer.sides.forEach(({ losses, accuracy, layers, diverged }, i) => {
        sides[i].losses.push(...losses);
        sides[i].accuracies.push(...accuracy);
        sides[i].layers = layers;
        sides[i].diverged = diverged;
      });
      if (playing && (steps >= end || sides.every((side) => side.diverged !== null))) pause();
      // The curves in one frame, the tables in the next: both in one frame let a slow machine answer late.
      requestAnimationFrame(() => {
        drawCurves();
        requestAnimationFrame(() => {
          drawTables();
          if (waiting) return;
          if (playing) goOn();
          else settle();
        });
      });
    };

    /** The next steps, when it is time for them. Whoever wants little motion gets one picture a second. */
    function goOn() {
      const frame = calm.matches ? 1000 : 40, pace = PACES[top.get("pace")];
      const count = Math.min(Math.max(1, Math.round(pace * frame / 1000)), end - steps);
      const pause = Math.max(0, (Number.isFinite(pace) ? 1000 * count / pace : calm.matches ? 1000 : 0) - (performance.now() - drawn));
      waiting = true;
      const now = id;
      setTimeout(() => {
        waiting = false;
        if (!playing || now !== id) return;
        drawn = performance.now();
        ask(count, calm.matches ? 900 : 30, false);
      }, pause);
    }

    function play() {
      if (steps >= MOST_STEPS || sides.every((side) => side.diverged !== null)) restart();
      playing = true;
      root.setAttribute("aria-busy", "true");
      summary.textContent = ""; // it was about where this stood
      end = steps < (story()?.steps ?? 0) ? story().steps : MOST_STEPS;
      tellPlaying();
      if (!waiting) goOn();
    }

    function pause() {
      if (!playing) return;
      playing = false;
      tellPlaying();
      ask(0, 0, true);
    }

    function tellPlaying() {
      playButton.textContent = playing ? "Pause" : "Play";
      root.classList.toggle("playing", playing);
    }

    /** What is told when nothing moves: the address, and the state in words. */
    function settle() {
      root.setAttribute("aria-busy", "false");
      summary.textContent = inWords();
      const address = inAddress();
      if (small) link.href = `playground.html#${address}`;
      else history.replaceState(null, "", `#${address}`);
    }

    // ------------------------------------------------------------------- what one sees

    const lossPlot = curves({
      title: "Training loss", alt: "The training loss of both networks, over the steps.",
      y: { min: 0.001, max: 10, log: true, ticks: [0.001, 0.01, 0.1, 1, 10], label: "" },
    }, `${panel.id}-loss`);
    const accuracyPlot = curves({
      title: "Test accuracy", alt: "The test accuracy of both networks, over the steps.",
      y: { min: 0, max: 1, ticks: [0, 0.25, 0.5, 0.75, 1], show: percent, label: "" },
    }, `${panel.id}-accuracy`);

    const recentLoss = (side) => BookSlider.mean(side.losses.slice(-20).filter(Number.isFinite));
    const lastAccuracy = (side) => side.accuracies.at(-1)?.[testMode()];

    function drawCurves() {
      let length = story()?.steps ?? 200;
      while (length < steps) length *= 2;
      const size = Math.ceil(length / POINTS);
      const curve = (side, points) => ({
        name: side.name, diverged: side.diverged !== null, points: points(side), before: side.before ? points(side.before) : [],
      });
      const losses = (run) => thinned(run.losses.slice(0, length), size);
      const accuracies = (run) => run.accuracies.filter((one) => one.steps <= length).map((one) => [one.steps, one[testMode()]]);
      lossPlot.draw(sides.map((side) => curve(side, losses)), length);
      accuracyPlot.draw(sides.map((side) => curve(side, accuracies)), length);
      for (const side of sides) {
        const loss = side.losses.length ? format(recentLoss(side), 2) : "–";
        tell(side.head, `${side.name} · ${title(side)}`);
        tell(side.loss, side.diverged === null ? loss : "diverged");
        tell(side.accuracy, side.accuracies.length ? percent(lastAccuracy(side)) : "–");
      }
      tell(count, `step ${steps}`);
    }

    function drawTables() {
      for (const side of sides) {
        if (!small) side.table.draw(side.settings, side.layers);
        side.layers = null; // drawn
      }
    }

    function inWords() {
      const parts = sides.map((side) => {
        const who = `${side.name} (${title(side)})`;
        if (side.diverged !== null) return `${who} diverged at step ${side.diverged}: its loss is no longer a number.`;
        const loss = side.losses.length ? `loss ${format(recentLoss(side), 2)}, ` : "";
        return `${who}: ${loss}test accuracy ${percent(lastAccuracy(side))}.`;
      });
      return [`Step ${steps}.`, ...parts].join(" ");
    }

    // ------------------------------------------------------------------- the address

    function inAddress() {
      const parameters = new URLSearchParams();
      sides.forEach((side) => {
        for (const [knob, value] of Object.entries(side.settings)) parameters.set(`${side.name}.${knob}`, value);
      });
      for (const [name, value] of Object.entries({ seed, test: testMode(), steps })) parameters.set(name, value);
      return parameters.toString();
    }

    /** Turn the knobs as the address says: `story` and what differs from it, or all settings. */
    function readAddress() {
      const parameters = new URLSearchParams(location.hash.slice(1));
      const wrong = [];
      const named = stories.find((one) => one.name === parameters.get("story"));
      if (parameters.has("story") && !named) wrong.push(`story=${parameters.get("story")}`);
      load(named ?? stories[0]);
      for (const side of sides) {
        const wanted = {};
        for (const [key, text] of parameters) {
          const [name, knob] = key.split(".");
          if (name === side.name && knob) wanted[knob] = knobs[knob]?.names ? text : Number(text);
        }
        wrong.push(...side.controls.turn(wanted).map((one) => `${side.name}.${one}`));
      }
      if (["running", "batch"].includes(parameters.get("test"))) top.inputs.test.value = parameters.get("test");
      const whole = (name, most) => Math.min(Math.max(Math.floor(Number(parameters.get(name))) || 0, 0), most);
      seed = whole("seed", 2 ** 32 - 1);
      restart(whole("steps", MOST_STEPS));
      problem.textContent = wrong.length ? `The address asks for ${wrong.join(", ")}, which there is not.` : "";
    }

    // ------------------------------------------------------------------- stories, buttons, layout

    function load(one) {
      sides.forEach((side, i) => side.controls.turn(one[i ? "b" : "a"]));
      top.inputs.test.value = one.test;
    }

    const told = html("p", { class: "playground-story" });
    const storyButtons = stories.map((one) => {
      const made = button(one.title, () => { pause(); load(one); restart(); }, `story-${one.name}`);
      made.setAttribute("aria-pressed", "false");
      return made;
    });
    function tellStory() {
      const now = story();
      storyButtons.forEach((made, i) => made.setAttribute("aria-pressed", String(stories[i] === now)));
      told.replaceChildren(...(now
        ? [`${now.watch} `, html("a", { href: `${now.chapter}.html` }, `Why: ${now.chapterTitle}`), "."]
        : ["Your own experiment, from step 0: press Play. Pale curves show the networks before you turned a knob."]));
    }

    const playButton = button("Play", () => (playing ? pause() : play()), "play");
    const count = html("output", { name: "steps", "aria-live": "off" });
    const seedShown = html("output", { name: "seed", "aria-live": "off" });
    const top = new Controls(`${panel.id}-all`, ({ target }) => {
      if (target.name === "test") { drawCurves(); if (!playing) settle(); }
    });
    top.select("pace", "pace", { slow: "slow", steady: "steady", fast: "as fast as can be" }, "steady");
    top.select("test", "statistics in the test", { running: "running", batch: "of the test batch" }, "running");
    top.tell = () => { seedShown.value = `seed ${seed}`; };
    const summary = html("p", { class: "playground-summary", role: "status" });
    const problem = html("p", { class: "playground-problem", role: "alert" });
    const link = html("a", { class: "playground-link", href: "playground.html" }, "Turn all the knobs in the playground");

    const bar = html("div", { class: "playground-bar" },
      playButton,
      button("One step", () => { pause(); ask(1, Infinity, true); }, "step"),
      button("Reset", () => { pause(); restart(); }, "reset"),
      button("Another seed", () => { pause(); seed += 1; restart(); }, "another"),
      html("span", { class: "playground-count" }, count, html("span", {}, " · "), seedShown),
    );
    const copy = (from, to) => button(`Copy ${NAMES[from]} to ${NAMES[to]}`, () => {
      pause();
      sides[to].controls.turn(sides[from].settings);
      restart(0, true);
    }, `copy-${NAMES[from]}`);
    const panels = sides.map((side, i) => html("section", { class: `playground-side of-${side.name}`, "aria-label": `Network ${side.name}` },
      html("div", { class: "playground-head" }, side.head,
        html("span", {}, "loss ", side.loss), html("span", {}, "test ", side.accuracy)),
      ...(small ? [] : [side.controls.box, copy(i, 1 - i), side.table.root]),
    ));

    const root = panel.root;
    root.classList.add("playground", ...(small ? [] : ["playground-whole"]));
    root.replaceChildren(
      html("div", { class: "playground-stories", role: "group", "aria-label": "Stories" }, ...storyButtons),
      told, problem, bar,
      html("div", { class: "playground-bench" },
        panels[0],
        html("div", { class: "playground-middle" },
          html("div", { class: "playground-curves" }, lossPlot.root, accuracyPlot.root), summary, top.box),
        panels[1],
      ),
      ...(small ? [link] : []),
    );
    if (small) {
      load(stories[0]);
      restart();
    } else {
      readAddress();
      window.addEventListener("hashchange", () => { pause(); readAddress(); });
    }
    return () => undefined;
  }

  BookSlider.register("playground", build);
  BookSlider.register("playground_small", build);
})();

// A prediction is a commitment: its answer, a <details>, opens when the reader commits a guess. Guesses are kept
// in this browser; where it keeps nothing (file: in some, private windows) they last as long as the page.
(() => {
  const STORE = "bnbook-predictions";

  function kept() {
    try {
      return Object(JSON.parse(localStorage.getItem(STORE)) ?? {});
    } catch {
      return {};
    }
  }

  function keep(guesses) {
    try {
      localStorage.setItem(STORE, JSON.stringify(guesses));
    } catch {
      // Nothing is kept.
    }
  }

  // The number that somebody typed: 4096, 4,096, 0,5, 1e-5, −3 or ≈ 10 %. NaN if there is none.
  function numberIn(text) {
    const digits = text.replace(/[\s\u2009\u202f]/g, "").replace("−", "-").replace(/^[≈~]/, "").replace(/%$/, "");
    const thousands = /^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?$/.test(digits);
    return digits === "" ? NaN : Number(thousands ? digits.replaceAll(",", "") : digits.replace(",", "."));
  }

  const VERDICT = new Map([[true, "Your guess came true."], [false, "Your guess did not come true."]]);

  function offer(prediction, place) {
    const { key, answer: right, low, high } = prediction.dataset;
    const answer = prediction.querySelector(".prediction-answer");
    const asked = prediction.querySelector(".prediction-question");
    const list = asked.querySelector(".prediction-choices");
    const choices = list ? [...list.children] : [];
    const first = asked.querySelector("p");
    first.id ||= `prediction-${place}`;

    const form = document.createElement("form");
    form.innerHTML = list
      ? `<fieldset aria-describedby="${first.id}"><legend>Your guess</legend><button>Commit</button></fieldset>`
      : `<fieldset><label>Your guess <input name="guess" required autocomplete="off" aria-describedby="${first.id}">
         </label> <button>Commit</button></fieldset>`;
    const [fieldset, input] = [form.querySelector("fieldset"), form.querySelector("input")];
    const result = document.createElement("p");
    result.className = "prediction-result";
    result.setAttribute("role", "status");
    asked.append(form, result);
    if (list) form.querySelector("button").before(list);
    choices.forEach((choice, i) => {
      const label = document.createElement("label");
      const words = document.createElement("span");
      words.append(...(choice.querySelector("p") ?? choice).childNodes); // moved, as MathJax may know them
      label.innerHTML = `<input type="radio" name="guess" required value="${i + 1}">`;
      label.append(words);
      choice.replaceChildren(label);
    });

    // The guess takes the form's place.
    function settle({ said, hit }) {
      choices.forEach((choice, i) => {
        const marks = [];
        if (i + 1 === Number(said)) marks.push("you said this");
        if (i + 1 === Number(right)) marks.push("this came true");
        choice.replaceChildren(...choice.querySelector("span").childNodes);
        if (marks.length) choice.insertAdjacentHTML("beforeend", ` <strong>← ${marks.join(", and ")}</strong>`);
      });
      list ? form.replaceWith(list) : form.remove();
      const words = list ? [] : [`You said: ${said}.`];
      if (!list && right) words.push(`It came out as ${right}.`);
      result.textContent = [...words, VERDICT.get(hit) ?? "Compare it with what came out."].join(" ");
    }

    const numeric = !list && right !== undefined;
    input?.addEventListener("input", () => {
      const wrong = numeric ? Number.isNaN(numberIn(input.value)) : !input.value.trim();
      input.setCustomValidity(wrong ? (numeric ? "A number, such as 0.5, 4096 or 1e-5" : "A guess") : "");
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const said = new FormData(form).get("guess").trim();
      const number = numberIn(said);
      const hit = right === undefined ? null : list ? said === right : low <= number && number <= high;
      keep({ ...kept(), [key]: { said, hit } });
      settle({ said, hit });
      answer.open = true;
      answer.querySelector("summary").focus(); // what was opened comes next
    });
    // Who looks first has not predicted.
    answer.addEventListener("toggle", () => (fieldset.disabled = answer.open));

    const before = kept()[key];
    if (before?.said) {
      settle(before);
      answer.open = true;
    }
  }

  function show(tally) {
    const guesses = Object.values(kept()).filter((guess) => guess?.said);
    const scored = guesses.filter(({ hit }) => typeof hit === "boolean");
    const true_ = scored.filter(({ hit }) => hit).length;
    tally.hidden = guesses.length === 0;
    if (tally.hidden) return;
    const made = `You have made ${guesses.length} prediction${guesses.length === 1 ? "" : "s"}`;
    const of = scored.length === guesses.length ? "" : ` of the ${scored.length} that have one answer`;
    tally.innerHTML = `<p role="status" tabindex="-1">${made}${scored.length ? `; ${true_}${of} came true` : ""}.</p>
      <button type="button">Forget them</button>`;
    const [text, button] = tally.children;
    button.addEventListener("click", () => {
      keep({});
      button.remove();
      text.textContent = "Your predictions are forgotten.";
      text.focus();
    });
  }

  // A link may lead into an answer. (The browser's own search in the page opens a <details> by itself.)
  function openWhatIsLinked() {
    const target = document.querySelector(":target");
    const closed = target?.closest(".prediction-answer:not([open])");
    if (!closed) return;
    closed.open = true;
    target.scrollIntoView();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".prediction").forEach(offer);
    document.querySelectorAll(".prediction-tally").forEach(show);
  });
  for (const event of ["load", "hashchange"]) window.addEventListener(event, openWhatIsLinked);
})();

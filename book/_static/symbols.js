// Over a symbol of a formula, with the mouse or a tap: what it means, from the page on notation.
// BOOK_SYMBOLS has texts by keys, the characters of a symbol in order of their codes: of the book under "",
// and by chapters what a letter means there instead. A deeper page shares its chapter's name.
"use strict";

(() => {
  const chapter = location.pathname.split("/").pop().replace(".html", "");
  const meanings = { ...BOOK_SYMBOLS[""], ...BOOK_SYMBOLS[chapter] };
  const SYMBOLS = '[data-mml-node="mi"], [data-mml-node="msub"], [data-mml-node="msup"], [data-mml-node="msubsup"], [data-mml-node="mover"]';

  // MathJax draws 𝛾 with the code of an italic letter; Unicode knows that it is a γ.
  function key(node) {
    const glyphs = [...node.querySelectorAll("[data-c]")].map((glyph) => (
      String.fromCodePoint(parseInt(glyph.dataset.c, 16)).normalize("NFKD").replace("ϵ", "ε").replace("ϕ", "φ")));
    return glyphs.map((glyph) => (/[\^ˆ]/.test(glyph) ? "\u0302" : glyph)).sort().join("");
  }

  // The meaning of the largest symbol around a glyph: of σ² before that of σ.
  function meaning(glyph) {
    let found;
    for (let node = glyph.closest?.(SYMBOLS); node; node = node.parentElement?.closest(SYMBOLS)) {
      found = meanings[key(node)] ?? found;
    }
    return found;
  }

  const tip = Object.assign(document.createElement("div"), { className: "symbol-tip", hidden: true });
  tip.setAttribute("role", "tooltip");

  function show(event) {
    const text = event.target.closest?.("mjx-container") && meaning(event.target);
    if (!text) return hide(event);
    tip.textContent = text;
    tip.hidden = false;
    const { left, bottom } = event.target.getBoundingClientRect();
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(left, room)) + window.scrollX}px`;
    tip.style.top = `${bottom + 4 + window.scrollY}px`;
  }

  function hide(event) {
    if (!tip.contains(event?.target)) tip.hidden = true;
  }

  document.body.append(tip);
  document.addEventListener("mouseover", show);
  document.addEventListener("click", show);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
})();

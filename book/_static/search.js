// The search, with headings and claims in front: Sphinx counts whether a page has a word, not where.
// The index holds all headings; BOOK_CLAIMS, which the page embeds, the claims as [page, id, sentence].
"use strict";

(() => {
  const GREEK = { ε: "eps", γ: "gamma", β: "beta", μ: "mean", σ: "sigma", η: "rate", λ: "lambda", α: "momentum" };
  const SHOWN = 6; // headings and claims that come first
  const ENOUGH = 0.6; // the share of a query that one of them must hold, by the weight of its words

  const stemmer = new Stemmer();
  const stems = (text) => {
    const latin = text.toLowerCase().replace(/[εγβμσηλα]/g, (letter) => ` ${GREEK[letter]} `);
    const words = splitQuery(latin).filter((word) => !stopwords.includes(word) && !/^\d+$/.test(word));
    return new Set(words.map((word) => stemmer.stemWord(word)));
  };
  const escaped = (text) => {
    const span = document.createElement("span");
    span.textContent = text.replace(/[`$]/g, "");
    return span.innerHTML;
  };

  // Everything that a query may meet, each as {page, anchor, title, words}.
  function entries({ docnames, titles, alltitles }) {
    const own = Object.entries(alltitles).filter(([title]) => !title.startsWith("Solution to"));
    const headings = own.flatMap(([title, places]) => places.map(([page, id]) => (
      { page, anchor: id ? `#${id}` : "", text: title, heading: true })));
    const claims = BOOK_CLAIMS.map(([name, id, text]) => (
      { page: docnames.indexOf(name), anchor: `#claim-${id}`, text, heading: false }));
    return [...headings, ...claims].filter(({ page }) => page >= 0).map((entry) => ({
      ...entry,
      words: stems(entry.text),
      title: entry.heading
        ? (titles[entry.page] === entry.text ? escaped(entry.text) : `${titles[entry.page]} > ${escaped(entry.text)}`)
        : `${titles[entry.page]} > Claim: ${escaped(entry.text)}`,
    }));
  }

  // How much of the query each entry holds, 0 to 1; rare words weigh more.
  function weigh(all, query) {
    const weight = (word) => Math.log(1 + all.length / (1 + all.filter(({ words }) => words.has(word)).length));
    const weights = [...stems(query)].map((word) => [word, weight(word)]);
    const total = weights.reduce((sum, [, value]) => sum + value, 0) || 1;
    for (const entry of all) {
      const held = weights.filter(([word]) => entry.words.has(word));
      entry.share = held.reduce((sum, [, value]) => sum + value, 0) / total;
      // Among equals a heading comes before a claim, and the shorter one first.
      entry.rank = entry.share + (entry.heading ? 0.1 : 0) + (0.2 * held.length) / (entry.words.size || 1);
    }
  }

  const original = Search._performSearch;
  Search._performSearch = (query, ...more) => {
    const index = Search._index;
    const all = entries(index);
    weigh(all, query);
    const best = all.filter(({ share }) => share >= ENOUGH).sort((a, b) => b.rank - a.rank).slice(0, SHOWN);
    const first = best.map(({ page, anchor, title, rank }) => (
      [index.docnames[page], title, anchor, null, 100 + rank, index.filenames[page]]));
    const seen = new Set(first.map(([page, , anchor]) => page + anchor));
    const share = (name) => Math.max(0, ...all.filter(({ page }) => index.docnames[page] === name).map((e) => e.share));
    const rest = original(query, ...more).filter(([page, , anchor]) => !seen.has(page + anchor));
    for (const result of rest) result[4] += 10 * share(result[0]);
    // Sphinx shows the last one first.
    return [...rest.sort((a, b) => a[4] - b[4]), ...first.reverse()];
  };
})();

// Where does a token look? The weights of one head of one layer, for the query that is chosen.
// data: pieces (T), weights (layers, T, H, T): of each layer, query, head and key; head and query:
// those that are shown first.
"use strict";

// Where a query's largest weight lies.
function placeOf(key, query, pieces) {
  const near = { 0: "at itself", 1: "at the next token", [-1]: "at the token before" };
  const ends = { 0: `at ${pieces[0]}`, [pieces.length - 1]: `at ${pieces.at(-1)}` };
  return near[key - query] ?? ends[key] ?? "somewhere else";
}

// The place at which most queries of a head look most: [place, how many].
function habitOf(rows, pieces) {
  const counts = new Map();
  rows.forEach((row, query) => {
    const place = placeOf(largest(row), query, pieces);
    counts.set(place, (counts.get(place) ?? 0) + 1);
  });
  return [...counts].reduce((most, each) => (each[1] > most[1] ? each : most));
}

widget("attention", "Where does a token look?",
  "Choose a layer, a head and a token. The bars are the weights of its query.",
  (box, { pieces, weights, head: firstHead, query: firstQuery }) => {
    const layer = slider("Layer", { max: weights.length - 1 }, update);
    const head = slider("Head", { max: weights[0][0].length - 1, value: firstHead }, update);
    const query = choice("Token", pieces, update, firstQuery);
    const bars = query.labels.map((label) => {
      const bar = el("span", { class: "bar" }), number = el("span", { class: "number" });
      label.append(el("span", { class: "track" }, bar), number);
      return { bar, number };
    });
    const said = sentences();
    query.box.classList.add("rows");
    box.append(el("div", { class: "controls" }, layer.box, head.box), query.box, said);

    function update() {
      const rows = weights[layer.value].map((each) => each[head.value]);         // (T, T)
      const row = rows[query.value], most = largest(row);
      row.forEach((weight, key) => {
        bars[key].bar.style.width = `${100 * weight}%`;
        bars[key].number.textContent = fixed(weight);
      });
      const [place, count] = habitOf(rows, pieces);
      said.textContent = `“${pieces[query.value]}” looks most at “${pieces[most]}”, with ` +
        `${fixed(row[most])}. In this head, ${count} of ${pieces.length} tokens look most ` +
        `${place}.`;
    }
    update();
  });

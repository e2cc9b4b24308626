// Padding and pooling: which column does each way of pooling read, and what does it give?
// data: row (T, D): the hidden states of one text, one for each token; those of padding are zeros.
"use strict";

// The row with padding: [{ mask, state }], a column for each position.
function padded(row, amount, side) {
  const left = [0, amount, Math.ceil(amount / 2)][side];
  const empty = { mask: 0, state: row[0].map(() => 0) };
  return [...Array(left).fill(empty), ...row.map((state) => ({ mask: 1, state })),
    ...Array(amount - left).fill(empty)];
}

// Each way's name, the column that it reads (null: all of them), and what it gives.
function waysOf(columns) {
  const states = columns.map((column) => column.state);
  const tokens = sum(columns.map((column) => column.mask));
  const mean = (count) => states[0].map((_, d) => sum(states.map((state) => state[d])) / count);
  const picks = [["hidden[:, -1]", columns.length - 1], ["hidden[:, mask.sum() - 1]", tokens - 1],
    ["the last with mask 1", columns.findLastIndex((column) => column.mask === 1)]];
  return [...picks.map(([name, column], at) =>
    ({ name: `${"ABC"[at]} ${name}`, column, gives: states[column] })),
    { name: "mean over all columns", column: null, gives: mean(columns.length) },
    { name: "mean over tokens", column: null, gives: mean(tokens) }];
}

widget("padding", "What does each way of pooling read?",
  "Add padding, on either side. A, B and C mark the column that each way reads.",
  (box, { row }) => {
    const amount = slider("Columns of padding", { max: 6, value: 2 }, update);
    const side = choice("They stand", ["on the right", "on the left", "on both sides"], update);
    const grid = el("table", { class: "grid" });
    const found = table("What each way gives", ["way", "gives", ""]);
    const said = sentences();
    box.append(el("div", { class: "controls" }, amount.box, side.box), grid, found.box, said);

    function update() {
      const columns = padded(row, amount.value, side.value), ways = waysOf(columns);
      const line = (name, cells) => el("tr", {}, el("th", { scope: "row" }, name), ...cells);
      const cells = (text) => columns.map((column, at) =>
        el("td", column.mask ? {} : { class: "pad" }, String(text(column, at))));
      grid.replaceChildren(line("column", cells((_, at) => at)),
        line("mask", cells((column) => column.mask)),
        ...row[0].map((_, d) => line(`state ${d}`, cells((column) => column.state[d]))),
        ...ways.filter((way) => way.column !== null).map((way) => line("read by",
          cells((_, at) => (at === way.column ? way.name[0] : "")))));
      const truth = { pick: ways[2].gives, mean: ways[4].gives };
      const rows = ways.map((way) => {
        const wanted = way.column === null ? truth.mean : truth.pick;
        const right = way.gives.every((value, d) => Math.abs(value - wanted[d]) < 1e-9);
        const gives = way.gives.map((value) => Number(fixed(value))).join(", ");
        return [way.name, `[${gives}]`, right ? "right" : "wrong"];
      });
      found.fill(rows);
      const wrong = ways.filter((_, number) => rows[number][2] === "wrong");
      said.textContent = `${columns.length} columns, ${row.length} tokens. ` + (wrong.length
        ? `Wrong now: ${wrong.map((way) => way.name).join("; ")}.` : "All five are right now.");
    }
    update();
  });

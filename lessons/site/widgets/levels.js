// Four bits: 16 levels between -absmax and absmax. Those of NF4 lie dense where weights are many.
// data: nf4, uniform (16 each, ascending, from -1 to 1); block: the weights of one block.
"use strict";

// The number of the nearest level; of two, of the lower one.
function nearest(x, levels) {
  return levels.reduce((best, level, at) =>
    (Math.abs(level - x) < Math.abs(levels[best] - x) ? at : best), 0);
}

// A block in four bits and back: divided by absmax, rounded to a level, multiplied by absmax.
function rounded(block, levels, absmax) {
  return block.map((x) => levels[nearest(x / absmax, levels)] * absmax);
}

// Two rows of levels, above and below a line from -absmax to absmax with the block's weights. From
// the value, a line goes to its level in each row.
function scale(books, block, value, absmax) {
  const at = (x) => 170 + 160 * Math.max(-1, Math.min(1, x / absmax));
  const line = (kind, x1, y1, x2, y2) => shape("line", { class: kind, x1, y1, x2, y2 });
  const rows = books.flatMap(([, levels], number) => {
    const [far, near] = [[8, 40], [96, 64]][number];
    const chosen = at(levels[nearest(value / absmax, levels)] * absmax);
    return [...levels.map((level) => line("level", at(level * absmax), far, at(level * absmax),
      near)), line("gap", at(value), 52, chosen, near), line("chosen", chosen, far, chosen, near)];
  });
  const drawing = shape("svg", { viewBox: "0 0 340 104", class: "chart wide-chart",
    "aria-hidden": "true" }, line("axis", 10, 52, 330, 52),
  ...block.map((x) => line("weight", at(x), 47, at(x), 57)), ...rows,
  shape("circle", { cx: at(value), cy: 52, r: 4 }));
  return el("figure", {}, books[0][0], drawing, books[1][0]);
}

widget("levels", "Which level is the nearest?",
  "Move the weight, then make the block's largest weight larger: all levels move apart with it.",
  (box, { nf4, uniform, block }) => {
    const own = Math.max(...block.map(Math.abs)), outlier = largest(block.map(Math.abs));
    const text = (x) => fixed(x, 4);
    const share = slider("Weight", { min: -1, max: 1, step: 0.01, value: 0.13,
      text: (part) => text(part * own) }, update);
    const factor = slider("Largest weight (absmax)", { min: 1, max: 10, step: 0.1,
      text: (times) => text(times * own) }, update);
    const figure = el("div"), said = sentences();
    const found = table("Both roundings", ["levels", "code", "becomes", "error", "mean error"]);
    box.append(el("div", { class: "controls" }, share.box, factor.box), figure, found.box, said);

    function update() {
      const absmax = own * factor.value, value = share.value * own;
      const weights = block.map((x, at) => (at === outlier ? Math.sign(x) * absmax : x));
      const books = [["NF4", nf4], ["uniform", uniform]];
      const errors = books.map(([, levels]) => sum(rounded(weights, levels, absmax)
        .map((x, at) => Math.abs(x - weights[at]))) / weights.length);
      figure.replaceChildren(scale(books, weights, value, absmax));
      found.fill(books.map(([name, levels], at) => {
        const code = nearest(value / absmax, levels), back = levels[code] * absmax;
        return [name, String(code), text(back), text(Math.abs(back - value)), text(errors[at])];
      }));
      said.textContent = `The mean error is that of all ${block.length} weights of the block: ` +
        `with NF4 ${fixed(errors[0] / errors[1])} times as large as with uniform levels.`;
    }
    update();
  });

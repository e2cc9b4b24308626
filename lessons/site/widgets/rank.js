// A matrix of low rank: how near does it come, and how many numbers does it need?
// data: matrix (rows, columns), which is shown; sizes: lists of singular values of larger matrices,
// all of one shape [rows, columns], and names: theirs.
"use strict";

// A matrix as a sum of products of a column and a row, the largest first (its SVD, by Jacobi's
// method): its columns are turned in pairs, and `rows` with them, until each two are at right
// angles. Then matrix = sum over k of (columns[k] times rows[k]).
function productsOf(matrix) {
  const columns = matrix[0].map((_, c) => matrix.map((row) => row[c]));
  const rows = columns.map((_, c) => columns.map((__, d) => Number(c === d)));
  const dot = (a, b) => sum(a.map((x, i) => x * b[i]));
  for (let sweep = 0; sweep < 30; sweep += 1) {
    for (let p = 0; p < columns.length; p += 1) {
      for (let q = p + 1; q < columns.length; q += 1) {
        const [a, b] = [columns[p], columns[q]], both = dot(a, b);
        const angle = Math.atan2(2 * both, dot(a, a) - dot(b, b)) / 2;
        for (const pairs of [columns, rows]) turn(pairs, p, q, Math.cos(angle), Math.sin(angle));
      }
    }
  }
  const products = columns.map((column, k) =>
    ({ column, row: rows[k], size: Math.sqrt(dot(column, column)) }));
  return products.sort((one, other) => other.size - one.size);
}

function turn(pairs, p, q, c, s) {
  const [a, b] = [pairs[p], pairs[q]];
  pairs[p] = a.map((x, i) => c * x + s * b[i]);
  pairs[q] = a.map((x, i) => c * b[i] - s * x);
}

// The length of what a rank leaves out, as a share of the length of the matrix (Frobenius norm).
function missed(sizes, rank) {
  const length = (numbers) => Math.sqrt(sum(numbers.map((size) => size * size)));
  return length(sizes.slice(rank)) / length(sizes);
}

// A picture of a matrix: strong colours are large numbers, of the one sign or the other. From `top`
// on they are as strong as they get.
function pictureOf(name, matrix, top) {
  const cells = matrix.flatMap((row, y) => row.map((value, x) => shape("rect", { x, y, width: 1,
    height: 1, class: value < 0 ? "below" : "above",
    "fill-opacity": Math.min(1, Math.abs(value) / top).toFixed(3) })));
  return el("figure", {}, shape("svg", { viewBox: `0 0 ${matrix[0].length} ${matrix.length}`,
    class: "cells", "aria-hidden": "true" }, ...cells), el("figcaption", {}, name));
}

widget("rank", "How much does a low rank keep?",
  "Move the rank r: the sum of r products of a column and a row comes as near as it can.",
  (box, { matrix, sizes, names, shape: sides }) => {
    const products = productsOf(matrix), own = [matrix.length, matrix[0].length];
    const top = 2 * Math.sqrt(sum(matrix.flat().map((x) => x * x)) / (own[0] * own[1]));
    const rank = slider("Rank", { max: Math.min(...own), value: 1 }, update);
    const pictures = el("div", { class: "pictures" }), said = sentences();
    const found = table("Numbers and error", ["matrix", "numbers", "of", "missed"]);
    box.append(rank.box, pictures, found.box, said);

    function update() {
      const r = rank.value, whole = (number) => number.toLocaleString("en");
      const near = matrix.map((line, y) => line.map((_, x) =>
        sum(products.slice(0, r).map(({ column, row }) => column[y] * row[x]))));
      const rest = matrix.map((line, y) => line.map((value, x) => value - near[y][x]));
      pictures.replaceChildren(pictureOf("the matrix", matrix, top),
        pictureOf(`rank ${r}`, near, top), pictureOf("the rest", rest, top));
      const shown = [["the one shown", products.map((each) => each.size), own],
        ...names.map((name, at) => [name, sizes[at], sides])];
      found.fill(shown.map(([name, values, [rows, columns]]) => [name, whole(r * (rows + columns)),
        whole(rows * columns), `${fixed(100 * missed(values, r), 1)}%`]));
      said.textContent = `Rank ${r} needs ${r} × (${own.join(" + ")}) = ${whole(r * sum(own))} ` +
        `numbers for the ${whole(own[0] * own[1])} shown, and ${r} × (${sides.join(" + ")}) = ` +
        `${whole(r * sum(sides))} for ${whole(sides[0] * sides[1])}.`;
    }
    update();
  });

// A temperature divides all logits: what becomes of probabilities, of the reliability diagram and
// of the calibration error? As minillmclf/training/metrics.py computes them.
// data: labels (C); logits (N, C), right (N): the right class of each message; texts: of the first
// messages; fitted: the temperature that is best on the dev messages.
"use strict";
const BINS = 15, LEAST = 1e-15;

function softmax(logits, temperature) {
  const top = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp((logit - top) / temperature));
  return powers.map((power) => power / sum(powers));
}

// Accuracy, log loss, ECE, and the bins: {count, sure, hits}, sums over the messages of a bin.
function measure(logits, right, temperature) {
  const bins = Array.from({ length: BINS }, () => ({ count: 0, sure: 0, hits: 0 }));
  let loss = 0;
  logits.forEach((row, n) => {
    const p = softmax(row, temperature), answer = largest(p);
    const bin = bins[Math.min(Math.floor(p[answer] * BINS), BINS - 1)];
    bin.count += 1;
    bin.sure += p[answer];
    bin.hits += answer === right[n];
    loss -= Math.log(Math.min(1, Math.max(LEAST, p[right[n]])));
  });
  const N = logits.length;
  return { bins, accuracy: sum(bins.map((bin) => bin.hits)) / N, loss: loss / N,
    ece: sum(bins.map((bin) => Math.abs(bin.sure - bin.hits))) / N };
}

// The reliability diagram: a circle for each bin, as large as its number of messages.
function diagram(bins, N) {
  const place = (x, y) => [30 + 200 * x, 210 - 200 * y];
  const line = (kind, from, to) => shape("line", { class: kind, x1: place(...from)[0],
    y1: place(...from)[1], x2: place(...to)[0], y2: place(...to)[1] });
  const word = (x, y, text, anchor) => shape("text", { x, y, "text-anchor": anchor }, text);
  const marks = bins.filter((bin) => bin.count).flatMap(({ count, sure, hits }) => {
    const [x, y] = place(sure / count, hits / count);
    return [line("gap", [sure / count, sure / count], [sure / count, hits / count]),
      shape("circle", { cx: x, cy: y, r: 2 + 30 * Math.sqrt(count / N) / 2 })];
  });
  return shape("svg", { viewBox: "0 0 244 244", class: "chart", "aria-hidden": "true" },
    line("axis", [0, 0], [1, 0]), line("axis", [0, 0], [0, 1]), line("even", [0, 0], [1, 1]),
    ...marks, word(24, 214, "0", "end"), word(24, 15, "1", "end"), word(30, 226, "0", "middle"),
    word(230, 226, "1", "middle"), word(130, 240, "probability of the answer", "middle"),
    word(36, 15, "share that is right", "start"));
}

widget("temperature", "How sure should the model be?",
  "Divide all logits by a temperature. A circle stands for the messages of one range of " +
  "probability; the calibration error is the mean length of the lines.",
  (box, { labels, logits, right, texts, fitted }) => {
    const heat = slider("Temperature", { min: -0.5, max: 1.5, step: 0.02, value: 0,
      text: (power) => fixed(10 ** power) }, () => { exact = null; update(); });
    const button = el("button", { type: "button" }, `The best on dev: ${fixed(fitted)}`);
    const message = slider("Message", { max: texts.length - 1 }, update);
    const bars = labels.map((label) => ({ bar: el("span", { class: "bar" }), label,
      number: el("span", { class: "number" }), name: el("span", {}, label) }));
    const text = el("p", { class: "text" }), said = sentences(), figure = el("div");
    let exact = null;                                       // the fitted one is not on the slider
    button.addEventListener("click", () => {
      heat.value = Math.log10(fitted);
      exact = fitted;
      update();
    });
    box.append(el("div", { class: "controls" }, heat.box, button), said,
      el("div", { class: "controls" }, figure, el("div", {}, message.box, text,
        el("div", { class: "rows" }, ...bars.flatMap(({ name, bar, number }) =>
          [name, el("span", { class: "track" }, bar), number])))));

    function update() {
      const temperature = exact ?? 10 ** heat.value;
      const found = measure(logits, right, temperature);
      const p = softmax(logits[message.value], temperature);
      text.textContent = `“${texts[message.value]}”`;
      bars.forEach(({ bar, number, name, label }, c) => {
        bar.style.width = `${100 * p[c]}%`;
        number.textContent = fixed(p[c]);
        name.textContent = c === right[message.value] ? `${label}, right` : label;
      });
      figure.replaceChildren(diagram(found.bins, logits.length));
      said.textContent = `${logits.length} messages at temperature ${fixed(temperature)}: ` +
        `accuracy ${fixed(found.accuracy)}, log loss ${fixed(found.loss)}, calibration error ` +
        `${fixed(found.ece)}.`;
    }
    update();
  });

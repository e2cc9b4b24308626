// A tree of label texts: the probabilities on the way down are multiplied.
// data: prompts (B); edges (B, E): the log-probability of each edge; tokens (E): its token;
// paths (L lists of edges), texts (L); labels (C), classes (C lists of texts).
"use strict";

// A probability that may be very small: 0.31, 0.012, 2.1e-5.
function short(p) {
  return p >= 0.001 ? String(Number(p.toPrecision(2))) : p.toExponential(1);
}

// The edges that begin where an edge ends, or, for -1, where the prompt ends.
function edgesAfter(edge, paths) {
  const after = paths.map((path) => path[path.indexOf(edge) + 1] ?? -1)
    .filter((next, at) => next >= 0 && (edge < 0 || paths[at].includes(edge)));
  return [...new Set(after)];
}

// Each label text's probability (L), and each class's share of them (C).
function scoresOf(logs, paths, classes) {
  const texts = paths.map((path) => Math.exp(sum(path.map((edge) => logs[edge]))));
  const sums = classes.map((members) => sum(members.map((text) => texts[text])));
  return { texts, sums, shares: sums.map((each) => each / sum(sums)) };
}

widget("trie", "How probable is each label text?",
  "Go down the tree by its buttons. The probabilities on the way are multiplied.",
  (box, { prompts, edges, tokens, paths, texts, labels, classes }) => {
    const prompt = choice("Text", prompts, update);
    const tree = el("div", { class: "tree" }), said = sentences();
    const found = table("Label texts and classes", ["label", "label texts", "sum", "share"]);
    box.append(prompt.box, tree, said, found.box);
    let way = [];                                            // the edges that are gone down

    // The edges that begin at one place, as buttons, and what is left for all other tokens.
    function level(edge, depth) {
      const logs = edges[prompt.value], next = edgesAfter(edge, paths);
      const left = 1 - sum(next.map((each) => Math.exp(logs[each])));
      const buttons = next.map((each) => {
        const button = el("button", { type: "button", "aria-pressed": way[depth] === each },
          el("b", {}, tokens[each]), ` ${short(Math.exp(logs[each]))}`);
        button.addEventListener("click", () => {
          way = [...way.slice(0, depth), each];
          update();
          tree.children[depth].querySelector("[aria-pressed=true]").focus();
        });
        return button;
      });
      return el("div", { class: "level", role: "group",
        "aria-label": edge < 0 ? "after the prompt" : `after ${tokens[edge]}` },
      el("span", {}, edge < 0 ? "after the prompt" : `after “${tokens[edge]}”`), ...buttons,
      el("span", {}, `all other tokens ${left > 0.999 ? "more than 0.999" : short(left)}`));
    }

    function update() {
      const logs = edges[prompt.value];
      const { texts: each, sums, shares } = scoresOf(logs, paths, classes);
      tree.replaceChildren(level(-1, 0), ...way.map((edge, at) => level(edge, at + 1))
        .filter((_, at) => edgesAfter(way[at], paths).length));
      found.fill(labels.map((label, at) => [label,
        el("span", { class: "lines" },
          classes[at].map((text) => `${texts[text]} ${short(each[text])}`).join("\n")),
        short(sums[at]), fixed(shares[at], 3)]));
      said.textContent = sentence(logs);
    }

    function sentence(logs) {
      if (!way.length) return "You are at the end of the prompt.";
      const factors = way.map((edge) => short(Math.exp(logs[edge])));
      if (way.length > 1) factors.push(short(Math.exp(sum(way.map((edge) => logs[edge])))));
      const product = [factors.slice(0, way.length).join(" × "), ...factors.slice(way.length)];
      const end = paths.findIndex((path) => path.join() === way.join());
      return `${way.map((edge) => tokens[edge]).join(" ")}: ${product.join(" = ")}. ` +
        (end < 0 ? "Go on." : `This is the label text “${texts[end]}”.`);
    }
    update();
  });

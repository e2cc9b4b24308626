// What the widgets share. A widget is a <section> of the page with its numbers inside, as JSON that
// a cell of the lesson gave. It is hidden until its script has built it, so that a page without
// JavaScript shows what stands in the text, and nothing else. Numbers and texts are put in as text,
// never as HTML.
"use strict";

// Build each widget of a kind: build(box, data) fills its box.
function widget(kind, title, how, build) {
  for (const section of document.querySelectorAll(`section[data-widget="${kind}"]`)) {
    const data = JSON.parse(section.querySelector("script").textContent);
    const box = el("div", { class: "parts" });
    section.setAttribute("aria-label", `Try it: ${title}`);
    section.append(el("p", { class: "tag" }, el("b", {}, title), ` ${how}`), box);
    section.hidden = false;                       // so that what is built can be measured
    build(box, data);
  }
}

// An element with attributes and children: el("p", { class: "said" }, "two ", el("b", {}, "words"))
function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

// The same for an element of a drawing.
function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A slider with its name and its value above it. text(number) is what is shown of the value.
function slider(name, { min = 0, max, step = 1, value = min, text = String }, update) {
  const input = el("input", { type: "range", min, max, step, value });
  const shown = el("output");
  const show = () => {
    shown.textContent = text(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => { show(); update(); });
  show();
  return {
    box: el("label", { class: "slider" }, el("span", {}, `${name}: `, shown), input),
    get value() { return Number(input.value); },
    set value(number) { input.value = number; show(); },
    show,
  };
}

let groups = 0;

// One of several names, as radio buttons: the arrow keys move among them. Each name has a label, in
// the order of `names`, to which a widget may add.
function choice(legend, names, update, value = 0) {
  const group = `choice-${groups += 1}`;
  const inputs = names.map((_, at) => el("input", { type: "radio", name: group, value: at }));
  const labels = inputs.map((input, at) => el("label", {}, input, el("span", {}, names[at])));
  inputs[value].checked = true;
  for (const input of inputs) input.addEventListener("change", update);
  return {
    box: el("fieldset", { class: "choice" }, el("legend", {}, legend), ...labels),
    labels,
    get value() { return inputs.findIndex((input) => input.checked); },
  };
}

// Sentences that say what is seen; a screen reader reads them when they change.
function sentences() {
  return el("p", { class: "said", role: "status" });
}

// A table with a caption for screen readers. fill(rows) puts new cells below its heads.
function table(caption, heads) {
  const body = el("tbody");
  const row = el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)));
  return {
    box: el("table", {}, el("caption", { class: "unseen" }, caption), el("thead", {}, row), body),
    fill(rows) {
      body.replaceChildren(...rows.map((cells) =>
        el("tr", {}, ...cells.map((cell) => el("td", {}, cell)))));
    },
  };
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const largest = (numbers) => numbers.indexOf(Math.max(...numbers));       // its place

// A number with so many digits behind the point, and never "-0.00".
function fixed(number, digits = 2) {
  const text = number.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

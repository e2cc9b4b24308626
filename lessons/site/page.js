// The switch between light and dark, and questions that are answered before the output opens.
// Without this file all pages can be read: they follow the system, and outputs open by a click.
"use strict";
const store = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(key, value); } catch { /* not kept, then */ } },
};
const root = document.documentElement;
const saved = store.get("scheme");
if (saved) root.dataset.scheme = saved;               // before anything is painted

function setUpSwitch() {
  const button = document.getElementById("switch");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.scheme ?? (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    root.dataset.scheme = dark() ? "light" : "dark";
    store.set("scheme", root.dataset.scheme);
    label();
  });
  system.addEventListener("change", label);
  button.hidden = false;
  label();
}

function setUpQuestion(form, number) {
  const key = `guess ${location.pathname} ${number}`;
  const outputs = [...document.querySelectorAll("details.out")];
  const after = Node.DOCUMENT_POSITION_FOLLOWING;
  const output = outputs.find((each) => form.compareDocumentPosition(each) & after);
  const { answer, tolerance } = form.dataset;

  function compare(text) {
    const guess = text.trim() === "" ? NaN : Number(text.trim().replace(",", "."));
    const said = form.querySelector("output");
    if (Number.isNaN(guess)) {
      said.textContent = "Type a number.";
      return;
    }
    const near = Math.abs(guess - Number(answer)) <= Number(tolerance) + 1e-12;
    said.textContent = near ? `Right: it is ${answer}.` : `You said ${guess}; it is ${answer}.`;
    output.open = true;
    store.set(key, text);
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    compare(form.elements.guess.value);
  });
  const before = store.get(key);
  if (before !== null) {
    form.elements.guess.value = before;
    compare(before);
  }
}

// What is wider than its box can be reached with Tab and moved with the arrow keys.
function reachWide() {
  for (const box of document.querySelectorAll("pre, .table, .formula, .diagram > div, .drawing")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

document.addEventListener("DOMContentLoaded", () => {
  setUpSwitch();
  document.querySelectorAll("form.predict").forEach(setUpQuestion);
  reachWide();
  addEventListener("resize", reachWide);
  document.addEventListener("toggle", reachWide, true);
  document.addEventListener("keydown", (event) => {
    const menu = document.querySelector(".menu");
    if (event.key === "Escape" && menu.open) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
});

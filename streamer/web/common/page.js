/** Functions that the pages of the HTTP port share. */

export const byId = (id) => document.getElementById(id);

export const grouped = new Intl.NumberFormat("en-US");

/** Make an element; its text is never read as HTML. */
export function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Write a number's digits in groups of three; the digits stay those of the producer. */
export function inGroups(text) {
  const [, sign, whole, rest] = /^(-?)(\d+)(.*)$/.exec(text) ?? [];
  return whole === undefined ? text : sign + whole.replace(/\B(?=(\d{3})+$)/g, ",") + rest;
}

/** The text of an element, which is written only if it changes. */
export class TextCell {
  #node = document.createTextNode("");

  constructor(cell, text = "") {
    this.#node.data = text;
    cell.append(this.#node);
  }

  show(text) {
    if (this.#node.data !== text) this.#node.data = text;
  }
}

/** Let a button switch between light and dark; call `changed` now, and after each change. */
export function addThemeSwitch(button, changed = () => {}) {
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  prefersDark.addEventListener("change", changed);
  button.addEventListener("click", () => {
    const { dataset } = document.documentElement;
    const isDark = dataset.theme ? dataset.theme === "dark" : prefersDark.matches;
    dataset.theme = isDark ? "light" : "dark";
    changed();
  });
  changed();
}

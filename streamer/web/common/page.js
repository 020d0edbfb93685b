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

/** Let a button switch between light and dark, and call `changed` afterwards. */
export function addThemeSwitch(button, changed = () => {}) {
  button.addEventListener("click", () => {
    const { dataset } = document.documentElement;
    const isDark = dataset.theme
      ? dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    dataset.theme = isDark ? "light" : "dark";
    changed();
  });
}

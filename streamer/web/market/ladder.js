/** The order book of one stock: asks above, the best prices in the middle, bids below. */

import { element, inGroups, TextCell } from "./page.js";

export class Ladder {
  #rows = [];
  #levels;

  /** Fill the body of a table with rows for so many levels of each side. */
  constructor(body, levels) {
    this.#levels = levels;
    for (let at = 0; at < 2 * levels; at++) {
      const row = element("tr");
      const price = element("td", `middle ${at < levels ? "rose" : "fell"}`);
      const [bid, ask] = [new Quantity("number"), new Quantity("ask")];
      row.append(bid.cell, price, ask.cell);
      body.append(row);
      this.#rows.push({ bid, price: new TextCell(price), ask });
    }
  }

  /** Show a message with a book; without one, nothing. */
  draw(book) {
    const asks = (book?.asks ?? []).slice(0, this.#levels);
    const bids = (book?.bids ?? []).slice(0, this.#levels);
    const most = [...asks, ...bids].reduce((a, { quantity }) => Math.max(a, Number(quantity)), 0);
    this.#rows.forEach(({ bid, price, ask }, at) => {
      const isAsk = at < this.#levels;
      const level = isAsk ? asks[this.#levels - 1 - at] : bids[at - this.#levels];
      price.show(level ? inGroups(level.price) : "");
      bid.show(isAsk ? undefined : level, most);
      ask.show(isAsk ? level : undefined, most);
    });
  }
}

/** A quantity, and behind it a bar as long as its share of the largest one. */
class Quantity {
  #depth = element("div", "depth");
  #text;
  #scale = "";

  constructor(className) {
    this.cell = element("td", className);
    const text = element("span");
    this.#text = new TextCell(text);
    this.cell.append(this.#depth, text);
  }

  show(level, most) {
    this.#text.show(level ? inGroups(level.quantity) : "");
    const share = level && most > 0 ? Number(level.quantity) / most : 0;
    const scale = `scaleX(${share.toFixed(3)})`;
    if (scale === this.#scale) return;
    this.#scale = scale;
    this.#depth.style.transform = scale; // unlike a width, it changes no layout
  }
}

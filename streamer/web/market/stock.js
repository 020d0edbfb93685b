/** A row of the table of stocks, and what is known of its stock. */

import { Line } from "./line.js";
import { element, inGroups, TextCell } from "./page.js";

const POINTS = 240;
const FLASH_MS = 300;
const SPARK_MS = 250;

const NO_PRICE = "–";

/** Rows by their elements, to note which of them can be seen. */
const rows = new Map();
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) rows.get(target).isSeen = isIntersecting;
});

export class Stock {
  /** The last order book; null before the first, and behind a gap. */
  book = null;
  /** Counts the messages. */
  version = 0;
  isSeen = true;
  #message = null;
  #points = new Float64Array(POINTS);
  #count = 0;
  #direction = 0;
  /** What has changed since it was drawn. */
  #isPriced = false;
  #isLineChanged = false;
  #drawnAt = { flash: 0, line: 0 };
  #isFlashAgain = false;
  #cells = {};
  #line;

  constructor({ code, name, market, sector }) {
    this.name = name;
    this.words = `${name} ${code} ${sector} ${market}`.toLowerCase();
    this.row = element("tr");
    const head = element("th");
    head.scope = "row";
    this.button = element("button", "name");
    this.button.type = "button";
    this.button.title = name;
    this.button.append(element("span", "", name), element("small", "", `${code} · ${sector}`));
    head.append(this.button);
    this.row.append(head);
    for (const [column, width] of Object.entries({ price: "price", change: "", volume: "wide" })) {
      const cell = this.row.appendChild(element("td", `number ${width}`));
      this.#cells[column] = { cell, text: new TextCell(cell, NO_PRICE) };
    }
    const spark = element("canvas", "spark");
    spark.setAttribute("aria-hidden", "true");
    this.row.appendChild(element("td", "wide")).append(spark);
    this.#line = new Line(spark);
    rows.set(this.row, this);
    sight.observe(this.row);
  }

  /** Note a message; it is drawn later. */
  take(message) {
    this.version++;
    if (message.type === "gap") {
      this.book = null; // the newest one follows, if the server knows it
      return;
    }
    if (message.type === "orderbook_update") {
      this.book = message;
      return;
    }
    const price = Number(message.price);
    if (this.#message && this.#message.price !== message.price) {
      this.#direction = Math.sign(price - Number(this.#message.price));
    }
    this.#message = message;
    this.#points[this.#count++ % POINTS] = price;
    this.#isPriced = this.#isLineChanged = true;
  }

  /** The last prices, the oldest first. */
  series() {
    const kept = Math.min(this.#count, POINTS);
    return Array.from({ length: kept }, (_, at) => this.#points[(this.#count - kept + at) % POINTS]);
  }

  /** Draw what has changed, if somebody can see it. */
  draw(now) {
    if (!this.isSeen) return;
    if (this.#isPriced) this.#drawPrice(now);
    if (this.#isLineChanged && now - this.#drawnAt.line >= SPARK_MS) {
      this.#drawnAt.line = now;
      this.#isLineChanged = false;
      this.#line.draw(this.series());
    }
  }

  #drawPrice(now) {
    this.#isPriced = false;
    const { price, change, change_percent: percent, volume } = this.#message;
    const sign = Math.sign(Number(change));
    const { price: first, change: second, volume: third } = this.#cells;
    first.text.show(inGroups(price));
    const size = inGroups(change.replace("-", ""));
    second.text.show(`${["▼ ", "", "▲ "][sign + 1]}${size} (${percent} %)`);
    second.cell.className = `number ${["fell", "", "rose"][sign + 1]}`;
    third.text.show(inGroups(volume));
    if (this.#direction && now - this.#drawnAt.flash >= FLASH_MS) {
      this.#drawnAt.flash = now;
      // An animation begins again only under another name.
      this.#isFlashAgain = !this.#isFlashAgain;
      const name = this.#direction > 0 ? "flash-rose" : "flash-fell";
      first.cell.className = `number price ${name} ${this.#isFlashAgain ? "again" : ""}`;
      this.#direction = 0;
    }
  }
}

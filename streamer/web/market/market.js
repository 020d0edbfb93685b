/**
 * The page of `streamer demo`: a live market, and the account of its stream.
 *
 * Messages only change the state of a stock and mark it; what is marked is drawn once for each frame
 * of the screen, so that thousands of updates a second cost no more than the stocks that are shown.
 */

import { Streamer } from "../streamer.js";
import { addThemeSwitch, byId, element, grouped } from "./page.js";

const POINTS = 240;
const EVENTS_SHOWN = 60;
const STALL_MS = 6000;
const STALL_BYTES_PER_SECOND = 1000;
const UNLIMITED = 0;
const ACCOUNT_MS = 250;
const RATE_SECONDS = 2;

/** Write a number's digits in groups of three; the digits stay those of the producer. */
export function inGroups(text) {
  const [, sign, whole, rest] = /^(-?)(\d+)(.*)$/.exec(text) ?? [];
  return whole === undefined ? text : sign + whole.replace(/\B(?=(\d{3})+$)/g, ",") + rest;
}

/** A WebSocket that can be cut as a network cuts it: the page sees no close frame. */
class CuttableWebSocket extends WebSocket {
  static current = null;

  constructor(url, protocols) {
    super(url, protocols);
    CuttableWebSocket.current = this;
  }

  cut() {
    const { onclose } = this;
    this.onmessage = this.onclose = null;
    this.close();
    onclose?.({ code: 1006, reason: "cut by the button" });
  }
}

// What is shown

class Stock {
  constructor({ code, name, market, sector }) {
    Object.assign(this, { code, name, market, sector });
    this.words = `${name} ${code} ${sector} ${market}`.toLowerCase();
    this.price = null;
    this.points = new Float64Array(POINTS);
    this.count = 0;
    this.book = null;
    this.direction = 0;
    this.isChanged = false;
    this.#makeRow();
  }

  #makeRow() {
    this.row = element("tr");
    const head = element("th");
    head.scope = "row";
    this.button = element("button", "name", this.name);
    this.button.type = "button";
    this.button.append(element("small", "", `${this.code} · ${this.sector}`));
    head.append(this.button);
    this.cells = {
      price: element("td", "number price", "–"),
      change: element("td", "number", "–"),
      volume: element("td", "number wide", "–"),
    };
    const today = element("td", "wide");
    this.spark = element("canvas", "spark");
    this.spark.setAttribute("aria-hidden", "true");
    today.append(this.spark);
    this.row.append(head, ...Object.values(this.cells), today);
  }

  take(message) {
    if (message.type === "orderbook_update") {
      this.book = message;
    } else {
      const before = this.price;
      this.price = message.price;
      this.message = message;
      if (before !== null && before !== message.price) {
        this.direction = Math.sign(Number(message.price) - Number(before));
      }
      this.points[this.count++ % POINTS] = Number(message.price);
      this.isPriced = true;
    }
    this.isChanged = true;
  }

  /** The last prices, the oldest first. */
  series() {
    const kept = Math.min(this.count, POINTS);
    return Array.from({ length: kept }, (_, at) => this.points[(this.count - kept + at) % POINTS]);
  }

  draw() {
    this.isChanged = false;
    if (!this.isPriced) return;
    this.isPriced = false;
    const { price, change, change_percent: percent, volume } = this.message;
    const sign = Number(change);
    this.cells.price.textContent = inGroups(price);
    this.cells.change.textContent = `${sign > 0 ? "▲" : sign < 0 ? "▼" : ""} ${inGroups(change.replace("-", ""))} (${percent} %)`;
    this.cells.change.className = `number ${sign > 0 ? "rose" : sign < 0 ? "fell" : ""}`;
    this.cells.volume.textContent = inGroups(volume);
    if (this.direction) {
      const { price: cell } = this.cells;
      const name = this.direction > 0 ? "flash-rose" : "flash-fell";
      // The same animation begins again only under another name, or after a frame without it.
      const isRunning = cell.classList.contains(name) && cell.getAnimations().length > 0;
      if (isRunning) cell.getAnimations()[0].currentTime = 0;
      else cell.className = `number price ${name}`;
      this.direction = 0;
    }
    if (this.spark.offsetParent) drawLine(this.spark, this.series(), { isFilled: false });
  }
}

function drawLine(canvas, series, { isFilled }) {
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || series.length < 2) return;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const style = getComputedStyle(document.documentElement);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const low = Math.min(...series);
  const high = Math.max(...series);
  const margin = isFilled ? 18 : 3;
  const x = (at) => (at / (series.length - 1)) * width;
  const y = (value) => height - margin - ((value - low) / (high - low || 1)) * (height - 2 * margin);
  context.beginPath();
  series.forEach((value, at) => context.lineTo(x(at), y(value)));
  const color = style.getPropertyValue(series.at(-1) >= series[0] ? "--up" : "--down");
  context.strokeStyle = color;
  context.lineWidth = 1.5;
  context.stroke();
  if (!isFilled) return;
  context.lineTo(width, height);
  context.lineTo(0, height);
  context.globalAlpha = 0.1;
  context.fillStyle = color;
  context.fill();
  context.globalAlpha = 1;
  context.fillStyle = style.getPropertyValue("--quiet");
  context.font = "12px system-ui, sans-serif";
  context.fillText(grouped.format(high), 8, 14);
  context.fillText(grouped.format(low), 8, height - 5);
}

/** The order book of one stock: asks above, the best prices in the middle, bids below. */
class Ladder {
  #rows = [];

  constructor(body, levels) {
    for (let at = 0; at < 2 * levels; at++) {
      const row = element("tr");
      const cells = ["number", "middle", "ask"].map((name) => element("td", name));
      for (const cell of [cells[0], cells[2]]) cell.append(element("div", "depth"), element("span"));
      row.append(...cells);
      body.append(row);
      this.#rows.push(cells);
    }
    this.levels = levels;
  }

  draw(book) {
    const asks = (book?.asks ?? []).slice(0, this.levels);
    const bids = (book?.bids ?? []).slice(0, this.levels);
    const most = Math.max(1, ...[...asks, ...bids].map(({ quantity }) => Number(quantity)));
    this.#rows.forEach(([bid, price, ask], at) => {
      const isAsk = at < this.levels;
      const level = isAsk ? asks[this.levels - 1 - at] : bids[at - this.levels];
      price.textContent = level ? inGroups(level.price) : " ";
      price.className = `middle ${isAsk ? "rose" : "fell"}`;
      show(bid, isAsk ? null : level, most);
      show(ask, isAsk ? level : null, most);
    });
  }
}

function show(cell, level, most) {
  const [depth, text] = cell.children;
  text.textContent = level ? inGroups(level.quantity) : "";
  depth.style.width = level ? `${(Number(level.quantity) / most) * 100}%` : "0";
}

function note(text) {
  byId("note").textContent = text;
}

function addEvent(className, text, timestamp) {
  const item = element("li", className);
  const at = element("time", "", (timestamp ?? new Date().toISOString()).slice(11, 19));
  at.dateTime = timestamp ?? new Date().toISOString();
  item.append(at, text);
  const list = byId("events");
  list.prepend(item);
  while (list.children.length > EVENTS_SHOWN) list.lastChild.remove();
}

// The page

async function main() {
  const market = await (await fetch("market.json")).json();
  const url = `${market.encrypted ? "wss" : "ws"}://${location.hostname}:${market.port}${market.path}`;
  const streamer = new Streamer(url, {
    connect: false,
    numbers: "text",
    token: market.token ?? undefined,
    WebSocket: CuttableWebSocket,
    fallback: false,
  });
  const stocks = new Map(market.stocks.map((listed) => [listed.code, new Stock(listed)]));
  const phases = new Map();
  const ladder = new Ladder(byId("ladder"), market.levels);
  let selected = null;
  let connections = 0;
  let updates = 0;
  let before = { updates: 0, atMs: performance.now() };

  for (const stock of stocks.values()) {
    byId("rows").append(stock.row);
    stock.button.addEventListener("click", () => select(stock));
  }
  for (const name of market.markets) {
    const item = element("li", "", `${name} `);
    phases.set(name, item.appendChild(element("b", "", "–")));
    byId("phases").append(item);
  }

  function select(stock) {
    selected?.row.removeAttribute("aria-current");
    selected = stock;
    stock.row.setAttribute("aria-current", "true");
    byId("book-title").textContent = `Order book: ${stock.name}`;
    byId("chart").setAttribute("aria-label", `Prices of ${stock.name}`);
    const chart = byId("chart");
    chart.getContext("2d").clearRect(0, 0, chart.width, chart.height);
    stock.isChanged = true;
  }

  function search() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const stock of stocks.values()) {
      const matches = words.every((word) => stock.words.includes(word));
      stock.row.hidden = !matches;
      shown += matches;
    }
    byId("none").hidden = shown > 0;
  }

  function draw() {
    for (const stock of stocks.values()) {
      if (!stock.isChanged) continue;
      stock.draw();
      if (stock === selected) {
        drawLine(byId("chart"), stock.series(), { isFilled: true });
        ladder.draw(stock.book);
      }
    }
    requestAnimationFrame(draw);
  }

  function account() {
    const { received, merged, gaps, violations } = streamer.account();
    const now = performance.now();
    if (now - before.atMs >= RATE_SECONDS * 1000) {
      const rate = ((updates - before.updates) * 1000) / (now - before.atMs);
      byId("rate").textContent = grouped.format(Math.round(rate));
      before = { updates, atMs: now };
    }
    byId("received").textContent = grouped.format(received);
    byId("merged").textContent = grouped.format(merged);
    byId("gaps").textContent = grouped.format(Object.values(gaps).reduce((a, b) => a + b, 0));
    byId("connections").textContent = grouped.format(connections);
    byId("violations").textContent = grouped.format(violations);
    byId("violations").dataset.bad = String(violations > 0);
  }

  function receive(message) {
    updates++;
    if (message.type === "gap") {
      addEvent("gap", `gap in ${message.topic}: ${message.reason}`, message.timestamp);
    } else if (message.type === "market_status") {
      const phase = phases.get(message.market);
      if (phase) phase.textContent = message.status.replace("_", " ");
      if (!message.snapshot) {
        addEvent("", `${message.market}: ${message.status.replace("_", " ")}`, message.timestamp);
      }
    } else if (message.type === "alert") {
      addEvent("alert", `🔔 ${message.message}`, message.timestamp);
    } else if (message.type === "notification") {
      addEvent("alert", `${message.title}: ${message.message}`, message.timestamp);
    } else {
      stocks.get(message.stock_code)?.take(message);
    }
  }

  streamer.on("state", ({ state, reason, retryInMs }) => {
    byId("state").textContent = state;
    byId("state").dataset.state = state;
    if (state === "connected") {
      connections++;
      addEvent("", connections === 1 ? "connected" : "connected again");
      if (connections > 1) note("Connected again: what was missed came behind the positions named.");
    } else if (reason) {
      addEvent("", `${state}: ${reason}${retryInMs ? `, again in ${Math.round(retryInMs)} ms` : ""}`);
    }
  });
  streamer.on("error", (error) => note(error.message));
  byId("search").addEventListener("input", search);
  byId("cut").addEventListener("click", () => {
    note("The connection was cut without a close frame. The client comes back by itself.");
    CuttableWebSocket.current?.cut();
  });
  byId("stall").addEventListener("click", () => {
    byId("stall").disabled = true;
    note(`Only ${grouped.format(STALL_BYTES_PER_SECOND)} bytes a second for ${STALL_MS / 1000} s: see updates being merged, none lost in silence.`);
    streamer.setBandwidth(STALL_BYTES_PER_SECOND);
    setTimeout(() => {
      streamer.setBandwidth(UNLIMITED);
      byId("stall").disabled = false;
      note("Full speed again.");
    }, STALL_MS);
  });
  addThemeSwitch(byId("theme"), () => {
    for (const stock of stocks.values()) stock.isChanged = stock.isPriced = stock.count > 0;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== byId("search")) {
      event.preventDefault();
      byId("search").focus();
    }
  });

  if (stocks.size) select(stocks.values().next().value);
  ladder.draw(null);
  streamer.subscribe([...stocks.keys()].map((code) => `stock:${code}`), receive);
  streamer.subscribe(market.markets.map((name) => `market:${name}`), receive);
  if (market.token) streamer.subscribe("user", receive);
  streamer.connect();
  requestAnimationFrame(draw);
  setInterval(account, ACCOUNT_MS);
  globalThis.market = { streamer, stocks }; // for tests, and for the curious in the console
}

main().catch((error) => note(`This page could not start: ${error.message}`));

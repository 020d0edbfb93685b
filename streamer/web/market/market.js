/**
 * The page of `streamer demo`: a live market, and the account of its stream.
 *
 * Messages only change the state of a stock. Rows are drawn a few times a second, and only while
 * they can be seen, so that thousands of updates a second cost no more than what an eye can follow.
 */

import { Streamer } from "../streamer.js";
import { Ladder } from "./ladder.js";
import { Line, readColors } from "./line.js";
import { addThemeSwitch, byId, element, grouped } from "./page.js";
import { Stock } from "./stock.js";

const EVENTS_SHOWN = 60;
const STALL_MS = 6000;
const STALL_BYTES_PER_SECOND = 1000;
const UNLIMITED = 0;
const DRAW_MS = 100;
const ACCOUNT_MS = 250;
const RATE_SECONDS = 2;

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
  const chart = new Line(byId("chart"), { isFilled: true });
  let selected = null;
  let drawn = {}; // the stock beside the table, as it was drawn last
  let drawnAtMs = 0;
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
    drawn = {};
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

  function draw(now) {
    requestAnimationFrame(draw);
    if (now - drawnAtMs < DRAW_MS) return;
    drawnAtMs = now;
    for (const stock of stocks.values()) stock.draw(now);
    if (!selected || (drawn.stock === selected && drawn.version === selected.version)) return;
    drawn = { stock: selected, version: selected.version };
    chart.draw(selected.series());
    ladder.draw(selected.book);
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
      stocks.get(message.target)?.take(message);
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
  addThemeSwitch(byId("theme"), readColors);
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

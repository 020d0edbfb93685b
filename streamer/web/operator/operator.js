/**
 * The operator's page: readiness, figures, connections and topics of a server.
 *
 * It loads the pages of the HTTP port every few seconds. Names of topics, users and programs come
 * from clients, so all text is put in as text. The API key is kept for this tab alone.
 */

import { addThemeSwitch, byId, element, grouped } from "./page.js";
import { inMs, inWords, Plots } from "./plots.js";

const REFRESH_MS = 5000;
const TIMEOUT_MS = 15_000;
const CONNECTIONS_PER_PAGE = 50;
const TOPICS_PER_REQUEST = 100;
/** Beyond so many, the list of connections is loaded only when asked for: it names all of them. */
const MOST_CONNECTIONS = 1000;
const SHOWN_TOPICS = 3;
const KEY = "streamer-api-key";

/** An answer that is not the one wanted. */
class HttpError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, { statuses = [200], ...options } = {}) {
  const response = await fetch(path, { signal: AbortSignal.timeout(TIMEOUT_MS), ...options });
  const body = await response.json().catch(() => ({}));
  if (!statuses.includes(response.status)) {
    throw new HttpError(response.status, body.error ?? `status ${response.status}`);
  }
  return { body, atMs: Date.parse(response.headers.get("date")) || Date.now() };
}

function note(text) {
  byId("note").textContent = text;
}

function inTime(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  for (const [unit, length] of [["d", 86_400], ["h", 3600], ["min", 60]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

const sum = (counts) => Object.values(counts ?? {}).reduce((total, count) => total + count, 0);

/** Write a count, and what it is made of. */
function inParts(counts) {
  const parts = Object.entries(counts ?? {}).filter(([, count]) => count);
  const named = parts.map(([name, count]) => `${name} ${grouped.format(count)}`).join(", ");
  return named ? `${grouped.format(sum(counts))} (${named})` : "0";
}

// Readiness and figures

class Figures {
  #values = new Map();

  show({ statistics, readiness }) {
    const { ingest, redis, loop, batching, workers } = statistics;
    const state = byId("state");
    const text = readiness.ready ? "ready" : `not ready: ${readiness.reason}`;
    if (state.textContent !== text) state.textContent = text; // a screen reader reads each change
    state.dataset.state = readiness.ready ? "ready" : "not-ready";
    if (workers) {
      const answering = workers.filter((worker) => worker.statistics).length;
      this.#set("workers", `${answering} of ${workers.length}`, answering < workers.length);
    }
    if (!ingest) return; // no worker answers
    this.#set("up for", inTime(statistics.uptime_seconds));
    this.#set("connections", grouped.format(statistics.active_connections));
    this.#set("blocked", grouped.format(statistics.hub.blocked_clients));
    this.#set("subscriptions", grouped.format(statistics.subscriptions));
    this.#set("topics", grouped.format(statistics.hub.topics));
    this.#set("dropped", inParts(statistics.messages_dropped));
    this.#set("refused", inParts(statistics.rate_limiting.connections_refused));
    this.#set("longest flush", inWords(inMs(batching.seconds_longest), " ms"));
    this.#set("flushes behind", grouped.format(batching.stretched));
    this.#set("longest loop pause", inWords(inMs(loop.longest_pause_seconds), " ms"));
    this.#set("rejected publications", grouped.format(ingest.rejected), ingest.rejected > 0);
    if (ingest.last_rejection) this.#set("last rejection", ingest.last_rejection);
    if (redis) {
      this.#set("Redis", redis.connected ? "connected" : "not connected", !redis.connected);
      this.#set("Redis reconnects", grouped.format(redis.reconnects));
    }
  }

  showSilence(error) {
    byId("state").textContent = `no answer: ${error.message}`;
    byId("state").dataset.state = "silent";
  }

  #set(name, text, isBad = false) {
    let value = this.#values.get(name);
    if (value === undefined) {
      const item = element("div");
      value = element("dd", "from-clients");
      item.append(element("dt", "", name), value);
      byId("figures").append(item);
      this.#values.set(name, value);
    }
    value.textContent = text;
    value.classList.toggle("bad", isBad);
  }
}

// Connections

const COLUMNS = [
  { title: "Client", value: ({ remote_address: address }) => address, isText: true },
  { title: "User", value: ({ user_id: user }) => user ?? "", isText: true, isWide: true },
  { title: "Connected", value: (one) => one.connected_seconds, show: inTime, isWide: true },
  { title: "Topics", value: (one) => one.subscriptions.length, isWide: true },
  { title: "Sent", value: (one) => one.outbox.delivered, isWide: true },
  { title: "Conflated", value: (one) => one.outbox.conflated, isWide: true },
  { title: "Dropped", value: (one) => sum(one.outbox.dropped), isWide: true },
  { title: "Queued", value: (one) => one.outbox.queued, name: "queued" },
];

const NOT_LOADED = [];

class Connections {
  #listed = NOT_LOADED;
  /** The same in order; null until it is drawn. There may be 10,000, which take a while. */
  #sorted = null;
  #page = 0;
  #column = COLUMNS[2];
  #isDescending = false;
  #heads = new Map();

  /** `disconnect` closes a connection by the hash of its session; null while there is no key. */
  constructor() {
    this.disconnect = null;
    for (const column of COLUMNS) {
      const head = element("th", `${column.isText ? "" : "number"} ${column.isWide ? "wide" : ""}`);
      head.scope = "col";
      const button = head.appendChild(element("button", "", column.title));
      button.type = "button";
      button.addEventListener("click", () => this.#sort(column));
      byId("connection-columns").append(head);
      this.#heads.set(column, head);
    }
    const last = element("th");
    last.scope = "col";
    last.append(element("span", "hidden", "Disconnect"));
    byId("connection-columns").append(last);
    byId("filter").addEventListener("input", () => this.#turnTo(0));
    byId("previous").addEventListener("click", () => this.#turnTo(this.#page - 1));
    byId("next").addEventListener("click", () => this.#turnTo(this.#page + 1));
    this.draw();
  }

  /** Take a new list; it is drawn later if somebody is about to use a row, which would move. */
  take(listed) {
    this.#listed = listed;
    this.#sorted = null;
    const rows = byId("connections");
    const isPointed = matchMedia("(hover: hover)").matches && rows.matches(":hover");
    if (isPointed || rows.matches(":focus-within")) return;
    this.draw();
  }

  remove(session) {
    this.#listed = this.#listed.filter((one) => one.session !== session);
    this.#sorted = null;
    this.draw();
  }

  #sort(column) {
    this.#isDescending = column === this.#column ? !this.#isDescending : !column.isText;
    this.#column = column;
    this.#sorted = null;
    this.#turnTo(0);
  }

  #turnTo(page) {
    this.#page = page;
    this.draw();
  }

  #inOrder() {
    const { value } = this.#column;
    const sign = this.#isDescending ? -1 : 1;
    const keyed = this.#listed.map((one) => ({ one, key: value(one) }));
    keyed.sort((a, b) => sign * compare(a.key, b.key)); // equal ones stay in the server's order
    return keyed.map(({ one }) => one);
  }

  draw() {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    this.#sorted ??= this.#inOrder();
    const fitting = words.length
      ? this.#sorted.filter((one) => {
          one.words ??= wordsOf(one);
          return words.every((word) => one.words.includes(word));
        })
      : this.#sorted;
    const pages = Math.max(1, Math.ceil(fitting.length / CONNECTIONS_PER_PAGE));
    this.#page = Math.min(Math.max(this.#page, 0), pages - 1);
    const first = this.#page * CONNECTIONS_PER_PAGE;
    const shown = fitting.slice(first, first + CONNECTIONS_PER_PAGE);
    byId("connections").replaceChildren(...shown.map((one) => this.#row(one)));
    for (const [column, head] of this.#heads) {
      if (column !== this.#column) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.#isDescending ? "descending" : "ascending");
    }
    byId("previous").disabled = this.#page === 0;
    byId("next").disabled = this.#page >= pages - 1;
    byId("connections-shown").textContent = shown.length
      ? `${first + 1}–${first + shown.length} of ${grouped.format(fitting.length)}`
      : "";
    byId("no-connections").hidden = shown.length > 0;
    byId("no-connections").textContent = this.#listed === NOT_LOADED
      ? `The list is loaded by “Refresh” where there are more than ${grouped.format(MOST_CONNECTIONS)} connections.`
      : this.#listed.length ? "No connection matches." : "Nobody is connected.";
  }

  #row(one) {
    const row = element("tr");
    row.dataset.blocked = String(one.outbox.blocked);
    for (const column of COLUMNS) {
      const found = column.value(one);
      const text = column.isText ? found || "–" : (column.show ?? grouped.format)(found);
      const isHead = column === COLUMNS[0];
      const look = `${column.isText ? "from-clients" : "number"} ${column.isWide ? "wide" : ""}`;
      const cell = element(isHead ? "th" : "td", `${look} ${column.name ?? ""}`, text);
      if (isHead) {
        cell.scope = "row";
        const detail = [one.session, one.transport, one.user_agent].filter(Boolean).join(" · ");
        cell.append(element("small", "from-clients", detail));
        const { subscriptions } = one;
        const more = subscriptions.length > SHOWN_TOPICS ? ", …" : "";
        const topics = subscriptions.slice(0, SHOWN_TOPICS).join(", ") + more;
        if (topics) cell.append(element("small", "from-clients", topics));
      }
      row.append(cell);
    }
    row.append(this.#action(one));
    return row;
  }

  #action({ session, remote_address: address }) {
    const cell = element("td", "number");
    if (this.disconnect) {
      const button = cell.appendChild(element("button", "", "Disconnect"));
      button.type = "button";
      button.setAttribute("aria-label", `Disconnect ${session}, ${address}`);
      button.addEventListener("click", () => {
        button.disabled = true;
        this.disconnect?.(session);
      });
    }
    return cell;
  }
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

function wordsOf(one) {
  const words = [one.remote_address, one.session, one.user_id, one.user_agent, one.transport];
  if (one.outbox.blocked) words.push("blocked");
  return [...words, ...one.subscriptions].join(" ").toLowerCase();
}

// Topics

class Topics {
  #next = null;
  #count = 0;

  clear(text) {
    byId("topics").replaceChildren();
    byId("no-topics").textContent = text;
    byId("no-topics").hidden = false;
    byId("topics-shown").textContent = "";
    byId("more-topics").disabled = byId("load-topics").disabled = true;
  }

  /** Load the first topics, or the next ones. */
  async load(post, { isNext = false } = {}) {
    const request = { sort: byId("topic-sort").value, limit: TOPICS_PER_REQUEST };
    if (byId("topic-type").value) request.subscription_type = byId("topic-type").value;
    if (isNext) request.cursor = this.#next;
    const { body, atMs } = await post("topics", request);
    if (!isNext) {
      byId("topics").replaceChildren();
      this.#count = 0;
    }
    byId("topics").append(...body.topics.map((topic) => topicRow(topic, atMs)));
    this.#count += body.topics.length;
    this.#next = body.next;
    byId("load-topics").disabled = false;
    byId("more-topics").disabled = body.next === null;
    byId("no-topics").hidden = this.#count > 0;
    byId("no-topics").textContent = "Nobody holds such a topic.";
    const silent = body.processes - body.answered;
    const missing = silent > 0 ? `, without ${silent} processes that did not answer` : "";
    const time = new Date().toLocaleTimeString("en-GB");
    byId("topics-shown").textContent = `${grouped.format(this.#count)} topics at ${time}${missing}`;
  }
}

function topicRow(topic, atMs) {
  const row = element("tr");
  const head = element("th", "from-clients", topic.topic);
  head.scope = "row";
  const age = topic.last_message_at ? (atMs - Date.parse(topic.last_message_at)) / 1000 : NaN;
  row.append(
    head,
    element("td", "wide", topic.publisher ?? topic.producer ?? "–"),
    element("td", "number", inWords(topic.rate)),
    element("td", "number", grouped.format(topic.subscribers)),
    element("td", "number wide", grouped.format(topic.sequence)),
    element("td", "number", inTime(age)),
  );
  return row;
}

// The page

class OperatorPage {
  #figures = new Figures();
  #plots = new Plots(byId("plots"));
  #connections = new Connections();
  #topics = new Topics();
  #isRefreshing = false;

  start() {
    addThemeSwitch(byId("theme"));
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, byId("key").value.trim());
      byId("key").value = "";
      this.#useKey();
    });
    byId("forget").addEventListener("click", () => this.#forgetKey("The API key is forgotten."));
    byId("load-connections").addEventListener("click", () => this.#run(() => this.#list()));
    for (const [id, event] of [["load-topics", "click"], ["topic-type", "change"], ["topic-sort", "change"]]) {
      byId(id).addEventListener(event, () => this.#loadTopics());
    }
    byId("more-topics").addEventListener("click", () => this.#loadTopics({ isNext: true }));
    document.addEventListener("visibilitychange", () => this.#refresh());
    setInterval(() => this.#refresh(), REFRESH_MS);
    this.#refresh();
    if (sessionStorage.getItem(KEY)) this.#useKey();
  }

  async #refresh() {
    if (document.hidden || this.#isRefreshing) return;
    this.#isRefreshing = true;
    try {
      const [{ body: readiness }, { body: statistics }, { body: recent }] = await Promise.all([
        ask("readyz", { statuses: [200, 503] }),
        ask("v1/ws/stats"),
        ask(`v1/ws/recent?since=${this.#plots.newestSeconds}`),
      ]);
      this.#figures.show({ statistics, readiness });
      this.#plots.add(recent.samples);
      if (statistics.active_connections <= MOST_CONNECTIONS) await this.#list();
    } catch (error) {
      this.#figures.showSilence(error);
    } finally {
      this.#isRefreshing = false;
    }
  }

  async #list() {
    const { body } = await ask("v1/ws/connections");
    this.#connections.take(body.connections);
  }

  // With a key

  #useKey() {
    this.#showKey(true);
    note("");
    this.#connections.disconnect = (session) => this.#disconnect(session);
    this.#connections.draw();
    this.#loadTopics();
  }

  #forgetKey(text) {
    sessionStorage.removeItem(KEY);
    this.#showKey(false);
    this.#connections.disconnect = null;
    this.#connections.draw();
    this.#topics.clear("The list of topics needs an API key.");
    note(text);
  }

  #showKey(isKnown) {
    byId("key-form").hidden = isKnown;
    byId("forget").hidden = !isKnown;
  }

  #post = (name, request) =>
    ask(`v1/api/${name}`, {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        Authorization: `Bearer ${sessionStorage.getItem(KEY)}`,
      },
      body: JSON.stringify(request),
    });

  #loadTopics(options) {
    if (!sessionStorage.getItem(KEY)) return;
    this.#run(() => this.#topics.load(this.#post, options));
  }

  #disconnect(session) {
    this.#run(async () => {
      const { body } = await this.#post("disconnect", { session });
      this.#connections.remove(session);
      byId("connection-list").focus({ preventScroll: true }); // the button that had it is gone
      note(body.count ? `Disconnected ${session}.` : `${session} was gone already.`);
    });
  }

  /** Do what somebody asked for, and say if it fails. */
  async #run(action) {
    try {
      await action();
    } catch (error) {
      if (error.status === 404) {
        this.#forgetKey("This server has no API: see its setting api_key_file.");
      } else if (error.status === 401 || error.status === 403) {
        this.#forgetKey(`The API key is not valid: ${error.message}.`);
      } else {
        note(`That failed: ${error.message}.`);
        this.#connections.draw();
      }
    }
  }
}

new OperatorPage().start();

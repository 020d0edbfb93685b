/**
 * streamer.js: the client of a streamer server, for browsers and for Node from version 20.
 *
 * Subscriptions outlive connections: the client comes back, names the position of each topic, and
 * gets what it missed, or a `gap`. Every message is checked; `account()` has the counts. The public
 * names are described in streamer.d.ts.
 */

const HOUR_MS = 3_600_000;
/** Close codes after which the contract says not to come back. */
const FINAL_CODES = new Set([1002, 1007, 1008, 1009, 4500]);
const UNAUTHENTICATED = 4001;
/** No close frame was received. */
const ABNORMAL = 1006;
/** Errors after which the same request may succeed later. */
const PASSING = new Set(["RATE_LIMIT_EXCEEDED", "INTERNAL_ERROR"]);
const ABOUT_CONNECTION = new Set(["INVALID_TOKEN", "TOKEN_EXPIRED"]);
const MAX_VIOLATIONS_KEPT = 100;
const MAX_HOLES_KEPT = 16;

export const KINDS = {
  __proto__: null,
  stock: ["price", "orderbook"],
  market: ["status"],
  sector: ["price"],
  watchlist: ["price"],
  user: ["alerts", "notifications"],
};

const KIND_OF = {
  price_update: "price",
  price_delta: "price",
  orderbook_update: "orderbook",
  orderbook_delta: "orderbook",
  market_status: "status",
  alert: "alerts",
  notification: "notifications",
};

export class StreamerError extends Error {
  constructor(code, message, details) {
    super(message);
    this.name = "StreamerError";
    this.code = code;
    this.details = details;
  }
}

// A JSON number beyond 2**53, or with zeros at its end, is another one in JavaScript.

export function quoteNumbers(json) {
  return json.replace(/"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g, (token) =>
    token[0] === '"' ? token : `"${token}"`,
  );
}

export function decimal(text) {
  if (/^[1-9]\d*$/.test(text)) return text;
  const match = /^(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/.exec(text);
  if (!match) throw new TypeError(`${text} is not a number`);
  const [, sign, whole, fraction = "", exponent = "0"] = match;
  let digits = whole + fraction;
  let point = whole.length + Number(exponent);
  if (point < 1) {
    digits = "0".repeat(1 - point) + digits;
    point = 1;
  }
  digits = digits.padEnd(point, "0");
  const before = digits.slice(0, point).replace(/^0+(?=\d)/, "");
  const after = digits.slice(point).replace(/0+$/, "");
  const plain = after ? `${before}.${after}` : before;
  return plain === "0" ? plain : sign + plain;
}

export function compareDecimals(a, b) {
  if (a === b) return 0;
  const difference = a - b;
  if (difference) return difference;
  const [wholeA, fractionA = ""] = a.split(".");
  const [wholeB, fractionB = ""] = b.split(".");
  const places = Math.max(fractionA.length, fractionB.length);
  const scaledA = BigInt(wholeA + fractionA.padEnd(places, "0"));
  const scaledB = BigInt(wholeB + fractionB.padEnd(places, "0"));
  return scaledA < scaledB ? -1 : 1;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

export function crc32(text) {
  let crc = 0xffffffff;
  for (let index = 0; index < text.length; index++) {
    crc = CRC_TABLE[(crc ^ text.charCodeAt(index)) & 0xff] ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}

// Order books and prices that come as deltas

class Side {
  /** Price as a plain decimal -> its level and quantity. */
  #levels = new Map();
  #direction;

  constructor(direction, levels, exact) {
    this.#direction = direction;
    this.apply(levels, exact);
  }

  /** Replace levels by these; quantity 0 removes one. `exact` has the numbers as text. */
  apply(levels, exact) {
    exact.forEach(({ price, quantity }, index) => {
      const key = decimal(price);
      const amount = decimal(quantity);
      if (amount === "0") this.#levels.delete(key);
      else this.#levels.set(key, { level: levels[index], amount });
    });
  }

  /** Best price first: [price, {level, amount}]. */
  sorted() {
    return [...this.#levels].sort(([a], [b]) => this.#direction * compareDecimals(a, b));
  }
}

export class Book {
  /** `exact` is the same message with its numbers as text. */
  constructor(message, exact) {
    this.bids = new Side(-1, message.bids, exact.bids);
    this.asks = new Side(1, message.asks, exact.asks);
  }

  /** Return the levels after a delta, and whether they have its checksum. */
  apply(delta, exact) {
    this.bids.apply(delta.bids, exact.bids);
    this.asks.apply(delta.asks, exact.asks);
    const bids = this.bids.sorted();
    const asks = this.asks.sorted();
    const text = [...asks.slice(0, 10), ...bids.slice(0, 10)]
      .map(([price, { amount }]) => `${price}:${amount}`)
      .join();
    const levels = (side) => side.map(([, { level }]) => level);
    return {
      bids: levels(bids),
      asks: levels(asks),
      isIntact: delta.checksum === undefined || crc32(text) === Number(delta.checksum),
    };
  }
}

/** Last values of one topic: bases of deltas, and snapshots for late subscribers. */
class Values {
  /** Type of message, and its stock -> {message, exact, book}. */
  #last = new Map();

  snapshots() {
    return [...this.#last.values()].map(({ message }) => ({ ...message, snapshot: true }));
  }

  /** Return the whole message; null if it is a delta without its base. */
  take(message, exact) {
    const type = message.type.replace("_delta", "_update");
    const key = `${type}:${message.stock_code}`;
    let whole = message;
    const state = message.type === type ? { message, exact } : this.#last.get(key);
    if (message.type !== type) {
      if (!state) return null;
      const { previous, snapshot, ...base } = state.message;
      whole = { ...base, ...message, type };
      if (type === "orderbook_update") {
        state.book ??= new Book(state.message, state.exact);
        const { bids, asks, isIntact } = state.book.apply(message, exact);
        if (!isIntact) return null;
        Object.assign(whole, { bids, asks, changed: { bids: message.bids, asks: message.asks } });
        delete whole.checksum;
      }
      state.message = whole;
    }
    // Events have no last value.
    if (type !== "alert" && type !== "notification") this.#last.set(key, state);
    return whole;
  }
}

/** Checks all streams, over all connections, by the rules of streamer/client/verify.py. */
export class Account {
  #streams = new Map();
  #onViolation;
  #counts = { received: 0, snapshots: 0, merged: 0, resyncs: 0, unreadable: 0, violations: 0 };
  #gaps = {};
  #faults = {};
  #first = [];

  constructor(onViolation = () => {}) {
    this.#onViolation = onViolation;
  }

  summary() {
    const streams = [...this.#streams.values()];
    return {
      ...this.#counts,
      outstanding: streams.filter((s) => s.live && s.held !== s.announced && !s.partial).length,
      gaps: { ...this.#gaps },
      faults: { ...this.#faults },
      firstViolations: [...this.#first],
    };
  }

  position(topic) {
    const stream = this.#streams.get(topic);
    return stream?.epoch == null ? undefined : { epoch: stream.epoch, sequence: stream.held };
  }

  isLive(topic) {
    return this.#streams.get(topic)?.live ?? false;
  }

  disconnected() {
    for (const stream of this.#streams.values()) stream.live = false;
  }

  /** Begin or resume a topic. `announced` is the answer's position, `since` the request's. */
  begin(topic, since, announced, partial = this.#streams.get(topic)?.partial ?? false) {
    let stream = this.#streams.get(topic);
    if (!stream) this.#streams.set(topic, (stream = { held: 0, announced: 0, holes: [] }));
    if (since) {
      move(stream, since);
      if (announced) {
        stream.announced = announced.sequence;
        // A step back within the epoch means another stream, too.
        if (announced.epoch !== since.epoch || announced.sequence < since.sequence) {
          stream.unannounced = announced;
        }
      }
    } else if (announced) {
      const isSame = stream.live && !stream.partial && !partial && stream.epoch === announced.epoch;
      if (isSame && stream.held !== announced.sequence) {
        this.#violate("unannounced hole", topic, announced, stream);
      }
      move(stream, announced);
    }
    stream.live = true;
    stream.partial = partial;
  }

  end(topic) {
    this.#streams.delete(topic);
  }

  gap(topic, { reason, epoch, sequence }) {
    this.#gaps[reason] = (this.#gaps[reason] ?? 0) + 1;
    const stream = this.#streams.get(topic);
    if (!stream?.live) {
      this.#violate("not subscribed", topic, { sequence });
      return;
    }
    if (stream.epoch === epoch && sequence < stream.held) {
      this.#violate("gap that goes back", topic, { sequence }, stream);
    }
    move(stream, { epoch, sequence });
  }

  data(topic, message) {
    this.#counts.received++;
    if (message.snapshot) this.#counts.snapshots++;
    const stream = this.#streams.get(topic);
    if (!stream?.live) {
      this.#violate("not subscribed", topic, message);
    } else if (!message.snapshot) {
      this.#advance(topic, stream, message);
    } else if (message.sequence > stream.announced) {
      this.#violate("snapshot ahead of its stream", topic, message, stream);
    }
  }

  #advance(topic, stream, message) {
    const { held } = stream;
    const { sequence, previous: follows = sequence - 1 } = message;
    if (stream.unannounced && !isRenamed(stream, follows)) {
      this.#violate("new epoch without a gap", topic, message, stream);
      move(stream, stream.unannounced);
    } else if (sequence <= held) {
      const isLate = stream.holes.some(([from, to]) => from <= sequence && sequence <= to);
      this.#violate(isLate ? "out of order" : "repeat", topic, message, stream);
      return;
    } else if (follows > held && !(stream.partial && follows === stream.announced)) {
      // A recovery may end with publications of kinds that are not subscribed to.
      stream.holes = [...stream.holes, [held + 1, follows]].slice(-MAX_HOLES_KEPT);
      this.#violate("unannounced hole", topic, message, stream);
    } else if (follows < held) {
      this.#violate("follows what is no longer the last", topic, message, stream);
    }
    this.#counts.merged += Math.max(sequence - follows - 1, 0);
    stream.held = sequence;
    stream.announced = Math.max(stream.announced, sequence);
  }

  unreadable() {
    this.#counts.unreadable++;
    this.#violate("not a message", null, {});
  }

  /** Count a delta that cannot be applied: the server is asked for the whole message. */
  resync(topic, message) {
    this.#counts.resyncs++;
    this.#violate("delta without its base", topic, message);
  }

  #violate(fault, topic, { sequence, previous }, { held } = {}) {
    const violation = { fault, topic, sequence, previous, held };
    this.#counts.violations++;
    this.#faults[fault] = (this.#faults[fault] ?? 0) + 1;
    if (this.#first.length < MAX_VIOLATIONS_KEPT) this.#first.push(violation);
    this.#onViolation(violation);
  }
}

function move(stream, { epoch, sequence }) {
  if (stream.epoch !== epoch) stream.holes = [];
  stream.epoch = epoch;
  stream.held = stream.announced = sequence;
  stream.unannounced = null;
}

/** Whether the same stream continues under another epoch, which it then adopts. */
function isRenamed(stream, follows) {
  const { unannounced } = stream;
  if (follows !== stream.held || stream.held > unannounced.sequence) return false;
  stream.epoch = unannounced.epoch;
  stream.unannounced = null;
  return true;
}

// Subscriptions

export function checked(topics, options) {
  topics = [...new Set([topics].flat())];
  for (const topic of topics) {
    const carried = KINDS[topic === "user" ? topic : split(topic)[0]];
    if (!carried) throw new TypeError(`${topic} is no topic, which is TYPE:TARGET`);
    if (options.kinds && !options.kinds.some((kind) => carried.includes(kind))) {
      throw new TypeError(`the kinds of ${topic} are ${carried.join(" and ")}`);
    }
  }
  if (options.max_rate && options.mode === "all") {
    throw new TypeError("max_rate merges messages, which mode all forbids");
  }
  return topics;
}

/** Return the options that satisfy all of these: one topic has one stream on a connection. */
export function widest(all) {
  const everyHas = (name) => all.every((options) => options[name] != null);
  const largest = (name) =>
    everyHas(name) ? Math.max(...all.map((options) => options[name])) : undefined;
  const mode = all.some((options) => options.mode === "all") ? "all" : undefined;
  return {
    kinds: everyHas("kinds") ? [...new Set(all.flatMap(({ kinds }) => kinds))].sort() : undefined,
    mode,
    max_rate: mode === "all" ? undefined : largest("max_rate"),
    delta: all.some(({ delta }) => delta) || undefined,
    depth: largest("depth"),
  };
}

class Subscription {
  /** Topics whose answer is awaited. */
  #awaited;
  #refusals = [];
  #onClose;
  #settle;

  constructor(topics, options, onMessage, onClose) {
    this.topics = topics;
    this.options = options;
    this.onMessage = onMessage;
    this.#onClose = onClose;
    this.#awaited = new Set(topics);
    this.ready = Promise.resolve();
    this.expect();
  }

  close() {
    this.#onClose(this);
    this.abandon("the subscription was closed");
  }

  /** Have `ready` wait for what is awaited; again, after `abandon`. */
  expect() {
    if (this.#settle || this.#awaited.size === 0) return;
    this.ready = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.ready.catch(() => {}); // the refusal is an "error" event, too
  }

  abandon(reason) {
    this.#settle?.reject(new Error(reason));
    this.#settle = null;
  }

  answered(topic, refusal) {
    if (!this.#awaited.delete(topic)) return;
    if (refusal) this.#refusals.push(refusal);
    if (this.#awaited.size > 0) return;
    const refusals = this.#refusals;
    const [first] = refusals;
    if (!first) return this.#settle?.resolve();
    const error = new StreamerError(first.code, refusals.map((it) => it.message).join("; "));
    this.#settle?.reject(Object.assign(error, { refusals }));
  }

  needsSnapshot(topic, isLive) {
    return this.options.snapshot !== false && (!isLive || this.#awaited.has(topic));
  }

  deliver(message) {
    const { kinds, depth } = this.options;
    if (kinds && message.type !== "gap" && !kinds.includes(KIND_OF[message.type])) return;
    if (depth && message.bids) {
      const { bids, asks } = message;
      message = { ...message, bids: bids.slice(0, depth), asks: asks.slice(0, depth) };
    }
    callOut(this.onMessage, message);
  }
}

/** Call for each member of a set, but for those that it adds or removes. */
export function each(set, call) {
  for (const one of [...(set ?? [])]) if (set.has(one)) call(one);
}

/** Call a function of the page; its fault is not the client's. */
export function callOut(listener, value) {
  try {
    listener(value);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

function later(milliseconds, callback) {
  // Beyond the largest, a timer fires at once.
  return setTimeout(callback, Math.min(Math.max(milliseconds, 0), 2 ** 31 - 1));
}

function split(topic) {
  const at = topic.indexOf(":");
  return [topic.slice(0, Math.max(at, 0)), topic.slice(at + 1)];
}

/** The members of a request that name topics, which are of one type. */
function naming(topics) {
  const [[type]] = topics.map(split);
  return { subscription_type: type, targets: topics.map((topic) => split(topic)[1]) };
}

/** Divide topics into parts of one key and at most `size` topics. */
function parts(topics, size, keyOf) {
  const open = new Map();
  const all = [];
  for (const topic of topics) {
    const key = keyOf(topic);
    if (!(open.get(key)?.length < size)) {
      open.set(key, []);
      all.push(open.get(key));
    }
    open.get(key).push(topic);
  }
  return all;
}

// Transports have `send` and `close`, and call onText and onClose.

function openWebSocket({ url, token, WebSocket, onText, onClose }) {
  // A URL would end in logs. Browsers close a connection if none of their subprotocols is selected.
  const socket = token
    ? new WebSocket(url, ["streamer.v1", `bearer.${token}`])
    : new WebSocket(url);
  socket.onmessage = ({ data }) => onText(data);
  socket.onclose = ({ code, reason }) => onClose(code, reason || "the connection was cut");
  socket.onerror = () => {}; // a close event follows, which says as much
  return {
    name: "websocket",
    send: (message) => socket.send(JSON.stringify(message)),
    close() {
      socket.onmessage = socket.onclose = null;
      socket.close();
    },
  };
}

export class Streamer {
  #url;
  #options;
  #account;
  #listeners = new Map();
  #events = [];

  #state = "disconnected";
  #attempt = 0;
  #transport = null;
  #timer;
  #failures = 0;
  /** Attempts in turn that opened no WebSocket, but for lack of a token. */
  #unopened = 0;
  #hasToken = false;
  #hadSocket = false;
  #cursor = { id: "", topics: new Set() };
  #openedAt = 0;
  #announced = null;
  #isStopped = true;
  #isSuspended = false;
  #isWaiting = false;
  #page = null;

  #heardAt = 0;
  #pingedAt = 0;
  #watchdog;
  #hasGrace = false;
  #heartbeatMs;

  #token;
  #tokenFlight = null;
  #userId = null;

  /** The session of this connection, {id, held}: held has topic -> options as text. */
  #session = null;
  #isRestoring = false;
  #limits = {};
  #requests = new Map();
  #lastRequestId = 0;
  #retries = 0;
  #hasDeltas = false;
  /** Topics that have been asked for, whole or from a position, and have not come. */
  #asked = new Set();
  #refused = new Set();

  /** Topic -> its subscriptions. */
  #wanted = new Map();
  #values = new Map();
  #isReconciling = false;

  constructor(url = "/v1/ws", options = {}) {
    const absolute = new URL(url, globalThis.location?.href);
    absolute.protocol = absolute.protocol.replace("http", "ws");
    this.#url = absolute;
    this.#options = {
      numbers: "number",
      firstDelayMs: 500,
      maxDelayMs: 30_000,
      connectTimeoutMs: 10_000,
      pongTimeoutMs: 10_000,
      fallback: true,
      fallbackMs: HOUR_MS,
      WebSocket: globalThis.WebSocket,
      fetch: globalThis.fetch,
      ...options,
    };
    this.#account = new Account((violation) => this.#emit("violation", violation));
    if (options.connect !== false) this.connect();
  }

  get state() {
    return this.#state;
  }

  get sessionId() {
    return this.#session?.id ?? null;
  }

  get userId() {
    return this.#userId;
  }

  get transport() {
    return this.#transport?.name ?? null;
  }

  account() {
    return this.#account.summary();
  }

  position(topic) {
    return this.#account.position(topic);
  }

  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  #emit(name, value) {
    // What a listener causes comes after this, to all of them in the same order.
    if (this.#events.push([name, value]) > 1) return;
    for (; this.#events.length > 0; this.#events.shift()) {
      const [[name, value]] = this.#events;
      each(this.#listeners.get(name), (listener) => callOut(listener, value));
    }
  }

  connect() {
    if (!this.#isStopped) return;
    this.#isStopped = this.#isSuspended = false;
    this.#failures = this.#unopened = 0;
    this.#each((it) => it.expect());
    this.#watchPage();
    this.#open();
  }

  close() {
    this.#stop(1000, "closed");
  }

  subscribe(topics, options, onMessage) {
    if (typeof options === "function") [options, onMessage] = [{}, options];
    topics = checked(topics, options);
    const subscription = new Subscription(topics, options, onMessage, (it) => this.#leave(it));
    for (const topic of topics) {
      this.#refused.delete(topic); // ask again
      this.#wanted.set(topic, (this.#wanted.get(topic) ?? new Set()).add(subscription));
      if (topic === "user") {
        subscription.answered(topic);
      } else this.#catchUp(topic, subscription);
    }
    this.#reconcileSoon();
    return subscription;
  }

  #each(call) {
    for (const subscriptions of this.#wanted.values()) subscriptions.forEach(call);
  }

  /** Give a subscriber the last values. */
  #catchUp(topic, subscription) {
    if (!this.#account.isLive(topic)) return; // the answer is still to come, for both
    if (this.#session.held.get(topic) !== this.#optionsOf(topic)) return;
    const needsSnapshot = subscription.needsSnapshot(topic, true);
    const snapshots = (needsSnapshot && this.#values.get(topic)?.snapshots()) || [];
    subscription.answered(topic);
    queueMicrotask(() => {
      for (const message of snapshots) {
        if (this.#wanted.get(topic)?.has(subscription)) subscription.deliver(message);
      }
    });
  }

  #leave(subscription) {
    for (const topic of subscription.topics) {
      const subscriptions = this.#wanted.get(topic);
      if (!subscriptions?.delete(subscription) || subscriptions.size > 0) continue;
      this.#wanted.delete(topic);
      if (!this.#account.isLive(topic)) this.#forget(topic);
    }
    this.#reconcileSoon();
  }

  #forget(topic) {
    this.#account.end(topic);
    this.#values.delete(topic);
    this.#refused.delete(topic);
  }

  // Connecting

  async #open() {
    const attempt = ++this.#attempt;
    const isCurrent = () => attempt === this.#attempt;
    this.#isWaiting = false;
    this.#openedAt = 0;
    this.#hasToken = false;
    // Before listeners, which may close it.
    this.#setTimer(this.#options.connectTimeoutMs, () => this.#lost(ABNORMAL, "no greeting"));
    this.#change("connecting");
    if (!isCurrent()) return;
    try {
      const token = await this.#currentToken("connect");
      if (!isCurrent()) return;
      this.#hasToken = true;
      const open = this.#isBlocked
        ? (await import("./streamer-sse.js")).openEventStream
        : openWebSocket;
      if (!isCurrent()) return;
      this.#transport = open({
        ...this.#options,
        url: this.#url.href,
        token,
        widest,
        kinds: KINDS,
        cursor: this.#cursor,
        onAlive: (heartbeatSeconds) => isCurrent() && this.#hear(heartbeatSeconds),
        onText: (text) => isCurrent() && this.#receive(text),
        onClose: (...how) => isCurrent() && this.#lost(...how),
        lastsMs: this.#options.fallbackMs / (this.#hadSocket ? 6 : 1),
      });
    } catch (error) {
      if (!isCurrent()) return;
      this.#emit("error", error);
      if (isCurrent()) this.#lost(ABNORMAL, error.message);
    }
  }

  get #isBlocked() {
    const { fallback, fetch } = this.#options;
    const attempts = this.#unopened;
    return fallback && fetch && attempts >= (this.#hadSocket ? 8 : 2) && attempts % 2 === 0;
  }

  #setTimer(milliseconds, callback) {
    clearTimeout(this.#timer);
    this.#timer = later(milliseconds, callback);
  }

  #drop() {
    this.#attempt++;
    clearTimeout(this.#timer);
    clearTimeout(this.#watchdog);
    this.#transport?.close();
    this.#transport = null;
    this.#account.disconnected();
    // Nobody knows what a request in flight has changed in the session.
    if (this.#requests.size > 0) this.#session = null;
    this.#requests.clear();
    this.#asked.clear();
    this.#isRestoring = false;
  }

  #lost(code, reason, wasOpen = this.#transport?.wasOpen ?? this.#openedAt > 0) {
    const announced = this.#announced;
    this.#announced = null;
    const lastedMs = wasOpen ? performance.now() - this.#openedAt : 0;
    if (!wasOpen) this.#unopened += Number(this.#hasToken);
    else if (this.#transport.name === "websocket") this.#unopened = 0;
    else if (code === 1012) this.#unopened--; // try one again
    this.#drop();
    if (code === UNAUTHENTICATED) this.#token = undefined;
    const hasOtherToken = typeof this.#options.token === "function";
    if (
      FINAL_CODES.has(code) ||
      announced?.reconnect === false ||
      (code === UNAUTHENTICATED && !hasOtherToken)
    ) {
      this.#stop(code, announced?.reason ?? reason);
      return;
    }
    const { firstDelayMs, maxDelayMs } = this.#options;
    if (lastedMs > maxDelayMs) this.#failures = 0;
    const announcedMs = announced?.retry_after_ms;
    this.#isWaiting = announcedMs == null;
    const retryInMs = this.#isWaiting
      ? // Full jitter: clients lose a server together, and must not come back together.
        Math.random() * Math.min(maxDelayMs, firstDelayMs * 2 ** this.#failures++)
      : Math.min(Math.max(announcedMs, 0), HOUR_MS);
    this.#setTimer(retryInMs, () => this.#open());
    this.#change("connecting", { code, reason, retryInMs });
  }

  #stop(code, reason) {
    this.#isStopped = true;
    this.#isWaiting = false;
    this.#token = this.#tokenFlight = null; // the next one may be another user's
    this.#drop();
    this.#page?.abort();
    this.#each((it) => it.abandon(`disconnected: ${reason}`));
    this.#change("disconnected", { code, reason });
  }

  #change(state, detail) {
    if (state === this.#state && (this.#isStopped || !detail)) return;
    this.#state = state;
    this.#emit("state", { state, ...detail });
  }

  // The page: network, visibility, and the back/forward cache

  #watchPage() {
    const { addEventListener, document } = globalThis;
    if (!addEventListener) return; // Node
    this.#page = new AbortController();
    const { signal } = this.#page;
    const listen = (target, name, listener) => target.addEventListener(name, listener, { signal });
    listen(globalThis, "online", () => this.#wake());
    listen(globalThis, "offline", () => this.probe());
    // An open connection keeps a page out of the back/forward cache.
    listen(globalThis, "pagehide", () => this.#suspend());
    listen(globalThis, "pageshow", () => this.#resume());
    if (!document) return; // a worker
    listen(document, "freeze", () => this.#suspend());
    listen(document, "resume", () => this.#resume());
    listen(document, "visibilitychange", () => document.hidden || this.#wake());
  }

  #suspend() {
    if (this.#isSuspended) return;
    this.#isSuspended = true;
    this.#isWaiting = false;
    this.#drop();
    this.#change("connecting", { code: 1000, reason: "the page is frozen" });
  }

  #resume() {
    if (!this.#isSuspended) return;
    this.#isSuspended = false;
    this.#open();
  }

  /** Come back at once, unless the server said when. */
  #wake() {
    if (this.#isWaiting) this.#open();
    else this.probe();
  }

  // A connection can die in silence, and JavaScript does not see pings.

  probe() {
    if (this.#state !== "connected") return;
    // A stream of events answers nothing.
    if (this.#transport.name === "websocket") this.#ping();
    this.#watch();
  }

  /** Note a sign of life, and perhaps the interval at which it has to come. */
  #hear(heartbeatSeconds) {
    this.#heardAt = performance.now();
    if (!(heartbeatSeconds > 0)) return;
    this.#heartbeatMs = heartbeatSeconds * 1000;
    this.#watch();
  }

  #ping() {
    this.#pingedAt = performance.now();
    if (this.#transport.name === "websocket") this.#request({ type: "ping" });
    else this.#transport.send({ type: "ping" });
  }

  #watch(dueAt = Infinity) {
    clearTimeout(this.#watchdog);
    const now = performance.now();
    if (this.#heardAt >= this.#pingedAt) {
      this.#pingedAt = 0;
      this.#hasGrace = true;
      if (now - this.#heardAt >= this.#heartbeatMs) this.#ping();
    } else if (now - this.#pingedAt >= this.#options.pongTimeoutMs) {
      // If this timer is late, the page slept, and the answer may wait to be read.
      if (now - dueAt < 1000 || !this.#hasGrace) {
        this.#lost(ABNORMAL, "no answer to a ping");
        return;
      }
      this.#hasGrace = false;
      this.#ping();
    }
    const next = this.#pingedAt
      ? this.#pingedAt + this.#options.pongTimeoutMs
      : this.#heardAt + this.#heartbeatMs;
    this.#watchdog = later(next - now, () => this.#watch(next));
  }

  // The token

  /** Return the token; the page's function is called for one at a time. */
  async #currentToken(why) {
    const { token } = this.#options;
    if (typeof token !== "function") return token;
    if (this.#token) return this.#token;
    const attempt = this.#attempt;
    this.#tokenFlight ??= (async () => token({ why }))().finally(() => (this.#tokenFlight = null));
    const given = await this.#tokenFlight;
    if (attempt === this.#attempt) this.#token = given;
    return given;
  }

  async #renewToken() {
    if (typeof this.#options.token !== "function") return;
    const attempt = this.#attempt;
    this.#token = undefined;
    try {
      const token = await this.#currentToken("expiring");
      if (attempt !== this.#attempt || !token) return;
      this.#request({ type: "authenticate", token }, (answer) => {
        this.#fail(answer);
        this.#identify(answer);
      });
    } catch (error) {
      this.#emit("error", error);
    }
  }

  /** Note the user, whose own topic comes without being asked for. */
  #identify({ user_id: userId, positions, fresh }) {
    if (userId == null) return;
    this.#userId = userId;
    for (const [topic, announced] of Object.entries(positions ?? {})) {
      const since = this.#account.position(topic);
      // A position from a former connection is restored by a request: see #restoreOwn.
      if (!since || fresh) this.#begin(topic, since, announced, fresh);
    }
    this.#refused.clear(); // the new token may allow more
    this.#reconcileSoon();
  }

  // Requests

  #request(message, onAnswer = (answer) => this.#fail(answer)) {
    if (!this.#transport) return; // a listener closed it
    const id = ++this.#lastRequestId;
    this.#requests.set(id, onAnswer);
    this.#transport.send({ ...message, request_id: id });
  }

  #answer(message) {
    let { request_id: id } = message;
    if (id == null && !ABOUT_CONNECTION.has(message.code)) {
      // The server did not read the request, over the rate limit: answers come in order.
      [id] = this.#requests.keys();
    }
    const onAnswer = this.#requests.get(id);
    this.#requests.delete(id);
    onAnswer?.(message);
    return onAnswer !== undefined;
  }

  #fail({ type, code, message, details }) {
    if (type === "error") this.#emit("error", new StreamerError(code, message, details));
  }

  setBandwidth(max_bandwidth) {
    this.#options.max_bandwidth = max_bandwidth;
    if (this.#state === "connected") this.#request({ type: "options", max_bandwidth });
  }

  // Subscriptions on this connection

  #optionsOf(topic) {
    const { snapshot, ...options } = widest([...this.#wanted.get(topic)].map((it) => it.options));
    if (options.kinds) {
      const carried = KINDS[split(topic)[0]];
      options.kinds = options.kinds.filter((kind) => carried.includes(kind));
      if (options.kinds.length === carried.length) options.kinds = undefined;
    }
    return JSON.stringify(options);
  }

  #reconcileSoon() {
    if (this.#isReconciling) return;
    this.#isReconciling = true;
    queueMicrotask(() => {
      this.#isReconciling = false;
      if (this.#state === "connected" && !this.#isRestoring) this.#reconcile();
    });
  }

  /** Subscribe to what is wanted and not held, and leave the rest. */
  #reconcile() {
    this.#restoreOwn();
    const { held } = this.#session;
    const size = this.#limits.max_targets_per_request ?? 100;
    const typeOf = (topic) => split(topic)[0];
    const unwanted = [...held.keys()].filter((topic) => !this.#wanted.has(topic));
    for (const topic of unwanted) held.delete(topic);
    for (const topics of parts(unwanted, size, typeOf)) this.#unsubscribe(topics);
    const missing = [...this.#wanted.keys()].filter(
      (topic) =>
        topic !== "user" &&
        !this.#refused.has(topic) &&
        held.get(topic) !== this.#optionsOf(topic),
    );
    const keyOf = (topic) => typeOf(topic) + this.#optionsOf(topic);
    for (const topics of parts(missing, size, keyOf)) this.#subscribe(topics);
  }

  /** Get what came for the user while there was no connection. */
  #restoreOwn() {
    const topic = `user:${this.#userId}`;
    const since = this.#account.position(topic);
    if (!since || this.#account.isLive(topic) || this.#asked.has(topic)) return;
    this.#asked.add(topic);
    const message = { type: "subscribe", ...naming([topic]), since: { [this.#userId]: since } };
    this.#request(message, ({ positions }) => {
      this.#asked.delete(topic);
      if (!positions || this.#account.isLive(topic)) return; // as on a stream of events
      this.#account.begin(topic, since, positions[this.#userId]);
    });
  }

  #unsubscribe(topics) {
    this.#request({ type: "unsubscribe", ...naming(topics) }, (answer) => {
      if (answer.type === "error") {
        for (const topic of topics) this.#session.held.set(topic, "");
        this.#retry(answer);
      } else {
        // If it is wanted again, a later answer begins it.
        for (const topic of topics) this.#forget(topic);
      }
    });
  }

  #subscribe(topics) {
    const { held } = this.#session;
    const [type] = split(topics[0]);
    const options = JSON.parse(this.#optionsOf(topics[0]));
    this.#hasDeltas ||= options.delta;
    const since = { __proto__: null };
    for (const topic of topics) {
      held.set(topic, this.#optionsOf(topic));
      if (this.#account.isLive(topic)) continue; // it continues
      const position = this.#account.position(topic);
      if (position) since[split(topic)[1]] = position;
    }
    const snapshot = topics.some((topic) =>
      [...this.#wanted.get(topic)].some((it) => it.needsSnapshot(topic, this.#account.isLive(topic))),
    );
    this.#request({ type: "subscribe", ...naming(topics), ...options, snapshot, since }, (answer) => {
      if (answer.type === "subscribed") {
        this.#retries = 0;
        for (const target of answer.targets) {
          const topic = `${type}:${target}`;
          const announced = answer.positions[target];
          this.#begin(topic, since[target], announced, answer.fresh, !!options.kinds);
          const settle = (it) => (since[target] ? this.#catchUp(topic, it) : it.answered(topic));
          each(this.#wanted.get(topic), settle);
        }
        for (const { target, ...refusal } of answer.rejected) {
          this.#refuse(`${type}:${target}`, refusal);
        }
      } else if (PASSING.has(answer.code)) {
        for (const topic of topics) held.delete(topic);
        this.#retry(answer);
      } else {
        for (const topic of topics) this.#refuse(topic, answer);
      }
    });
  }

  /** Begin a topic; a stream of events has no `since`, and begins `fresh` ones now. */
  #begin(topic, since, announced, fresh, partial) {
    this.#account.begin(topic, since, announced, partial);
    const [, target] = split(topic);
    if (!since || !fresh?.includes(target)) return;
    const reason = "transport_changed";
    this.#take({ type: "gap", ...naming([topic]), target, reason, ...announced });
  }

  /** Note a refusal; the next connection asks again. */
  #refuse(topic, { code, message, details }) {
    const refusal = new StreamerError(code, `${topic}: ${message}`, details);
    refusal.topic = topic;
    this.#session?.held.delete(topic);
    this.#account.end(topic);
    this.#refused.add(topic);
    each(this.#wanted.get(topic), (it) => it.answered(topic, refusal));
    this.#emit("error", refusal);
  }

  #retry(answer) {
    this.#fail(answer);
    const attempt = this.#attempt;
    const delayMs = Math.random() * Math.min(30_000, 1000 * 2 ** this.#retries++);
    later(delayMs, () => attempt === this.#attempt && this.#reconcileSoon());
  }

  /** Restore the former session; then subscribe to topics that it lacks. */
  #restore(former) {
    const positions = {};
    for (const topic of former.held.keys()) positions[topic] = this.#account.position(topic);
    const own = `user:${this.#userId}`;
    positions[own] = this.#account.position(own);
    const message = { type: "reconnect", session_id: former.id, positions };
    const limit = this.#limits.max_message_bytes ?? 65_536;
    if (new TextEncoder().encode(JSON.stringify(message)).length > limit - 40) {
      this.#reconcile();
      return;
    }
    this.#isRestoring = true;
    this.#request(message, (answer) => {
      this.#isRestoring = false;
      if (answer.type === "reconnected") {
        for (const [type, targets] of Object.entries(answer.restored_subscriptions)) {
          for (const target of targets) {
            const topic = `${type}:${target}`;
            this.#account.begin(topic, positions[topic], answer.positions[topic]);
            if (former.held.has(topic)) this.#session.held.set(topic, former.held.get(topic));
            else if (topic !== own) this.#session.held.set(topic, "");
            // Some of them have begun while there was no connection.
            each(this.#wanted.get(topic), (it) => this.#catchUp(topic, it));
          }
        }
      } // else the server no longer knows the session: subscribe from the positions
      this.#reconcile();
    });
  }

  // Messages from the server

  #receive(text) {
    this.#hear();
    let message;
    let exact;
    try {
      ({ message, exact } = this.#decode(text));
    } catch (error) {
      this.#account.unreadable();
      this.#emit("error", error);
      return;
    }
    if (message.type !== "batch") {
      this.#take(message, exact);
      return;
    }
    const attempt = this.#attempt;
    for (const [index, one] of message.messages.entries()) {
      if (attempt !== this.#attempt) return "cut"; // by a listener
      this.#take(one, exact?.messages[index]);
    }
  }

  /** Return a message, and `exact`, the same with numbers as text, which books need. */
  #decode(text) {
    if (this.#options.numbers === "text") {
      const exact = JSON.parse(quoteNumbers(text));
      if (exact.type === "batch" || exact.type in KIND_OF) return { message: exact, exact };
    }
    const message = JSON.parse(text);
    if (typeof message?.type !== "string") throw new TypeError("a message without a type");
    const isBook = this.#hasDeltas && text.includes('"orderbook_');
    return { message, exact: isBook ? JSON.parse(quoteNumbers(text)) : undefined };
  }

  #take(message, exact) {
    if (message.type in KIND_OF) {
      this.#takeData(message, exact);
      return;
    }
    switch (message.type) {
      case "connected":
        this.#takeGreeting(message);
        break;
      case "gap": {
        message.topic = `${message.subscription_type}:${message.target}`;
        this.#account.gap(message.topic, message);
        this.#values.delete(message.topic); // no delta leads over a gap
        this.#dispatch(message);
        this.#emit("gap", message);
        break;
      }
      case "token_expiring":
        this.#renewToken();
        break;
      case "server_shutdown":
      case "disconnected":
        this.#announced = message;
        break;
      case "error":
        if (message.code === "TOKEN_EXPIRED") this.#token = undefined;
        if (!this.#answer(message)) this.#fail(message);
        break;
      case "unsubscribed":
        if (message.request_id != null) this.#answer(message);
        else this.#takeRevocation(message);
        break;
      default:
        // An event of a later version is ignored.
        if (message.request_id != null) this.#answer(message);
        else this.#identify(message);
    }
  }

  #takeGreeting(message) {
    const former = this.#session;
    this.#session = { id: message.session_id, held: new Map() };
    if (this.#transport.name === "websocket") {
      this.#hadSocket = true;
      this.#cursor = { id: "", topics: new Set() }; // which is no longer where this client is
    }
    this.#limits = message.limits ?? {};
    this.#openedAt = performance.now();
    this.#announced = null;
    this.#refused.clear();
    clearTimeout(this.#timer);
    this.#pingedAt = 0;
    this.#heartbeatMs = 25_000; // until the server has said another
    this.#hear(message.heartbeat_interval);
    this.#watch();
    const attempt = this.#attempt;
    this.#change("connected", { code: null, transport: this.#transport.name });
    if (attempt !== this.#attempt) return;
    this.#identify(message);
    const { max_bandwidth } = this.#options;
    if (max_bandwidth != null) this.setBandwidth(max_bandwidth);
    const holdsTopics = former?.held.size > 0 || this.#userId != null;
    if (former?.id && message.session_id && holdsTopics) this.#restore(former);
    else this.#reconcile();
  }

  /** The server ended subscriptions, as those that a new token does not allow. */
  #takeRevocation({ subscription_type: type, targets, reason }) {
    const refusal = { code: "FORBIDDEN", message: `ended: ${reason}` };
    for (const target of targets) this.#refuse(`${type}:${target}`, refusal);
  }

  #takeData(message, exact) {
    if (this.#options.numbers === "text") {
      message.sequence = Number(message.sequence);
      if (message.previous != null) message.previous = Number(message.previous);
    }
    const topic = this.#topicOf(message);
    // Messages for the user before the former position is restored come again after it.
    if (topic === `user:${this.#userId}` && !this.#account.isLive(topic)) return;
    this.#account.data(topic, message);
    if (!this.#values.has(topic)) this.#values.set(topic, new Values());
    const whole = this.#values.get(topic).take(message, exact);
    if (whole === null) {
      this.#resync(topic, message);
      return;
    }
    whole.topic = topic;
    this.#dispatch(whole);
    this.#emit("message", whole);
  }

  /** A message names its topic, or belongs to that of its stock or market. */
  #topicOf({ subscription_type: type, target, stock_code: stock, market }) {
    const named = `${type}:${target}`;
    if (type in KINDS && this.#account.position(named)) return named;
    return stock === undefined ? `market:${market}` : `stock:${stock}`;
  }

  #dispatch(message) {
    const deliver = (it) => it.deliver(message);
    each(this.#wanted.get(message.topic), deliver);
    if (message.topic === `user:${this.#userId}`) each(this.#wanted.get("user"), deliver);
  }

  /** Ask once for whole messages: a delta has no base here. */
  #resync(topic, message) {
    this.#values.delete(topic);
    if (this.#asked.has(topic)) return;
    this.#asked.add(topic);
    this.#account.resync(topic, message);
    this.#request({ type: "resync", ...naming([topic]) }, (answer) => {
      this.#asked.delete(topic);
      this.#fail(answer);
    });
  }
}

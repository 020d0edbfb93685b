/**
 * One connection for all tabs of an origin: a Streamer in a SharedWorker, which runs this same file.
 *
 *     import { share } from "./streamer-shared.js";
 *     const streamer = share("wss://example.com/v1/ws", { token });
 *
 * A browser starts a worker only from the page's own origin, so the page has to serve a copy of this
 * file and of streamer.js.
 */

import { callOut, checked, each, Streamer, StreamerError } from "./streamer.js";

const EVENTS = ["state", "gap", "violation"];
const CLOSED = "the subscription was closed";

/** Return a client that shares its connection; an ordinary one where there are no such workers. */
export function share(url, options) {
  return globalThis.SharedWorker ? new SharedStreamer(url, options) : new Streamer(url, options);
}

// In a tab

class SharedStreamer {
  #port;
  #listeners = new Map();
  #subscriptions = new Map();
  #answers = new Map();
  #lastId = 0;
  #isAway = false;
  #token;
  #state = "connecting";

  constructor(url = "/v1/ws", { token, ...options } = {}) {
    this.#token = typeof token === "function" ? token : () => token;
    const absolute = new URL(url, location.href).href;
    // Tabs with the same address and options have the same worker. A token is no part of its name.
    const name = JSON.stringify({ url: absolute, options, hasToken: token !== undefined });
    const worker = new SharedWorker(import.meta.url, { type: "module", name });
    worker.onerror = () => this.#emit("error", new Error("the shared worker cannot be started"));
    this.#port = worker.port;
    this.#port.onmessage = ({ data }) => this.#receive(data);
    const leave = () => this.#leave();
    const comeBack = () => this.#comeBack();
    addEventListener("pagehide", leave);
    addEventListener("pageshow", comeBack);
    document.addEventListener("freeze", leave);
    document.addEventListener("resume", comeBack);
    this.#holdLock();
  }

  get state() {
    return this.#state;
  }

  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  subscribe(topics, options, onMessage) {
    if (typeof options === "function") [options, onMessage] = [{}, options];
    const id = ++this.#lastId;
    // The worker would throw where nobody sees it.
    const subscription = { topics: checked(topics, options), close: () => this.#unsubscribe(id) };
    subscription.ready = new Promise((resolve, reject) => {
      this.#subscriptions.set(id, { subscription, options, onMessage, resolve, reject });
    });
    subscription.ready.catch(() => {}); // the refusal is an "error" event, too
    this.#send("subscribe", { id, topics: subscription.topics, options });
    return subscription;
  }

  /** Return a promise of the account of the shared connection. */
  account() {
    return this.#ask("account");
  }

  position(topic) {
    return this.#ask("position", topic);
  }

  /** End this tab's subscriptions; the connection ends with those of the last tab. */
  close() {
    for (const { reject } of this.#subscriptions.values()) reject(new Error(CLOSED));
    this.#subscriptions.clear();
    this.#send("leave");
  }

  #ask(method, ...values) {
    const id = ++this.#lastId;
    this.#send("ask", { id, method, values });
    return new Promise((resolve) => this.#answers.set(id, resolve));
  }

  #unsubscribe(id) {
    this.#subscriptions.get(id)?.reject(new Error(CLOSED));
    this.#subscriptions.delete(id);
    this.#send("unsubscribe", { id });
  }

  #send(request, values = {}) {
    this.#port.postMessage({ request, ...values });
  }

  #emit(name, value) {
    each(this.#listeners.get(name), (listener) => callOut(listener, value));
  }

  #receive({ event, id, value }) {
    const entry = this.#subscriptions.get(id);
    if (event === "update") entry?.onMessage(value);
    else if (event === "ready") entry?.resolve();
    else if (event === "refused") entry?.reject(restored(value));
    else if (event === "answer") this.#answers.get(id)(value), this.#answers.delete(id);
    else if (event === "token") this.#giveToken(id, value);
    else {
      if (event === "state") this.#state = value.state;
      this.#emit(event, event === "error" ? restored(value) : value);
    }
  }

  async #giveToken(id, request) {
    try {
      this.#send("token", { id, token: await this.#token(request) });
    } catch (error) {
      this.#send("token", { id, problem: String(error?.message || error || "no token") });
    }
  }

  /** Let the worker see the end of this tab, however it comes: it gets the lock then. */
  #holdLock() {
    const name = `streamer-${Math.random()}`;
    navigator.locks?.request(name, () => {
      this.#send("lock", { name });
      return new Promise(() => {});
    });
  }

  /** A tab that is frozen reads nothing: what the worker sent it would pile up. */
  #leave() {
    this.#isAway = true;
    this.#send("leave");
  }

  #comeBack() {
    if (!this.#isAway) return;
    this.#isAway = false;
    for (const [id, { subscription, options }] of this.#subscriptions) {
      this.#send("subscribe", { id, topics: subscription.topics, options });
    }
  }
}

/** An error keeps its own members on the way between worker and tab only as a plain object. */
function plain({ code, message, topic, details, refusals }) {
  return { code, message, topic, details, refusals: refusals?.map(plain) };
}

function restored({ message, code, details, ...more }) {
  return Object.assign(new StreamerError(code, message, details), more);
}

// In the worker

function serveTabs() {
  const { url, options, hasToken } = JSON.parse(self.name);
  const tabs = new Set();
  const waiting = new Map();
  let lastId = 0;

  /** Ask the tab that came last: the others may be frozen. */
  function askForToken(request) {
    return new Promise((resolve, reject) => ask({ request, resolve, reject }));
  }

  function ask(question) {
    const id = ++lastId;
    question.tab = [...tabs].at(-1);
    if (!question.tab) return question.reject(new Error("no tab is left to give a token"));
    waiting.set(id, question);
    question.tab.port.postMessage({ event: "token", id, value: question.request });
  }

  const token = hasToken ? askForToken : undefined;
  const streamer = new Streamer(url, { ...options, token, connect: false });
  for (const event of EVENTS) streamer.on(event, (value) => tell(event, value));
  streamer.on("error", (error) => tell("error", plain(error)));

  function tell(event, value) {
    for (const { port } of tabs) port.postMessage({ event, value });
  }

  self.onconnect = ({ ports: [port] }) => {
    const tab = { port, subscriptions: new Map() };
    const requests = {
      subscribe({ id, topics, options: wanted }) {
        join();
        const subscription = streamer.subscribe(topics, wanted, (value) =>
          port.postMessage({ event: "update", id, value }),
        );
        tab.subscriptions.set(id, subscription);
        const answer = (message) => {
          // A tab that is away subscribes again by the same id.
          if (tab.subscriptions.get(id) === subscription) port.postMessage({ id, ...message });
        };
        subscription.ready.then(
          () => answer({ event: "ready" }),
          (error) => answer({ event: "refused", value: plain(error) }),
        );
      },
      unsubscribe({ id }) {
        tab.subscriptions.get(id)?.close();
        tab.subscriptions.delete(id);
      },
      ask: ({ id, method, values }) =>
        port.postMessage({ event: "answer", id, value: streamer[method](...values) }),
      token({ id, token: given, problem }) {
        const question = waiting.get(id);
        waiting.delete(id);
        if (problem !== undefined) question?.reject(new Error(problem));
        else question?.resolve(given);
      },
      lock: ({ name }) => navigator.locks.request(name, leave),
      leave,
    };

    function join() {
      if (tabs.has(tab)) return;
      tabs.add(tab);
      port.postMessage({ event: "state", value: { state: streamer.state } });
      streamer.connect();
    }

    function leave() {
      for (const subscription of tab.subscriptions.values()) subscription.close();
      tab.subscriptions.clear();
      tabs.delete(tab);
      if (tabs.size === 0) streamer.close();
      // A tab that is gone answers nothing: another one is asked.
      for (const [id, question] of [...waiting]) {
        if (question.tab === tab && waiting.delete(id)) ask(question);
      }
    }

    port.onmessage = ({ data: { request, ...values } }) => requests[request](values);
    join();
  };
}

if (globalThis.SharedWorkerGlobalScope && self instanceof SharedWorkerGlobalScope) serveTabs();

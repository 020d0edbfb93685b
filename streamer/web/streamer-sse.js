/**
 * Server-sent events for streamer.js, which loads this file where no WebSocket can be opened.
 *
 * It looks like a WebSocket to the client: requests are answered here. A stream has its topics in
 * its URL, so a change of topics opens another one, which resumes from the cursor of the last event.
 */

/** HTTP statuses as the close codes that mean the same. */
const CLOSE_CODES = { 401: 4001, 429: 1013, 503: 1013 };
const FINAL = 4500;
const RETURNING = 1012;
/** Topics that a server allows in a stream; more would make a URL that proxies refuse. */
const MAX_TOPICS = 100;
/** Beyond it, a timer fires at once. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/**
 * `cursor`, {id, topics, returnsAt}, outlives the connection: the id of the last event, the topics in
 * it, and when to try a WebSocket again.
 * `widest` makes one set of options of several: a stream has one for all of its topics. After some
 * `lastsMs`, it gives way to a WebSocket.
 */
export function openEventStream({ url, token, fetch, widest, kinds, cursor, lastsMs, ...on }) {
  const topics = new Map(); // topic -> its options
  let pending = []; // requests that are not answered yet
  const refused = new Map(); // type -> the refusals for them
  let stream = new AbortController();
  let isScheduled = false;
  let wasOpen = false;
  // What kept WebSockets away may have passed: a server that was down, a network that was left.
  // The time is that of all streams in turn, since a proxy may cut each of them before.
  cursor.returnsAt ??= performance.now() + lastsMs * (0.5 + Math.random());
  const returning = setTimeout(
    () => {
      cursor.returnsAt = undefined;
      on.onClose(RETURNING, "time to try a WebSocket");
    },
    Math.min(Math.max(cursor.returnsAt - performance.now(), 0), MAX_TIMER_MS),
  );

  function say(message) {
    on.onText(JSON.stringify(message));
  }

  function query() {
    const all = [...topics].map(([topic, options]) => ({
      ...options,
      kinds: options.kinds ?? kinds[topic.split(":", 1)[0]],
    }));
    const { kinds: some, ...options } = widest(all);
    const target = new URL(url);
    target.protocol = target.protocol.replace("ws", "http");
    target.pathname = target.pathname.replace(/ws$/, "stream");
    for (const topic of topics.keys()) target.searchParams.append("topic", topic);
    if ([...topics.values()].some((options) => options.kinds)) target.searchParams.set("kinds", some);
    for (const [name, value] of Object.entries(options)) {
      if (value !== undefined) target.searchParams.set(name, value);
    }
    if (cursor.id) target.searchParams.set("last_event_id", cursor.id);
    return target;
  }

  /** Answer the requests whose topics these are: granted ones, with positions, or refused ones. */
  function answer({ subscription_type: type, targets, positions, rejected }) {
    if (type === "user" && targets.length > 0) {
      const [userId] = targets;
      const fresh = cursor.topics.has(`user:${userId}`) ? [] : [userId];
      const own = { [`user:${userId}`]: positions[userId] };
      say({ type: "authenticated", user_id: userId, positions: own, fresh });
    }
    const isOurs = (target) => topics.has(`${type}:${target}`);
    for (const request of pending.filter((one) => one.subscription_type === type)) {
      const own = request.targets.filter((target) => targets.includes(target) && isOurs(target));
      say({
        type: "subscribed",
        request_id: request.request_id,
        targets: own,
        positions,
        rejected: [...rejected, ...(refused.get(type) ?? [])].filter(({ target }) =>
          request.targets.includes(target),
        ),
        // The stream begins now, whatever this client held.
        fresh: own.filter((target) => !cursor.topics.has(`${type}:${target}`)),
      });
    }
    pending = pending.filter((one) => one.subscription_type !== type);
    refused.delete(type);
    for (const { target } of rejected) topics.delete(`${type}:${target}`);
    for (const target of targets) cursor.topics.add(`${type}:${target}`);
  }

  function take(data) {
    const message = /"(subscribed|closed)"/.test(data) ? JSON.parse(data) : {};
    if (message.type === "closed") on.onClose(message.code, message.reason);
    else if (message.type === "subscribed") answer(message);
    else return on.onText(data);
  }

  /** Have the next stream begin at the present, with whole messages. */
  function forget() {
    cursor.id = "";
    cursor.topics.clear();
  }

  /** Leave topics out, and answer at once the requests of types of which none is left. */
  function refuse(rejected, message) {
    for (const one of rejected) {
      const [, type, target] = /^([^:]*):(.*)$/s.exec(one.topic);
      const refusal = { code: one.code, message: one.message ?? message, target };
      refused.set(type, [...(refused.get(type) ?? []), refusal]);
      topics.delete(one.topic);
    }
    const remaining = [...topics.keys()].map((topic) => topic.split(":", 1)[0]);
    for (const type of [...refused.keys()].filter((type) => !remaining.includes(type))) {
      answer({ subscription_type: type, targets: [], positions: {}, rejected: [] });
    }
  }

  /** The topics that a parameter of the stream, which the server does not take, comes from. */
  function causes(parameter, code) {
    const given = query().searchParams.get(parameter);
    return [...topics]
      .filter(([, options]) => given !== null && String(options[parameter]) === given)
      .map(([topic]) => ({ topic, code }));
  }

  /** Refuse the topics that the server does not take, and ask for the others; else close. */
  async function fail(response, signal) {
    const { code, message, details } = await response.json().catch(() => ({}));
    if (signal.aborted) return;
    const rejected = details?.rejected ?? causes(details?.parameter, code);
    refuse(rejected, message);
    if (rejected.length > 0) reopen();
    else if (code === "INVALID_TOKEN") on.onClose(FINAL, message);
    else
      on.onClose(
        CLOSE_CODES[response.status] ?? 1006,
        message ?? `HTTP ${response.status}`,
        wasOpen,
      );
  }

  async function read({ body }, signal) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let data = [];
    let id;
    for (;;) {
      const { done, value } = await reader.read();
      if (signal.aborted) return; // the next stream resumes from before this
      if (done) break;
      wasOpen = true;
      on.onAlive();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ")) data.push(line.slice(6));
        else if (line.startsWith("id: ")) id = line.slice(4);
        else if (line === "") {
          // No cursor is in the middle of a batch, where a listener may have closed the client.
          if (data.length > 0 && take(data.join("\n")) === "cut") forget();
          else if (id) cursor.id = id; // a stream begins with an id that has no event
          if (signal.aborted) return;
          data = [];
        }
      }
    }
    on.onClose(1006, "the stream was cut", wasOpen);
  }

  async function open() {
    isScheduled = false;
    stream.abort();
    const surplus = [...topics.keys()].slice(MAX_TOPICS);
    refuse(
      surplus.map((topic) => ({ topic, code: "TOO_MANY_TARGETS" })),
      `a stream of events has at most ${MAX_TOPICS} topics`,
    );
    if (topics.size === 0) return;
    const { signal } = (stream = new AbortController());
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    try {
      const response = await fetch(query(), { headers, signal, cache: "no-store" });
      if (signal.aborted) return;
      on.onAlive(Number(response.headers.get("heartbeat-interval")));
      const isStream = response.headers.get("content-type")?.startsWith("text/event-stream");
      if (response.ok && !isStream) throw new Error("the answer is no stream of events");
      await (response.ok ? read : fail)(response, signal);
    } catch (error) {
      if (!signal.aborted) on.onClose(1006, error.message, wasOpen);
    }
  }

  function reopen() {
    if (!isScheduled) queueMicrotask(open);
    isScheduled = true;
  }

  const requests = {
    subscribe({ subscription_type: type, targets, ...request }) {
      for (const target of targets) topics.set(`${type}:${target}`, request);
      pending.push({ ...request, subscription_type: type, targets });
      reopen();
    },
    unsubscribe({ subscription_type: type, targets, request_id }) {
      for (const target of targets) {
        topics.delete(`${type}:${target}`);
        cursor.topics.delete(`${type}:${target}`);
      }
      say({ type: "unsubscribed", request_id });
      reopen();
    },
    /** Begin again with whole messages: a stream has no other way to ask for them. */
    resync() {
      forget();
      stream.abort();
      on.onClose(1006, "a delta does not fit");
    },
    /** Without topics there is no stream, which would be silent for too long. */
    ping() {
      if (topics.size === 0) on.onAlive();
    },
    authenticate({ token: renewed, request_id }) {
      token = renewed;
      say({ type: "authenticated", request_id });
      reopen();
    },
  };

  queueMicrotask(() => say({ type: "connected" }));
  return {
    name: "sse",
    /** Whether anything has come on a stream. */
    get wasOpen() {
      return wasOpen;
    },
    send: (message) => queueMicrotask(() => requests[message.type]?.(message)),
    close() {
      clearTimeout(returning);
      stream.abort();
    },
  };
}

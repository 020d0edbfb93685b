// A client that a test controls: commands as lines of JSON on stdin, events as lines on stdout.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const { Streamer } = await import(pathToFileURL(process.argv[2]));
const tokens = [];
const subscriptions = new Map();
let streamer;
let isBlocking;

/** A WebSocket where none can be opened, until `unblock`: what answers is plain HTTP. */
class BlockedWebSocket extends WebSocket {
  constructor(url, protocols) {
    super(isBlocking ? url.replace("/v1/ws", "/blocked") : url, protocols);
  }
}

function say(event, value) {
  process.stdout.write(`${JSON.stringify({ event, value })}\n`);
}

const commands = {
  open({ url, options, asksForToken, isBlocked }) {
    isBlocking = isBlocked;
    options.WebSocket = BlockedWebSocket;
    const token = ({ why }) =>
      new Promise((resolve, reject) => {
        tokens.push({ resolve, reject });
        say("token", why);
      });
    streamer = new Streamer(url, { ...options, ...(asksForToken ? { token } : {}), connect: false });
    for (const name of ["state", "gap", "violation"]) {
      streamer.on(name, (value) => say(name, value));
    }
    streamer.on("error", ({ code, message, topic }) => say("error", { code, message, topic }));
    streamer.connect();
  },
  token({ token, problem }) {
    const { resolve, reject } = tokens.shift();
    if (problem) reject(new Error(problem));
    else resolve(token);
  },
  subscribe({ id, topics, options }) {
    const subscription = streamer.subscribe(topics, options ?? {}, (message) =>
      say("update", { id, message }),
    );
    subscriptions.set(id, subscription);
    commands.await({ id });
  },
  await({ id }) {
    subscriptions.get(id).ready.then(
      () => say("ready", { id, refusals: [] }),
      (error) => {
        const codes = error.refusals?.map(({ topic, code }) => [topic, code]);
        say("ready", { id, refusals: codes ?? [[null, error.message]] });
      },
    );
  },
  unsubscribe: ({ id }) => subscriptions.get(id).close(),
  closeOn({ name, state }) {
    const off = streamer.on(name, (value) => {
      if (state !== undefined && value.state !== state) return;
      off();
      streamer.close();
    });
  },
  closeOnMessage({ topic, price }) {
    const subscription = streamer.subscribe(topic, (message) => {
      if (price !== undefined && message.price !== price) return;
      subscription.close();
      streamer.close();
    });
  },
  connectOn({ name, state }) {
    const off = streamer.on(name, (value) => {
      if (value.state !== state) return;
      off();
      streamer.connect();
    });
  },
  subscribeOnMessage({ id, topic }) {
    const subscription = streamer.subscribe(topic, () => {
      subscription.close();
      commands.subscribe({ id, topics: [topic] });
    });
  },
  timer: ({ milliseconds }) => setTimeout(() => say("timer", null), milliseconds),
  connect: () => streamer.connect(),
  close: () => streamer.close(),
  block: () => (isBlocking = true),
  unblock: () => (isBlocking = false),
  probe: () => streamer.probe(),
  bandwidth: ({ value }) => streamer.setBandwidth(value),
  account: () => say("account", streamer.account()),
  position: ({ topic }) => say("position", streamer.position(topic) ?? null),
  look: () =>
    say("look", {
      state: streamer.state,
      sessionId: streamer.sessionId,
      userId: streamer.userId,
      transport: streamer.transport,
    }),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...values } = JSON.parse(line);
  commands[command](values);
}
process.exit();

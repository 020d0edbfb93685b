// The stream of events by itself.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { test } from "node:test";

import { KINDS, widest } from "../../streamer/web/streamer.js";
import { openEventStream } from "../../streamer/web/streamer-sse.js";

function open(options) {
  return openEventStream({
    url: "ws://127.0.0.1:1/v1/ws",
    fetch,
    widest,
    kinds: KINDS,
    cursor: { id: "", topics: new Set() },
    lastsMs: 60_000,
    onAlive: () => {},
    onText: () => {},
    onClose: assert.fail,
    ...options,
  });
}

/** A server that answers each request for a stream with this; returns its URL. */
async function serving(context, answer) {
  const server = createServer(answer).listen(0, "127.0.0.1");
  await once(server, "listening");
  context.after(() => server.closeAllConnections());
  context.after(() => server.close());
  return `ws://127.0.0.1:${server.address().port}/v1/ws`;
}

const STREAM = { "Content-Type": "text/event-stream" };
const WANTED = { type: "subscribe", subscription_type: "stock", targets: ["A"], request_id: 1 };

test("without topics there is nothing that could be silent", async () => {
  let alive = 0;
  const transport = open({ onAlive: () => alive++ });
  transport.send({ type: "ping" });
  await new Promise(setImmediate);
  assert.equal(alive, 1);
  transport.close();
});

test("the server says how often a heartbeat comes", async (context) => {
  const url = await serving(context, (_, response) => {
    response.writeHead(200, { ...STREAM, "Heartbeat-Interval": "60" }).flushHeaders();
  });
  let transport;
  const heartbeat = await new Promise((onAlive) => {
    transport = open({ url, onAlive });
    transport.send(WANTED);
  });
  assert.equal(heartbeat, 60);
  transport.close();
});

test("a refusal that comes too late closes nothing", async (context) => {
  let requests = 0;
  const url = await serving(context, (_, response) => {
    if (requests++ === 0) {
      response.writeHead(400, { "Content-Type": "application/json" }).write("{"); // and no more
    } else {
      response.writeHead(200, STREAM).write("data: {}\n\n");
    }
  });
  const closes = [];
  let transport;
  await new Promise((resolve) => {
    transport = open({
      url,
      onAlive: () => requests === 1 && transport.send({ ...WANTED, targets: ["B"] }),
      onText: (text) => text === "{}" && resolve(),
      onClose: (...how) => closes.push(how),
    });
    transport.send(WANTED);
  });
  assert.deepEqual(closes, []);
  transport.close();
});

test("what follows a new stream is not taken from the old one", async () => {
  const cursors = [];
  const texts = [];
  let transport;
  const done = new Promise((resolve) => {
    transport = open({
      async fetch(url) {
        const isFirst = cursors.push(new URL(url).searchParams.get("last_event_id")) === 1;
        const events = isFirst ? ["1", "2", "3"] : ["2", "3", "4"];
        const pull = (controller) => {
          const event = events.shift();
          if (event) controller.enqueue(new TextEncoder().encode(`data: ${event}\nid: ${event}\n\n`));
        };
        return new Response(new ReadableStream({ pull }), { headers: STREAM });
      },
      onText(text) {
        if (/^\d$/.test(text)) texts.push(text);
        if (text === "1") transport.send({ ...WANTED, targets: ["B"] });
        if (text === "4") resolve();
      },
    });
  });
  transport.send(WANTED);
  await done;
  transport.close();
  assert.deepEqual([cursors, texts], [[null, "1"], ["1", "2", "3", "4"]]);
});

test("the time to try a WebSocket is that of all streams in turn", async (context) => {
  const url = await serving(context, (_, response) => {
    response.writeHead(200, STREAM).end("data: 1\n\n");
  });
  const cursor = { id: "", topics: new Set() };
  const times = [];
  for (let stream = 0; stream < 2; stream++) {
    await new Promise((onClose) => {
      open({ url, cursor, lastsMs: 60_000, onClose }).send(WANTED);
    });
    times.push(cursor.returnsAt);
  }
  assert.equal(times[0], times[1]);
  const [code] = await new Promise((resolve) => {
    cursor.returnsAt = performance.now();
    open({ url, cursor, onClose: (...how) => resolve(how) });
  });
  assert.deepEqual([code, cursor.returnsAt], [1012, undefined]);
});

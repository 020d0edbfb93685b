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
    response.writeHead(200, { "Heartbeat-Interval": "60" }).flushHeaders();
  });
  let transport;
  const heartbeat = await new Promise((onAlive) => {
    transport = open({ url, onAlive });
    transport.send(WANTED);
  });
  assert.equal(heartbeat, 60);
  transport.close();
});

// The stream of events without topics, which has no connection.

import assert from "node:assert/strict";
import { test } from "node:test";

import { KINDS, widest } from "../../streamer/web/streamer.js";
import { openEventStream } from "../../streamer/web/streamer-sse.js";

test("without topics there is nothing that could be silent", async () => {
  let alive = 0;
  const transport = openEventStream({
    url: "ws://127.0.0.1:1/v1/ws",
    widest,
    kinds: KINDS,
    cursor: { id: "", topics: new Set() },
    lastsMs: 60_000,
    onAlive: () => alive++,
    onText: () => {},
    onClose: assert.fail,
  });
  transport.send({ type: "ping" });
  await new Promise(setImmediate);
  assert.equal(alive, 1);
  transport.close();
});

// What a page is told without a server: promises and events of clients that are closed.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Streamer } from "../../streamer/web/streamer.js";

/** A client that connects when it is asked to, where no server is. */
function client() {
  return new Streamer("ws://127.0.0.1:1/v1/ws", { connect: false, fallback: false });
}

test("a subscription that is closed before its answer is not ready", async () => {
  const subscription = client().subscribe("stock:A", () => {});
  subscription.close();
  await assert.rejects(subscription.ready, { message: "the subscription was closed" });
});

test("nor is that of a client that is closed, until it connects again", async () => {
  const streamer = client();
  const subscription = streamer.subscribe("stock:A", () => {});
  const { ready } = subscription;
  streamer.connect();
  assert.equal(subscription.ready, ready);
  streamer.close();
  await assert.rejects(ready, { message: "disconnected: closed" });
  await assert.rejects(subscription.ready, { message: "disconnected: closed" });
  streamer.connect();
  assert.notEqual(subscription.ready, ready);
  const again = subscription.ready;
  streamer.close();
  await assert.rejects(again, { message: "disconnected: closed" });
});

test("a page that does not use `ready` sees nothing of it", async () => {
  const streamer = client();
  streamer.subscribe("stock:A", () => {}).close();
  streamer.subscribe("stock:A", () => {});
  streamer.close();
  await new Promise(setImmediate); // the runner fails a test with an unhandled rejection
});

test("a subscription to no topics is ready", async () => {
  await client().subscribe([], () => {}).ready;
});

test("all listeners are told of states in their order", () => {
  const streamer = client();
  const states = [];
  streamer.on("state", ({ state }) => state === "connecting" && streamer.close());
  streamer.on("state", ({ state }) => states.push(state));
  streamer.connect();
  assert.deepEqual(states, ["connecting", "disconnected"]);
});

test("a client that is closed twice says so once", () => {
  const streamer = client();
  const states = [];
  streamer.on("state", ({ state }) => {
    states.push(state);
    if (state === "disconnected") streamer.close();
  });
  streamer.connect();
  streamer.close();
  streamer.close();
  assert.deepEqual(states, ["connecting", "disconnected"]);
});

test("a listener that replaces itself is told of the next event", () => {
  const streamer = client();
  const states = [];
  function listen() {
    const off = streamer.on("state", ({ state }) => {
      off();
      if (states.push(state) < 100) listen();
    });
  }
  listen();
  streamer.connect();
  streamer.close();
  assert.deepEqual(states, ["connecting", "disconnected"]);
});

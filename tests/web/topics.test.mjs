// Topics and options that a page may write.

import assert from "node:assert/strict";
import { test } from "node:test";

import { checked } from "../../streamer/web/streamer.js";

test("a topic is a type, a colon and a target; or the user's own", () => {
  assert.deepEqual(checked(["stock:A", "market:a:b", "user", "stock:A"], {}), ["stock:A", "market:a:b", "user"]);
  for (const topic of ["A", "", ":A", "stocks", "users", "stock", "constructor:A", "__proto__:A"]) {
    assert.throws(() => checked(topic, {}), { name: "TypeError", message: /is no topic/ }, topic);
  }
});

test("kinds are of those that the topic carries", () => {
  checked("stock:A", { kinds: ["price"] });
  assert.throws(() => checked("market:A", { kinds: ["price"] }), /the kinds of market:A are status/);
});

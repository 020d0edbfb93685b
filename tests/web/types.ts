// What the type checker must accept, and what it must refuse: checked by tests/web/test_npm.py.

import { KINDS, Streamer, StreamerError, type Kind, type Update } from "./streamer.js";
import { share } from "./streamer-shared.js";

const plain = new Streamer("ws://127.0.0.1:8765/v1/ws");
const exact = new Streamer("/v1/ws", { numbers: "text", token: async ({ why }) => `${why}` });

plain.subscribe("stock:005930", { kinds: ["price"], max_rate: 4 }, (message) => {
  if (message.type === "price_update") {
    const price: number = message.price;
    console.log(price, message.topic, message.sequence + 1);
  } else if (message.type === "gap") {
    console.log(message.reason === "transport_changed", message.epoch);
  } else if (message.type === "orderbook_update") {
    const best: number | undefined = message.bids[0]?.price;
    console.log(best, message.changed?.asks.length);
  }
});
exact.subscribe(["stock:005930"], (message: Update<"text">) => {
  if (message.type === "price_update") {
    const price: string = message.price;
    // @ts-expect-error: it keeps the producer's digits, as text
    const wrong: number = message.price;
    console.log(price, wrong);
  }
});
// @ts-expect-error: there is no such kind
plain.subscribe("stock:005930", { kinds: ["prices"] }, () => {});
// @ts-expect-error: there is no such event
plain.on("states", () => {});
const stop: () => void = plain.on("state", ({ state, retryInMs }) => console.log(state, retryInMs));
stop();
plain.on("error", (error) => error instanceof StreamerError && console.log(error.code));
const kinds: Kind[] = KINDS.stock;
console.log(kinds, plain.account().violations, plain.position("stock:005930")?.sequence);
const shared = share("/v1/ws", { numbers: "text" });
shared.subscribe("user", (message) => console.log(message.type));

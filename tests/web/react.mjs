// Renders a component with the hooks of docs/examples, and writes what it shows at each change.

import { createInterface } from "node:readline";

import { createElement, StrictMode } from "react";
import { create } from "react-test-renderer";

import { Streamer } from "./streamer.js";
import { useConnection, useLatest } from "./use-streamer.js";

globalThis.IS_REACT_ACT_ENVIRONMENT = false;

function Price({ streamer, stock }) {
  const state = useConnection(streamer);
  const update = useLatest(streamer, `stock:${stock}`, "price_update");
  const text = `${state} ${stock} ${update?.price ?? "-"}`;
  process.stdout.write(`${JSON.stringify(text)}\n`);
  return createElement("p", null, text);
}

let renderer;
let streamer;

for await (const line of createInterface({ input: process.stdin })) {
  const { url, stock } = JSON.parse(line);
  if (url) streamer = new Streamer(url);
  const element = stock && createElement(StrictMode, null, createElement(Price, { streamer, stock }));
  if (renderer) renderer.update(element);
  else renderer = create(element);
}
process.exit();

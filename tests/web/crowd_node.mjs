// A crowd in Node: a line of JSON with its plan, then a report for each empty line on stdin.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

import { Crowd } from "./crowd.mjs";

const { Streamer } = await import(pathToFileURL(process.argv[2]));
let crowd;

/** Keep the one core that all these clients have from everything else. */
function block(milliseconds) {
  const end = performance.now() + milliseconds;
  while (performance.now() < end);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { url, plans, options, tokens, blockMs } = JSON.parse(line);
  if (url) crowd = new Crowd(Streamer, url, plans, options, tokens);
  if (blockMs) block(blockMs);
  process.stdout.write(`${JSON.stringify(crowd.report())}\n`);
}
process.exit();

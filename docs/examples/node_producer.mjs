// Publish with a position from another language: node node_producer.mjs HOST PORT SCRIPT 005930 72500
//
// SCRIPT is the file publish.lua of the Python package. This speaks to Redis with nothing but Node, to
// show all that is needed; a program of yours uses its Redis client's EVAL instead.
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { connect } from "node:net";

const [host, port, scriptFile, code, price] = process.argv.slice(2);
const topic = `stock:${code}`;
const publisherId = randomBytes(8).toString("hex");
const update = {
  type: "price_update", stock_code: code, price: Number(price), change: 0, change_percent: 0, volume: 1,
  timestamp: new Date().toISOString(),
};

const keys = [
  `streamer:{${topic}}:published:${publisherId}`,
  `streamer:{${topic}}:position`,
  `streamer:{${topic}}:history`,
];
const number = 1;                               // counts up with each publication of this process
const command = [
  "EVAL", readFileSync(scriptFile, "utf8"), keys.length, ...keys,
  number, number % 128, 0,                      // its record; no publication that must have gone before
  630,                                          // seconds for which a retry is recognised
  `stock:${code}:price`,
  JSON.stringify(update).slice(0, -1),          // without the last brace: the position is added
  "price",
  `${randomBytes(8).toString("hex")}.${number}`, // names the epoch, if this is the topic's first
  "", 0,                                        // position of the last receipt of this topic: none yet
  5000, 300_000,                                // history: entries, milliseconds
].map(String);

const socket = connect(Number(port), host);
socket.write(`*${command.length}\r\n` + command.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join(""));
socket.once("data", (reply) => {
  const [, , epoch, sequence] = reply.toString().split("\r\n");   // *3, $LENGTH, epoch, :sequence, …
  if (!epoch) throw new Error(reply.toString());
  console.log(`${price} is at ${epoch} ${sequence.slice(1)}`);
  socket.end();
});

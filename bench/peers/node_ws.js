// Node's ws and ioredis: the frame is made once and written to each client's socket; with DEFLATE, each
// client has a compressor, as ws does it; with TLS_CERTIFICATE and TLS_KEY (PEM files), clients use wss://.
"use strict";

const { readFileSync } = require("node:fs");
const { createServer } = require("node:https");
const { Redis } = require("ioredis");
const { Sender, WebSocketServer } = require("ws");

const [redisPort, port] = process.argv.slice(2).map(Number);
const deflate = Boolean(process.env.DEFLATE);
// Its default sends messages below 1,024 bytes plain.
const perMessageDeflate = deflate && { threshold: 64 };
const clients = new Map(); // channel -> Set of WebSocket

const certificate = process.env.TLS_CERTIFICATE;
const address = { host: "127.0.0.1", port, backlog: 4096 };
const server = new WebSocketServer(certificate ? { noServer: true, perMessageDeflate } : { ...address, perMessageDeflate });
if (certificate) {
  const files = { cert: readFileSync(certificate), key: readFileSync(process.env.TLS_KEY) };
  const secured = createServer(files).listen(address);
  secured.on("upgrade", (request, socket, head) => {
    server.handleUpgrade(request, socket, head, (client) => server.emit("connection", client));
  });
}

server.on("connection", (client) => {
  client.on("message", (request) => {
    const { subscribe } = JSON.parse(request);
    for (const channel of subscribe) {
      if (!clients.has(channel)) clients.set(channel, new Set());
      clients.get(channel).add(client);
    }
    client.send(JSON.stringify({ subscribed: subscribe.length }));
  });
  client.on("close", () => clients.forEach((members) => members.delete(client)));
  client.on("error", () => client.terminate());
});

const redis = new Redis(redisPort);
redis.psubscribe("stock:*");
redis.on("pmessageBuffer", (_pattern, channel, payload) => {
  const members = clients.get(channel.toString());
  if (!members) return;
  if (deflate) {
    for (const client of members) client.send(payload, { binary: false });
    return;
  }
  const options = { fin: true, opcode: 1, mask: false, readOnly: true, rsv1: false };
  const frame = Buffer.concat(Sender.frame(payload, options));
  for (const client of members) client._socket.write(frame);
});

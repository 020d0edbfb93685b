// A client for browsers in one module: it reconnects, and asks for what it missed.

/**
 * Keep a subscription, over reconnects, until `stop` of the returned object is called.
 * `onMessage` gets each data message and each gap; `onState` a text for people.
 */
export function follow({ url, subscription_type, targets, onMessage, onState = () => {} }) {
  const positions = new Map(); // target -> {epoch, sequence}: the last that was received
  let socket;
  let failures = 0;
  let retryAfterMs = null;
  let stopped = false;

  function receive(message) {
    switch (message.type) {
      case "connected":
        socket.send(JSON.stringify({
          type: "subscribe",
          subscription_type,
          targets,
          since: positions.size ? Object.fromEntries(positions) : undefined,
        }));
        break;
      case "subscribed":
        failures = 0;
        onState("live");
        for (const [target, position] of Object.entries(message.positions ?? {})) {
          positions.set(target, position); // the one that the next message follows
        }
        break;
      case "gap":
        positions.set(message.target, { epoch: message.epoch, sequence: message.sequence });
        onMessage(message);
        break;
      case "batch":
        message.messages.forEach(receive);
        break;
      case "server_shutdown":
        retryAfterMs = message.retry_after_ms;
        break;
      case "error":
        onState(`${message.code}: ${message.message}`);
        break;
      default: {
        const target = message.target ?? message.stock_code ?? message.market;
        const position = positions.get(target);
        if (position && !message.snapshot) position.sequence = message.sequence;
        onMessage(message);
      }
    }
  }

  function connect() {
    socket = new WebSocket(url);
    socket.onmessage = (event) => receive(JSON.parse(event.data));
    socket.onclose = (event) => {
      // Codes after which the protocol says not to come back.
      if (stopped || [1002, 1007, 1008, 1009, 4500].includes(event.code)) {
        onState(`closed: ${event.reason || event.code}`);
        return;
      }
      const delayMs = retryAfterMs ?? Math.random() * Math.min(30_000, 500 * 2 ** failures++);
      retryAfterMs = null;
      onState("reconnecting");
      setTimeout(connect, delayMs);
    };
  }

  connect();
  return {
    stop() {
      stopped = true;
      socket.close();
    },
  };
}

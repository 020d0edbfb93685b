// Many clients, each with a ledger of the producer's numbers: for Node and for a page.
//
// The account of streamer.js says that a stream is consistent. The ledger says that it is also true:
// each publication carries its number within the topic as its volume.

/** What one client was given of one topic; the rules are those of tests/faults/ledger.py. */
class TopicLedger {
  received = 0;
  merged = 0;
  lost = 0;
  snapshots = 0;
  number = 0;
  gaps = {};
  epochs = [];
  problems = [];
  #resumes = null;

  get isBehindGap() {
    return this.#resumes !== null;
  }

  take(message) {
    const number = Number(message.volume);
    if (message.type === "gap") {
      this.gaps[message.reason] = (this.gaps[message.reason] ?? 0) + 1;
      this.epochs.push(message.epoch);
      this.#resumes = message.sequence;
    } else if (message.snapshot) {
      this.snapshots++;
      if (this.#resumes === message.sequence) this.#advance(number, 0, true);
    } else {
      this.received++;
      const follows = message.previous ?? message.sequence - 1;
      this.#advance(number, message.sequence - follows - 1, false);
    }
  }

  #advance(number, merged, isSnapshot) {
    const missing = number - this.number - 1 - merged;
    if (this.number > 0 && this.#resumes !== null) {
      if (missing < (isSnapshot ? -1 : 0)) this.#complain(number, merged);
      this.lost += Math.max(missing, 0);
    } else if (this.number > 0 && missing !== 0) {
      this.#complain(number, merged);
    }
    this.#resumes = null;
    this.merged += merged;
    this.number = number;
  }

  #complain(number, merged) {
    this.problems.push(`${number} comes after ${this.number}, and ${merged} were merged`);
  }
}

/** Clients of one server; `plans` has the topics and the options of each. */
export class Crowd {
  #clients = [];

  constructor(Streamer, url, plans, options, tokens = []) {
    for (const { topics, ...subscribeOptions } of plans) {
      const remaining = [...tokens];
      const streamer = new Streamer(url, {
        firstDelayMs: 100,
        maxDelayMs: 1000,
        ...(tokens.length > 0 && {
          // Whoever does not renew its token in time is closed, and comes back with another one.
          token: ({ why }) => {
            if (why === "expiring") return undefined;
            return remaining.length > 1 ? remaining.shift() : remaining[0];
          },
        }),
        ...options,
      });
      const ledgers = Object.fromEntries(topics.map((topic) => [topic, new TopicLedger()]));
      const client = { streamer, ledgers, connections: 0, isReady: false };
      streamer.on("state", ({ state }) => {
        if (state === "connected") client.connections++;
      });
      const subscription = streamer.subscribe(topics, subscribeOptions, (message) =>
        ledgers[message.topic].take(message),
      );
      subscription.ready.then(() => (client.isReady = true));
      this.#clients.push(client);
    }
  }

  report() {
    return this.#clients.map(({ streamer, ledgers, connections, isReady }) => ({
      isReady,
      connections,
      state: streamer.state,
      account: streamer.account(),
      topics: Object.entries(ledgers).map(([topic, ledger]) => [
        topic,
        { ...ledger, isBehindGap: ledger.isBehindGap },
      ]),
    }));
  }
}

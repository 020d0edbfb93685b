import type { AccountSummary, Numbers, Position, Streamer, StreamerOptions, Topic } from "./streamer.js";

/** A client in a SharedWorker; what the worker knows comes as promises. */
export interface SharedStreamer<F extends Numbers = "number">
  extends Pick<Streamer<F>, "state" | "on" | "subscribe"> {
  account(): AccountSummary | Promise<AccountSummary>;
  position(topic: Topic): Position | undefined | Promise<Position | undefined>;
  /** End the subscriptions of this tab; the connection ends with those of the last tab. */
  close(): void;
}

/**
 * Return a client that shares its connection with all tabs of the origin that name the same URL and
 * the same options; an ordinary `Streamer` where the browser has no such workers. Options other than
 * `token` have to be plain values.
 */
export function share<F extends Numbers = "number">(
  url?: string,
  options?: Omit<StreamerOptions<F>, "WebSocket" | "fetch" | "connect">,
): SharedStreamer<F>;

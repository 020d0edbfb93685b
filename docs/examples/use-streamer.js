// Hooks for React 18 and later, on a `Streamer` of streamer.js that all components share.

import { useCallback, useRef, useSyncExternalStore } from "react";

/** Return the newest message of a topic that is of a type; undefined before the first one. */
export function useLatest(streamer, topic, type) {
  const latest = useRef(undefined);
  const subscribe = useCallback(
    (onChange) => {
      const subscription = streamer.subscribe(topic, (message) => {
        if (message.type !== type) return;
        latest.current = message;
        onChange();
      });
      return () => {
        subscription.close();
        latest.current = undefined;
      };
    },
    [streamer, topic, type],
  );
  return useSyncExternalStore(
    subscribe,
    () => latest.current,
    () => undefined, // on a server there is no stream
  );
}

/** Return the state of the connection: "disconnected", "connecting" or "connected". */
export function useConnection(streamer) {
  return useSyncExternalStore(
    useCallback((onChange) => streamer.on("state", onChange), [streamer]),
    () => streamer.state,
    () => "connecting",
  );
}

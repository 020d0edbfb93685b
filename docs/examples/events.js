// A stream of events for pages that cannot open a WebSocket: EventSource, and what it leaves to do.

/** Follow topics (`stock:005930,market:KOSPI`) until `stop`; `onMessage` gets each message. */
export function followEvents(url, topics, onMessage) {
  const query = new URLSearchParams({ topics });
  let source;
  let timer;
  function open() {
    source = new EventSource(`${url}?${query}`);
    source.onmessage = ({ data, lastEventId }) => {
      if (lastEventId) query.set("last_event_id", lastEventId); // for an EventSource made anew
      const message = JSON.parse(data);
      (message.messages ?? [message]).forEach(onMessage); // a batch has several
    };
    source.onerror = () => {
      // It reconnects by itself, unless the answer was no stream: too many connections, say.
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(open, 1000 + 4000 * Math.random());
    };
  }
  open();
  return { stop: () => { clearTimeout(timer); source.close(); } };
}

// Follows a stream with the module of docs/examples, and writes each message to a line.

const [module, url, topics] = process.argv.slice(2);
const { followEvents } = await import(module);
followEvents(url, topics, (message) => console.log(JSON.stringify(message)));
setInterval(() => {}, 60_000); // Node ends otherwise while its EventSource waits to reconnect

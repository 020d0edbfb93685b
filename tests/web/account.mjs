// Replays conversations, given as JSON on stdin, to an account each; writes their summaries.

import { text } from "node:stream/consumers";
import { pathToFileURL } from "node:url";

const { Account } = await import(pathToFileURL(process.argv[2]));

const summaries = JSON.parse(await text(process.stdin)).map((conversation) => {
  const account = new Account();
  for (const [step, ...values] of conversation) account[step](...values);
  const positions = ["stock:A", "stock:B"].map((topic) => account.position(topic) ?? null);
  return { ...account.summary(), positions };
});
process.stdout.write(JSON.stringify(summaries));

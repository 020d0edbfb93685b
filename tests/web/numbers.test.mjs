// Numbers as text, decimals, and CRC-32.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { crc32 as zlibCrc32 } from "node:zlib";

import { Book, compareDecimals, crc32, decimal, quoteNumbers } from "../../streamer/web/streamer.js";

test("every number becomes a string of the same digits, and nothing else changes", () => {
  const cases = [
    ['{"price":72500.10,"volume":9007199254740993}', { price: "72500.10", volume: "9007199254740993" }],
    ["[0,-0,1e5,1E+5,-1.50e-3,0.0]", ["0", "-0", "1e5", "1E+5", "-1.50e-3", "0.0"]],
    ['{"1":"2","a\\"3":[true,null,false]}', { 1: "2", 'a"3': [true, null, false] }],
    ['"-1.5 \\\\"', "-1.5 \\"],
    [' [ 1 , { "a" : -2 } ] ', ["1", { a: "-2" }]],
    ['{"s":"\\u0031","t":"\\\\\\"7"}', { s: "1", t: '\\"7' }],
  ];
  for (const [json, expected] of cases) assert.deepEqual(JSON.parse(quoteNumbers(json)), expected);
});

test("what is not JSON does not become JSON", () => {
  for (const text of ["01", "1.", ".5", "+1", "-", "1e", "[1,]", "{1:2}", "1 2", '"a', "--1", "1e5.5"]) {
    assert.throws(() => JSON.parse(text), SyntaxError);
    const quoted = quoteNumbers(text);
    // The digits of a wrong number stay together, as one string that is no number.
    let read;
    try {
      read = JSON.parse(quoted);
    } catch (error) {
      assert.ok(error instanceof SyntaxError);
      continue;
    }
    assert.ok(typeof read !== "string" || quoted === `"${text}"`, text);
  }
});

test("a long string takes no recursion", () => {
  const text = JSON.stringify({ text: "1\\".repeat(500_000), number: 1 });
  assert.equal(JSON.parse(quoteNumbers(text)).number, "1");
});

test("a decimal has no exponent, no sign of a positive number, no superfluous zeros", () => {
  const cases = {
    0: "0",
    "-0": "0",
    "-0.0": "0",
    "0e5": "0",
    "0.00": "0",
    7: "7",
    "72500.00": "72500",
    "72300.10": "72300.1",
    "1.5e-3": "0.0015",
    "1e-3": "0.001",
    "2E3": "2000",
    "1.25E+2": "125",
    "1.2345e2": "123.45",
    "-37.630": "-37.63",
    "1e25": "10000000000000000000000000",
    "3.426e-5": "0.00003426",
    "123456789012345678901234567890.1234567890": "123456789012345678901234567890.123456789",
  };
  for (const [text, expected] of Object.entries(cases)) assert.equal(decimal(text), expected);
  for (const text of ["", "x", "1.", ".1", "+1", "1e", "0x1"]) {
    assert.throws(() => decimal(text), TypeError);
  }
});

test("decimals are compared exactly", () => {
  const sorted = [
    "-10000000000000000000000001",
    "-10000000000000000000000000",
    "-1.5",
    "-0.00000000000000000002",
    "-0.00000000000000000001",
    "0",
    "0.00000000000000000001",
    "0.1",
    "0.10000000000000000001",
    "9.5",
    "10",
    "9007199254740992",
    "9007199254740993",
  ];
  for (const [index, a] of sorted.entries()) {
    for (const [other, b] of sorted.entries()) {
      assert.equal(Math.sign(compareDecimals(a, b)), Math.sign(index - other), `${a} ${b}`);
    }
  }
});

test("CRC-32 is that of zlib, unsigned", () => {
  for (const text of ["", "1:2", "123456789", "72500:0.1,72400:10.5".repeat(50)]) {
    assert.equal(crc32(text), zlibCrc32(text));
  }
  assert.equal(crc32("123456789"), 0xcbf43926);
});

test("the checksum of a book is that of the protocol's vectors", () => {
  const path = new URL("../../docs/reference/checksum.json", import.meta.url);
  const vectors = JSON.parse(readFileSync(path, "utf-8"));
  assert.ok(vectors.length >= 9);
  const levels = (side) => side.map(([price, quantity]) => ({ price, quantity }));
  for (const { name, bids, asks, text, checksum } of vectors) {
    assert.equal(crc32(text), checksum, name);
    // Levels come in any order, as changes of a book that has another one; all of it is replaced.
    const other = { bids: [{ price: "5e-7", quantity: "1" }], asks: [] };
    const book = new Book(other, other);
    const gone = { price: "0.0000005", quantity: "0.0" };
    const delta = {
      bids: [...levels(bids).reverse(), gone],
      asks: levels(asks).reverse(),
      checksum,
    };
    const applied = book.apply(delta, delta);
    assert.ok(applied.isIntact, name);
    assert.deepEqual([applied.bids, applied.asks], [levels(bids), levels(asks)], name);
    assert.ok(!book.apply({ bids: [], asks: [], checksum: checksum + 1 }, delta).isIntact);
  }
});

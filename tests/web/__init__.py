"""The client for browsers, in Node and in Chromium."""

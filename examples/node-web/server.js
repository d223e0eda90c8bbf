// A web app of Node's standard library alone: answers every path with who and where it is.
"use strict";

const http = require("node:http");

const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const name = escape(process.env.SHORE_APP || "node-web");
const index = escape(process.env.SHORE_INSTANCE_INDEX || "local");
const page = `<!doctype html><title>${name}</title><h1>${name}</h1><p>node-web, instance ${index}</p>\n`;

const server = http.createServer((request, response) => {
  request.resume();
  response.setHeader("Content-Type", "text/html; charset=utf-8");
  response.setHeader("Content-Length", Buffer.byteLength(page));
  response.end(request.method === "HEAD" ? undefined : page);
});
server.keepAliveTimeout = 75_000;

const port = Number(process.env.PORT || 8080);
server.listen(port, process.env.HOST || "127.0.0.1", () => console.log(`listening on ${port}`));

// Requests under way are answered; connections that wait for another request are closed.
const stop = () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
  setTimeout(() => process.exit(1), 5_000).unref();
};
process.on("SIGTERM", stop);
process.on("SIGINT", stop);

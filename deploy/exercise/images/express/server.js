// The exercise's third web server. WORKERS and DELAY_MS bound what one instance can
// do (so many requests at a time, each so long), because the exercise on scaling
// needs a server that a load of 100 requests a second can overload.
'use strict';

const express = require('express');
const { version } = require('express/package.json');

const port = Number(process.env.PORT || 3000);
const workers = Number(process.env.WORKERS || 64);
const delayMs = Number(process.env.DELAY_MS || 0);
const drainMs = Number(process.env.DRAIN_MS || 400);
const name = process.env.VERSION ? `${version} (${process.env.VERSION})` : version;

let busy = 0;
let draining = false;
const waiting = [];

function withWorker(work) {
  if (busy >= workers) return void waiting.push(work);
  busy += 1;
  work();
}

function release() {
  busy -= 1;
  const next = waiting.shift();
  if (next) withWorker(next);
}

const app = express();
app.disable('x-powered-by');
app.use((request, response, next) => {
  if (draining) response.set('Connection', 'close');
  next();
});
app.get('/healthz', (request, response) => response.type('text').send('ok\n'));
app.get('/', (request, response) => {
  withWorker(() => setTimeout(() => {
    response.type('text').send(`Express/${name} pod ${process.env.HOSTNAME}\n`);
    release();
  }, delayMs));
});

const server = app.listen(port, () => console.log(`Express ${name} listens on port ${port}`));

// As in the demo's server: accept for a little longer, then finish what is in flight.
process.on('SIGTERM', () => {
  draining = true;
  setTimeout(() => server.close(() => process.exit(0)), drainMs);
  setTimeout(() => process.exit(0), drainMs + 10000).unref();
});

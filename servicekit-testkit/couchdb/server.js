// CouchDB's API without CouchDB, for tests, its data in FOLDER/data: node server.js PORT FOLDER [validation]
'use strict';

const fs = require('fs');
const path = require('path');
const express = require('express');
const PouchDB = require('pouchdb');
const couchdb = require('express-pouchdb');

const [port, folder, ...parts] = process.argv.slice(2);
const data = path.join(folder, 'data', path.sep);
fs.mkdirSync(data, { recursive: true });

const app = express();
let ahead = 0;

// A test sets the clock that answers show: so many milliseconds ahead of this host's.
app.post('/_test/ahead/:millis', (request, response) => {
  ahead = Number(request.params.millis);
  response.end();
});
app.use((request, response, next) => {
  response.setHeader('Date', new Date(Date.now() + ahead).toUTCString());
  next();
});
// It looks for a feed's selector in the address, and CouchDB in the body.
const feeds = new Map();
app.post('/:database/_changes', express.json(), (request, response, next) => {
  request.query.selector = request.body.selector;
  const open = feeds.get(request.params.database) ?? new Set();
  feeds.set(request.params.database, open.add(response));
  response.on('close', () => open.delete(response));
  next();
});
// CouchDB ends the feeds of a database that is deleted.
app.delete('/:database', (request, response, next) => {
  const { database } = request.params;
  response.on('finish', () => {
    for (const feed of feeds.get(database) ?? []) feed.end('{"last_seq":0}\n');
  });
  next();
});
app.use(couchdb(PouchDB.defaults({ prefix: data }), {
  mode: 'minimumForPouchDB',
  overrideMode: { include: parts },
  inMemoryConfig: true,
}));
app.listen(Number(port), '127.0.0.1');

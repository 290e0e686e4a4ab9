'use strict';
// What both Node.js peers share: settings, the operations of one event, and the call.
const { Pool: HttpPool } = require('undici');
const pg = require('pg');

const QUEUE = 'customerio-sync.signup-submitted';
const PHASE = 'initial';

function setting(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

/** A pool of connections. The option spares the peers a trigger, which is there for older releases of the service. */
function database(max) {
  const pool = new pg.Pool({
    connectionString: setting('DATABASE_URL'), max, options: '-c customerio_sync.writes_claims=on',
  });
  pool.on('error', (error) => console.error('database:', error.message));
  return pool;
}

/** The id of the tracked event: the 128 bits of the signup's UUID, written as a ULID. A repeat has the same one. */
function ulid(uuid) {
  const digits = BigInt(`0x${uuid.replaceAll('-', '')}`).toString(32).padStart(26, '0');
  return digits.replace(/[i-v]/g, (digit) => 'JKMNPQRSTVWXYZ'[digit.charCodeAt(0) - 105]).toUpperCase();
}

/** Reads one event, and builds its two operations: identify the person, then track the event. */
function parse(content) {
  const event = JSON.parse(content.toString());
  const { customer } = event;
  const contactId = customer.id ?? customer.email;
  const timestamp = Math.floor(Date.parse(event.occurred_at) / 1000);
  const person = { type: 'person', identifiers: customer.id ? { id: contactId } : { email: contactId }, timestamp };
  const { operator_id, operator_name, signup_id } = event;
  const { email, first_name, last_name, phone, state } = customer;
  const operations = [
    {
      ...person,
      action: 'identify',
      attributes: {
        ...event.attributes, email, first_name, last_name, phone, state, operator_id, operator_name, signup_id,
      },
    },
    {
      ...person,
      action: 'event',
      id: ulid(signup_id),
      name: 'signup_submitted',
      attributes: { signup_id, operator_id, operator_name, submitted_at: event.occurred_at },
    },
  ];
  return { event, contactId, operations };
}

/** Returns a function that sends operations, 100 at most, in one call, and returns how it went. */
function customerIo(connections) {
  const http = new HttpPool(setting('CUSTOMERIO_TRACK_URL'), {
    connections, bodyTimeout: 10_000, headersTimeout: 10_000,
  });
  const credentials = `${setting('CUSTOMERIO_SITE_ID')}:${setting('CUSTOMERIO_API_KEY')}`;
  const headers = {
    authorization: `Basic ${Buffer.from(credentials).toString('base64')}`, 'content-type': 'application/json',
  };
  return async (batch) => {
    const startedAt = new Date();
    const start = performance.now();
    const response = await http.request({
      path: '/api/v2/batch', method: 'POST', headers, body: JSON.stringify({ batch }),
    });
    const text = await response.body.text();
    if (response.statusCode !== 200) throw new Error(`Customer.io answered ${response.statusCode}: ${text}`);
    return { startedAt, durationMs: performance.now() - start, httpStatus: response.statusCode };
  };
}

/** What the audit log says about a completed job. */
function auditDetails(jobId, contactId) {
  return {
    jobId, syncPhase: PHASE, contactId, run: 0, attemptCount: 0, manualRetry: false, mock: false,
  };
}

module.exports = { QUEUE, PHASE, setting, database, parse, customerIo, auditDetails };

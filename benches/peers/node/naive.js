'use strict';
// A plain consumer: one message per handler, PREFETCH handlers at a time. Each writes its signup and job in one
// transaction, makes one call, records the result in another transaction, and acknowledges.
//
// What it does not guarantee:
// - A failed event is requeued after a second, until the queue's delivery limit. There are no delays that grow, no
//   circuit breaker, no rate limit, and no record of failed attempts.
// - A message that is not a valid event is dead-lettered without a reason.
// - Two events of one person may be sent in any order, and an older one may overwrite newer data.
// - An event is sent twice if the process ends between call and acknowledgement. Customer.io ignores the repeat of the
//   tracked event by its id.
// - A later event of a known signup does not update it.
// - It ends if the connection to RabbitMQ is lost; a supervisor has to start it again.
const { randomUUID } = require('node:crypto');
const amqp = require('amqplib');
const { QUEUE, PHASE, setting, database, parse, customerIo, auditDetails } = require('./common');

const PREFETCH = Number(process.env.PREFETCH ?? 20);
const db = database(PREFETCH);
const call = customerIo(PREFETCH);
const claim = randomUUID();

async function transaction(work) {
  const client = await db.connect();
  try {
    await client.query('BEGIN');
    const result = await work(client);
    await client.query('COMMIT');
    client.release();
    return result;
  } catch (error) {
    client.release(true); // closes the connection, which rolls back
    throw error;
  }
}

/** Writes the signup and its job. Returns the job's id, or nothing if it was completed before. */
function begin({ event }) {
  const { customer } = event;
  return transaction(async (client) => {
    await client.query({
      name: 'insert-signup',
      text: `INSERT INTO signups (id, operator_id, operator_name, customer_id, email, first_name, last_name, phone,
          state, attributes, customer_as_of, submitted_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)
        ON CONFLICT (id) DO NOTHING`,
      values: [
        event.signup_id, event.operator_id, event.operator_name, customer.id, customer.email, customer.first_name,
        customer.last_name, customer.phone, customer.state, event.attributes ?? {}, event.occurred_at,
      ],
    });
    const { rows } = await client.query({
      name: 'insert-job',
      text: `INSERT INTO signup_customerio_sync_jobs AS j
          (id, signup_id, sync_phase, status, event_id, occurred_at, claim, claimed_at, claimed_by)
        VALUES ($1, $2, $3, 'processing', $4, $5, $6, now(), $4)
        ON CONFLICT (signup_id, sync_phase) DO UPDATE SET claim = EXCLUDED.claim, claimed_at = now(),
          claimed_by = EXCLUDED.claimed_by
        WHERE j.status = 'processing'
        RETURNING id`,
      values: [randomUUID(), event.signup_id, PHASE, event.event_id, event.occurred_at, claim],
    });
    return rows[0]?.id;
  });
}

/** Records that Customer.io accepted the job. */
function complete(jobId, { event, contactId }, attempt) {
  return transaction(async (client) => {
    await client.query({
      name: 'complete-job',
      text: `UPDATE signup_customerio_sync_jobs
        SET status = 'completed', completed_at = now(), last_attempt_at = $2, contact_id = $3, claim = NULL,
          claimed_at = NULL, updated_at = now()
        WHERE id = $1`,
      values: [jobId, attempt.startedAt, contactId],
    });
    await client.query({
      name: 'update-signup',
      text: `UPDATE signups
        SET customerio_synced = true, customerio_synced_at = now(), customerio_contact_id = $2, updated_at = now()
        WHERE id = $1`,
      values: [event.signup_id, contactId],
    });
    await client.query({
      name: 'insert-attempt',
      text: `INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms, http_status)
        VALUES ($1, 0, 0, $2, $3, $4)`,
      values: [jobId, attempt.startedAt, attempt.durationMs, attempt.httpStatus],
    });
    await client.query({
      name: 'insert-audit',
      text: `INSERT INTO audit_logs (action, signup_id, actor, details)
        VALUES ('customerio_synced', $1, 'node-naive', $2)`,
      values: [event.signup_id, auditDetails(jobId, contactId)],
    });
  });
}

async function handle(channel, message) {
  let parsed;
  try {
    parsed = parse(message.content);
  } catch (error) {
    console.error('not an event:', error.message);
    channel.nack(message, false, false);
    return;
  }
  try {
    const jobId = await begin(parsed);
    if (jobId) await complete(jobId, parsed, await call(parsed.operations));
    channel.ack(message);
  } catch (error) {
    console.error('failed:', error.message);
    setTimeout(() => channel.nack(message), 1000);
  }
}

async function main() {
  const connection = await amqp.connect(setting('AMQP_URL'));
  const channel = await connection.createChannel();
  await channel.prefetch(PREFETCH);
  const working = new Set();
  const { consumerTag } = await channel.consume(QUEUE, (message) => {
    if (!message) process.exit(1); // RabbitMQ cancelled the consumer
    const handled = handle(channel, message).finally(() => working.delete(handled));
    working.add(handled);
  });
  process.once('SIGTERM', async () => {
    await channel.cancel(consumerTag);
    await Promise.all(working);
    await connection.close();
    await db.end();
    process.exit(0);
  });
}

main();

'use strict';
// A consumer that works in batches: up to BATCH deliveries or 20 ms. A batch writes its signups and jobs with one
// statement, makes one call per 100 operations, records the results with one statement, and acknowledges all deliveries
// at once. IN_FLIGHT batches run side by side.
//
// What it does not guarantee:
// - If a call or a statement fails, its whole batch is requeued after a second, until the queue's delivery limit. The
//   calls of the batch that succeeded are repeated. So an event that Customer.io refuses fails the others of its batch.
//   There are no delays that grow, no circuit breaker, no rate limit, and no record of failed attempts.
// - A message that is not a valid event is dead-lettered without a reason.
// - Two events of one person may be sent in any order, and an older one may overwrite newer data.
// - An event is sent twice if the process ends between call and acknowledgement. Customer.io ignores the repeat of the
//   tracked event by its id.
// - A later event of a known signup does not update it. Calls are not split by their size in bytes.
// - It ends if the connection to RabbitMQ is lost; a supervisor has to start it again.
const { randomUUID } = require('node:crypto');
const amqp = require('amqplib');
const { QUEUE, PHASE, setting, database, parse, customerIo, auditDetails } = require('./common');

const BATCH = Number(process.env.BATCH ?? 200);
const IN_FLIGHT = Number(process.env.IN_FLIGHT ?? 4);
const GATHER_MS = 20;
const EVENTS_PER_CALL = 50; // two operations each
const db = database(IN_FLIGHT);
const call = customerIo(IN_FLIGHT * Math.ceil(BATCH / EVENTS_PER_CALL));
const claim = randomUUID();

const BEGIN = `
  WITH e AS (
    SELECT *
    FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
      $9::text[], $10::text[], $11::jsonb[], $12::timestamptz[], $13::text[]) AS e (job_id, id, operator_id,
      operator_name, customer_id, email, first_name, last_name, phone, state, attributes, occurred_at, event_id)
    ORDER BY id
  ), new_signups AS (
    INSERT INTO signups (id, operator_id, operator_name, customer_id, email, first_name, last_name, phone, state,
      attributes, customer_as_of, submitted_at)
    SELECT id, operator_id, operator_name, customer_id, email, first_name, last_name, phone, state, attributes,
      occurred_at, occurred_at
    FROM e
    ON CONFLICT (id) DO NOTHING
  )
  INSERT INTO signup_customerio_sync_jobs AS j
    (id, signup_id, sync_phase, status, event_id, occurred_at, claim, claimed_at, claimed_by)
  SELECT job_id, id, '${PHASE}', 'processing', event_id, occurred_at, $14, now(), event_id
  FROM e
  ON CONFLICT (signup_id, sync_phase) DO UPDATE SET claim = EXCLUDED.claim, claimed_at = now(),
    claimed_by = EXCLUDED.claimed_by
  WHERE j.status = 'processing'
  RETURNING id, signup_id`;

const COMPLETE = `
  WITH e AS (
    SELECT *
    FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[], $5::float8[], $6::int4[], $7::jsonb[])
      AS e (job_id, signup_id, contact_id, started_at, duration_ms, http_status, details)
    ORDER BY signup_id
  ), jobs AS (
    UPDATE signup_customerio_sync_jobs j
    SET status = 'completed', completed_at = now(), last_attempt_at = e.started_at, contact_id = e.contact_id,
      claim = NULL, claimed_at = NULL, updated_at = now()
    FROM e
    WHERE j.id = e.job_id
  ), synced AS (
    UPDATE signups s
    SET customerio_synced = true, customerio_synced_at = now(), customerio_contact_id = e.contact_id, updated_at = now()
    FROM e
    WHERE s.id = e.signup_id
  ), attempts AS (
    INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms, http_status)
    SELECT job_id, 0, 0, started_at, duration_ms, http_status
    FROM e
  )
  INSERT INTO audit_logs (action, signup_id, actor, details)
  SELECT 'customerio_synced', signup_id, 'node-batches', details
  FROM e`;

/** Columns of values for UNNEST. */
const columns = (rows, ...fields) => fields.map((field) => rows.map(field));

async function work(parsed) {
  const bySignup = new Map(parsed.map((one) => [one.event.signup_id, one]));
  const values = columns(
    [...bySignup.values()], () => randomUUID(), ({ event }) => event.signup_id, ({ event }) => event.operator_id,
    ({ event }) => event.operator_name, ({ event }) => event.customer.id, ({ event }) => event.customer.email,
    ({ event }) => event.customer.first_name, ({ event }) => event.customer.last_name,
    ({ event }) => event.customer.phone, ({ event }) => event.customer.state,
    ({ event }) => JSON.stringify(event.attributes ?? {}), ({ event }) => event.occurred_at,
    ({ event }) => event.event_id,
  );
  const { rows } = await db.query({ name: 'begin', text: BEGIN, values: [...values, claim] });
  const jobs = rows.map(({ id, signup_id }) => ({ id, ...bySignup.get(signup_id) }));
  const calls = [];
  for (let start = 0; start < jobs.length; start += EVENTS_PER_CALL) {
    const called = jobs.slice(start, start + EVENTS_PER_CALL);
    calls.push(call(called.flatMap((job) => job.operations)).then((attempt) => {
      for (const job of called) job.attempt = attempt;
    }));
  }
  await Promise.all(calls);
  if (jobs.length === 0) return;
  await db.query({
    name: 'complete',
    text: COMPLETE,
    values: columns(
      jobs, (job) => job.id, (job) => job.event.signup_id, (job) => job.contactId, (job) => job.attempt.startedAt,
      (job) => job.attempt.durationMs, (job) => job.attempt.httpStatus,
      (job) => JSON.stringify(auditDetails(job.id, job.contactId)),
    ),
  });
}

async function main() {
  const connection = await amqp.connect(setting('AMQP_URL'));
  const channel = await connection.createChannel();
  await channel.prefetch(BATCH * (IN_FLIGHT + 1));
  let waiting = [];
  let timer = null;
  const working = new Set();
  let lastSettled = Promise.resolve(); // batches are acknowledged in order, so that `allUpTo` covers one batch

  function start() { // a batch is full, or has gathered long enough
    clearTimeout(timer);
    timer = null;
    if (waiting.length === 0 || working.size >= IN_FLIGHT) return;
    const batch = waiting.splice(0, BATCH);
    const last = batch[batch.length - 1].message;
    const result = work(batch.map((one) => one.parsed)).then(() => null, (error) => error);
    const before = lastSettled;
    lastSettled = (async () => {
      const error = await result;
      await before;
      if (error) {
        console.error('failed:', error.message);
        await new Promise((resolve) => setTimeout(resolve, 1000));
        channel.nack(last, true);
      } else channel.ack(last, true);
    })();
    working.add(result);
    result.then(() => {
      working.delete(result);
      if (timer === null || waiting.length >= BATCH) start();
    });
    if (waiting.length >= BATCH) start();
    else if (waiting.length > 0) timer = setTimeout(start, GATHER_MS);
  }

  const { consumerTag } = await channel.consume(QUEUE, (message) => {
    if (!message) process.exit(1); // RabbitMQ cancelled the consumer
    try {
      waiting.push({ message, parsed: parse(message.content) });
    } catch (error) {
      console.error('not an event:', error.message);
      channel.nack(message, false, false);
      return;
    }
    if (waiting.length >= BATCH) start();
    else timer ??= setTimeout(start, GATHER_MS);
  });
  process.once('SIGTERM', async () => {
    await channel.cancel(consumerTag);
    while (waiting.length > 0 || working.size > 0) {
      start();
      await Promise.all(working);
    }
    await lastSettled;
    await connection.close();
    await db.end();
    process.exit(0);
  });
}

main();

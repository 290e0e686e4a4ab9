"""What both Python peers share: one event, from database to Customer.io and back."""

import os
import threading
import time
import uuid
from datetime import datetime, timezone
from functools import cache

from customerio import CustomerIO
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

CLAIM = uuid.uuid4()
ULID_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
local = threading.local()


@cache
def database():
    """The connections of this process, opened when they are first used: that is after the fork. The option spares the
    peers a trigger of the service, which is there for its older releases."""
    return ConnectionPool(
        os.environ["DATABASE_URL"],
        kwargs={"options": "-c customerio_sync.writes_claims=on", "prepare_threshold": 0},
        min_size=1,
        max_size=int(os.environ.get("DATABASE_CONNECTIONS", "10")),
        open=True,
    )


class TrackApi(CustomerIO):
    """The client of the package, except that it may use a URL without TLS, such as that of a simulator."""

    def batch(self, operations):
        url = os.environ["CUSTOMERIO_TRACK_URL"].rstrip("/") + "/api/v2/batch"
        return self.send_request("POST", url, {"batch": operations})


def customer_io():
    """The client of this thread: it keeps its connection alive."""
    if not hasattr(local, "client"):
        local.client = TrackApi(os.environ["CUSTOMERIO_SITE_ID"], os.environ["CUSTOMERIO_API_KEY"])
    return local.client


def ulid(id):
    """The id of the tracked event: the 128 bits of the signup's UUID, written as a ULID. A repeat has the same one."""
    bits = uuid.UUID(id).int
    return "".join(ULID_DIGITS[bits >> shift & 31] for shift in range(125, -1, -5))


def operations(event, contact_id):
    """Identify the person, then track the event. What is absent is left out, since null removes an attribute."""
    customer, timestamp = event["customer"], int(datetime.fromisoformat(event["occurred_at"]).timestamp())
    person = {
        "type": "person",
        "identifiers": {"id" if customer.get("id") else "email": contact_id},
        "timestamp": timestamp,
    }
    names = ("operator_id", "operator_name", "signup_id")
    about = {name: event[name] for name in names if event.get(name) is not None}
    fields = ("email", "first_name", "last_name", "phone", "state")
    profile = {name: customer[name] for name in fields if customer.get(name) is not None}
    return [
        {**person, "action": "identify", "attributes": {**event.get("attributes", {}), **profile, **about}},
        {
            **person,
            "action": "event",
            "id": ulid(event["signup_id"]),
            "name": "signup_submitted",
            "attributes": {**about, "submitted_at": event["occurred_at"]},
        },
    ]


def sync_event(event, actor):
    """Writes the signup and its job in one transaction, makes one call, and records the result in another one."""
    signup_id, customer, occurred_at = event["signup_id"], event["customer"], event["occurred_at"]
    contact_id = customer.get("id") or customer["email"]
    job_id = uuid.uuid4()
    with database().connection() as db:
        db.execute(
            """INSERT INTO signups (id, operator_id, operator_name, customer_id, email, first_name, last_name, phone,
                state, attributes, customer_as_of, submitted_at)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (id) DO NOTHING""",
            (signup_id, event.get("operator_id"), event.get("operator_name"), customer.get("id"), customer["email"],
             customer.get("first_name"), customer.get("last_name"), customer.get("phone"), customer.get("state"),
             Jsonb(event.get("attributes", {})), occurred_at, occurred_at),
        )
        row = db.execute(
            """INSERT INTO signup_customerio_sync_jobs AS j
                (id, signup_id, sync_phase, status, event_id, occurred_at, claim, claimed_at, claimed_by)
            VALUES (%s, %s, 'initial', 'processing', %s, %s, %s, now(), %s)
            ON CONFLICT (signup_id, sync_phase) DO UPDATE SET claim = EXCLUDED.claim, claimed_at = now(),
                claimed_by = EXCLUDED.claimed_by
            WHERE j.status = 'processing'
            RETURNING id""",
            (job_id, signup_id, event["event_id"], occurred_at, CLAIM, event["event_id"]),
        ).fetchone()
    if row is None:  # it was completed before
        return
    job_id = row[0]
    started_at, start = datetime.now(timezone.utc), time.perf_counter()
    response = customer_io().batch(operations(event, contact_id))
    if response.status_code != 200:  # 207: some operation was refused
        raise RuntimeError(f"Customer.io answered {response.status_code}: {response.text}")
    duration_ms = (time.perf_counter() - start) * 1000
    details = {"jobId": str(job_id), "syncPhase": "initial", "contactId": contact_id, "run": 0, "attemptCount": 0,
               "manualRetry": False, "mock": False}
    with database().connection() as db:
        db.execute(
            """UPDATE signup_customerio_sync_jobs
            SET status = 'completed', completed_at = now(), last_attempt_at = %s, contact_id = %s, claim = NULL,
                claimed_at = NULL, updated_at = now()
            WHERE id = %s""",
            (started_at, contact_id, job_id),
        )
        db.execute(
            """UPDATE signups
            SET customerio_synced = true, customerio_synced_at = now(), customerio_contact_id = %s, updated_at = now()
            WHERE id = %s""",
            (contact_id, signup_id),
        )
        db.execute(
            """INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms, http_status)
            VALUES (%s, 0, 0, %s, %s, %s)""",
            (job_id, started_at, duration_ms, response.status_code),
        )
        db.execute(
            "INSERT INTO audit_logs (action, signup_id, actor, details) VALUES ('customerio_synced', %s, %s, %s)",
            (signup_id, actor, Jsonb(details)),
        )

"""A Celery worker: one task per event, with the event in the task's arguments.

    python celery_worker.py fill N    enqueues N events
    celery -A celery_worker worker --pool threads --concurrency 8 --loglevel WARNING

What it does not guarantee:
- It does not read the queue of the upstream services: somebody has to enqueue a task per event.
- A failed task is retried at most five times, with growing delays. While it waits, its message is in the memory of the
  worker, unacknowledged. After that it is dropped with a line in the log: there is no failure queue, and its job stays
  'processing'. There is no circuit breaker, and no record of failed attempts.
- Two events of one person may be sent in any order, and an older one may overwrite newer data.
- An event is sent twice if the process ends between call and acknowledgement. Customer.io ignores the repeat of the
  tracked event by its id.
- A later event of a known signup does not update it.
"""

import os
import sys

from celery import Celery

from common import sync_event
from sample import sample

app = Celery("peer", broker=os.environ["AMQP_URL"])
app.conf.update(
    task_acks_late=True,  # acknowledge when it is done, so that a crash loses nothing
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=int(os.environ.get("PREFETCH_MULTIPLIER", "16")),
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True},  # without it, `fill` may lose its last events when it ends
)


@app.task(name="sync", autoretry_for=(Exception,), retry_backoff=5, retry_kwargs={"max_retries": 5})
def sync(event):
    sync_event(event, "celery")


if __name__ == "__main__" and sys.argv[1:2] == ["fill"]:
    with app.producer_pool.acquire(block=True) as producer:
        for event in sample(int(sys.argv[2])):
            sync.apply_async((event,), producer=producer)

"""A Dramatiq worker: one message per event, with the event in the message's arguments.

    python dramatiq_worker.py fill N    enqueues N events
    dramatiq_queue_prefetch=64 dramatiq dramatiq_worker --processes 2 --threads 4

What it does not guarantee:
- It does not read the queue of the upstream services: somebody has to enqueue a message per event.
- A failed message is retried at most five times, with growing delays. After that it is in Dramatiq's dead letter queue
  for a week, and its job stays 'processing'. There is no circuit breaker, and no record of failed attempts.
- Two events of one person may be sent in any order, and an older one may overwrite newer data.
- An event is sent twice if the process ends between call and acknowledgement. Customer.io ignores the repeat of the
  tracked event by its id.
- A later event of a known signup does not update it.
"""

import os
import sys

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from common import sync_event
from sample import sample

dramatiq.set_broker(RabbitmqBroker(url=os.environ["AMQP_URL"], confirm_delivery=True))


@dramatiq.actor(queue_name="peer", max_retries=5, min_backoff=5_000, max_backoff=3_125_000)
def sync(event):
    sync_event(event, "dramatiq")


if __name__ == "__main__" and sys.argv[1:2] == ["fill"]:
    for event in sample(int(sys.argv[2])):
        sync.send(event)

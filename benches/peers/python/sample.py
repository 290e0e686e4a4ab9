"""Generated submissions. `python sample.py N` prints N of them, one per line."""

import json
import random
import sys
import time
import uuid
from datetime import datetime, timezone


def uuid7():
    return str(uuid.UUID(int=time.time_ns() // 1_000_000 << 80 | 7 << 76 | random.getrandbits(12) << 64 | 2 << 62
                         | random.getrandbits(62)))


def sample(count):
    """Submissions like those of `customerio-sync publish --sample`."""
    for number in range(count):
        yield {
            "event_id": uuid7(),
            "occurred_at": datetime.now(timezone.utc).isoformat().replace("+00:00", "Z"),
            "signup_id": uuid7(),
            "operator_id": f"op-{number % 20}",
            "operator_name": f"Operator {number % 20}",
            "customer": {
                "id": f"sample-{number}",
                "email": f"sample-{number}@example.com",
                "first_name": "Sample",
                "last_name": f"Person {number}",
                "phone": f"+1555{number % 10_000_000:07}",
                "state": ("NJ", "NY", "PA", "MI", "CO")[number % 5],
            },
            "attributes": {"plan": "basic" if number % 3 else "gold", "visits": number % 50},
        }


if __name__ == "__main__":
    for one in sample(int(sys.argv[1])):
        print(json.dumps(one))

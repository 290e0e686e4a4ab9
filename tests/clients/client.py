"""Calls identify and track with the official Python client.

It has no batch call, so that request is made as documented.
"""

import base64
import json
import os
import urllib.request

from customerio import CustomerIO

url = os.environ["SIMULATOR_URL"]


def batch():
    event = {
        "type": "person",
        "identifiers": {"id": "c-2"},
        "action": "event",
        "id": "01JMC0000000000000000000ZZ",
        "name": "signup_submitted",
    }
    identify = {"type": "person", "identifiers": {"id": "c-2"}, "action": "identify", "attributes": {"plan": "silver"}}
    request = urllib.request.Request(
        url + "/api/v2/batch",
        data=json.dumps({"batch": [identify, event, event]}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": "Basic " + base64.b64encode(b"site:key").decode(),
        },
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200, answer.status


host, port = url.removeprefix("http://").split(":")
client = CustomerIO("site", "key", host=host, port=int(port))
client.base_url = url + "/api/v1"
client.identify(id="c-1", email="ann@example.com", plan="gold")
client.track(customer_id="c-1", name="signup_submitted", data={"operator_id": "op-1"})
batch()

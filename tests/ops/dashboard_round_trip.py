"""Reads a dashboard with the types of Grafana's SDK and prints it again.

The SDK keeps only fields that it knows, so a difference is a misspelt or outdated field.
"""

import json
import sys

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

plugins.register_default_plugins()
with open(sys.argv[1], encoding="utf-8") as file:
    read = dashboard.Dashboard.from_json(json.load(file))
print(json.dumps(read, cls=JSONEncoder))

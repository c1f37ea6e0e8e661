"""What the API and the worker share: records, messages, ports, settings, errors, telemetry."""

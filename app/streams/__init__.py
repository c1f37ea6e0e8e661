"""Live updates: polling, server-sent events and WebSocket."""

"""The web page at `/`: static files and their policy. Everything else it does by the public API."""

"""`make compare`: jobs of 1,000 images through Glimpse and through Celery, RQ and taskiq."""

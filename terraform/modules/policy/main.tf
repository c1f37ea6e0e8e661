# How a message is delivered: DeliveryPolicy and the paths of core/policy.py. A test reads both.
locals {
  attempts     = 10     # deliveries before a message is a dead letter
  min_backoff  = 2      # seconds after the first refusal; doubles each time
  max_backoff  = 120    # seconds at most between two deliveries
  ack_deadline = 60     # seconds the worker has to answer one delivery
  lease        = 30     # seconds one worker owns a record
  retention    = 604800 # seconds an undelivered message is kept
  stale_after  = 600    # seconds a record may stand still

  dead_letter_retention = 2592000 # seconds a dead letter is kept

  classify_path    = "/generate_annotations"
  dead_letter_path = "/generate_annotations_dlq"
  reconcile_path   = "/reconcile"

  reconcile_interval = max(1, local.stale_after / 2)
}

# How a message is delivered: the policies, paths and channels of core. A test reads both.
locals {
  attempts     = 100    # deliveries before a message is a dead letter
  min_backoff  = 2      # seconds after the first refusal; doubles each time
  max_backoff  = 600    # seconds at most between two deliveries
  lease        = 30     # seconds one worker owns a record
  ack_deadline = 60     # seconds the worker has to answer one delivery: twice the lease, as in core/settings.py
  retention    = 604800 # seconds an undelivered message is kept
  stale_after  = 600    # seconds until a record is stale

  # A receiver of notifications may be down for hours.
  notification_attempts    = 100
  notification_min_backoff = 10
  notification_max_backoff = 600

  classify_path      = "/generate_annotations"
  jobs_path          = "/jobs"
  notifications_path = "/notifications"
  dead_letter_path   = "/generate_annotations_dlq"
  reconcile_path     = "/reconcile"
  schedule_path      = "/schedule"

  reconcile_interval = max(1, local.stale_after / 2)

  delivery = {
    attempts     = local.attempts
    min_backoff  = local.min_backoff
    max_backoff  = local.max_backoff
    ack_deadline = local.ack_deadline
    retention    = local.retention
  }
  notification_delivery = merge(local.delivery, {
    attempts    = local.notification_attempts
    min_backoff = local.notification_min_backoff
    max_backoff = local.notification_max_backoff
    retention = max(
      local.retention,
      local.notification_attempts * local.notification_max_backoff + 3600,
    )
  })

  # CHANNELS of core/domain/channels.py: one topic and one push subscription each. `service` names the
  # Cloud Run service that gets the pushes, so that one kind of work never takes the instances of another.
  channels = {
    images-high   = merge(local.delivery, { path = local.classify_path, service = "interactive" })
    images-normal = merge(local.delivery, { path = local.classify_path, service = "batch" })
    images-low    = merge(local.delivery, { path = local.classify_path, service = "batch" })
    jobs          = merge(local.delivery, { path = local.jobs_path, service = "batch" })
    notifications = merge(local.notification_delivery, { path = local.notifications_path, service = "notify" })
  }

  # Receives the messages of all other channels that used up their deliveries.
  dead_letters = merge(local.delivery, { name = "dead-letters", path = local.dead_letter_path, service = "interactive" })
}

output "attempts" {
  description = "Deliveries of a message before it becomes a dead letter"
  value       = local.attempts
}

output "min_backoff" {
  description = "Seconds after the first refused delivery"
  value       = local.min_backoff
}

output "max_backoff" {
  description = "Longest time between two deliveries, in seconds"
  value       = local.max_backoff
}

output "ack_deadline" {
  description = "Seconds that the worker may take to answer one delivery, and its request timeout"
  value       = local.ack_deadline
}

output "lease" {
  description = "Seconds that one worker owns a record"
  value       = local.lease
}

output "retention" {
  description = "Time that an undelivered message is kept, in seconds"
  value       = local.retention
}

output "stale_after" {
  description = "Seconds without a change until a record is stale"
  value       = local.stale_after
}

output "reconcile_interval" {
  description = "Seconds between two searches for stale records"
  value       = local.reconcile_interval
}

output "channels" {
  description = "For each channel that is published to: the service and the path that get its messages, and how they are delivered"
  value       = local.channels
}

output "dead_letters" {
  description = "The same for the one channel of all dead letters, with its name"
  value       = local.dead_letters
}

output "reconcile_path" {
  description = "Path of the worker's search for stale records"
  value       = local.reconcile_path
}

output "reconcile_schedule" {
  description = "The same interval for Cloud Scheduler, in cron's notation"
  value       = "*/${floor(local.reconcile_interval / 60)} * * * *"

  precondition {
    condition     = local.reconcile_interval >= 60 && 3600 % local.reconcile_interval == 0
    error_message = "Cron knows whole minutes that divide an hour: change stale_after."
  }
}

output "schedule_path" {
  description = "Path of the worker's search for due jobs"
  value       = local.schedule_path
}

output "schedule" {
  description = "Cron schedule of that call: every minute, the shortest interval of Cloud Scheduler"
  value       = "* * * * *"
}

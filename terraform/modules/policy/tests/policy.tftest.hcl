run "schedule" {
  command = plan

  assert {
    condition     = output.reconcile_interval == output.stale_after / 2
    error_message = "The reconciler runs twice within the time after which a record is stale."
  }

  assert {
    condition     = output.reconcile_schedule == "*/5 * * * *"
    error_message = "300 seconds are every fifth minute."
  }
}

run "order" {
  command = plan

  assert {
    condition     = output.min_backoff <= output.max_backoff && output.max_backoff <= 600
    error_message = "Pub/Sub's backoff ends at 600 seconds."
  }

  assert {
    condition     = output.lease <= output.ack_deadline && output.ack_deadline <= 600
    error_message = "A lease outlives no delivery."
  }

  assert {
    condition     = output.ack_deadline == min(600, max(10, 2 * output.lease))
    error_message = "The worker expects twice the lease."
  }

  assert {
    condition     = output.retention > output.attempts * output.max_backoff
    error_message = "Messages are kept longer than all their attempts take."
  }
}

run "channels" {
  command = plan

  assert {
    condition     = alltrue([for each in output.channels : each.attempts >= 5 && each.attempts <= 100 && each.max_backoff <= 600 && each.retention <= 2678400])
    error_message = "Every channel keeps within Pub/Sub's bounds."
  }

  assert {
    condition     = alltrue([for each in output.channels : each.retention > each.attempts * each.max_backoff])
    error_message = "Messages of every channel are kept longer than all their attempts take."
  }

  assert {
    condition     = !contains(keys(output.channels), output.dead_letters.name)
    error_message = "No service publishes dead letters itself."
  }
}

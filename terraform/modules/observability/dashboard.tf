# One image's way from left to right and down: requests, queue, worker, results; then jobs.
locals {
  charts = [
    {
      title = "Requests to the API, by answer"
      unit  = "requests/s"
      lines = [{ filter = "${local.api_is} AND ${local.requests}", aligner = "ALIGN_RATE", reducer = "REDUCE_SUM", by = ["metric.label.response_code_class"], name = "" }]
    },
    {
      title = "The API's answers: the median, and 99 of 100 uploads"
      unit  = "ms"
      lines = [
        { filter = "${local.api_is} AND metric.type=\"run.googleapis.com/request_latencies\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_PERCENTILE_50", by = [], name = "median" },
        { filter = "${local.api_is} AND ${local.user_metric}/upload_time\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_PERCENTILE_99", by = [], name = "99 of 100 uploads" },
      ]
    },
    {
      title = "New images accepted"
      unit  = "images/s"
      lines = [{ filter = "${local.api_is} AND ${local.user_metric}/accepted\"", aligner = "ALIGN_RATE", reducer = "REDUCE_SUM", by = [], name = "accepted" }]
    },
    {
      title = "Messages that wait, by channel"
      unit  = "messages"
      lines = [
        { filter = "${local.messages_to} AND metric.type=\"pubsub.googleapis.com/subscription/num_undelivered_messages\"", aligner = "ALIGN_MEAN", reducer = "REDUCE_SUM", by = ["resource.label.subscription_id"], name = "" },
        { filter = "${local.letters_are} AND metric.type=\"pubsub.googleapis.com/subscription/num_undelivered_messages\"", aligner = "ALIGN_MEAN", reducer = "REDUCE_SUM", by = [], name = "dead letters" },
      ]
    },
    {
      title = "Age of the oldest message, by channel"
      unit  = "s"
      lines = [{ filter = "${local.messages_to} AND metric.type=\"pubsub.googleapis.com/subscription/oldest_unacked_message_age\"", aligner = "ALIGN_MAX", reducer = "REDUCE_MAX", by = ["resource.label.subscription_id"], name = "" }]
    },
    {
      title = "Deliveries, by channel and answer"
      unit  = "pushes/s"
      lines = [{ filter = "${local.messages_to} AND ${local.pushes}", aligner = "ALIGN_RATE", reducer = "REDUCE_SUM", by = ["resource.label.subscription_id", "metric.label.response_class"], name = "" }]
    },
    {
      title = "From the worker's door to the stored result"
      unit  = "ms"
      lines = [
        { filter = "${local.worker_is} AND ${local.user_metric}/classification_time\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_PERCENTILE_50", by = [], name = "median" },
        { filter = "${local.worker_is} AND ${local.user_metric}/classification_time\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_PERCENTILE_99", by = [], name = "99 of 100" },
      ]
    },
    {
      title = "Instances"
      unit  = "instances"
      lines = [
        { filter = "${local.api_is} AND metric.type=\"run.googleapis.com/container/instance_count\"", aligner = "ALIGN_MAX", reducer = "REDUCE_SUM", by = [], name = "API" },
        { filter = "${local.worker_is} AND metric.type=\"run.googleapis.com/container/instance_count\"", aligner = "ALIGN_MAX", reducer = "REDUCE_SUM", by = [], name = "worker" },
      ]
    },
    {
      title = "How busy the worker's CPUs are: 99 of 100 instances"
      unit  = "share"
      lines = [{ filter = "${local.worker_is} AND metric.type=\"run.googleapis.com/container/cpu/utilizations\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_PERCENTILE_99", by = [], name = "CPU" }]
    },
    {
      title = "Images classified"
      unit  = "images/s"
      lines = [{ filter = "${local.worker_is} AND ${local.user_metric}/classified\"", aligner = "ALIGN_RATE", reducer = "REDUCE_SUM", by = [], name = "classified" }]
    },
    {
      title = "Images refused, by reason"
      unit  = "images"
      lines = [{ filter = "${local.worker_is} AND ${local.user_metric}/refused\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = ["metric.label.code"], name = "" }]
    },
    {
      title = "Given up, lost and found"
      unit  = "images"
      lines = [
        { filter = "${local.worker_is} AND ${local.user_metric}/dead_letters\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "dead letters" },
        { filter = "${local.worker_is} AND ${local.user_metric}/unreadable\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "unreadable dead letters" },
        { filter = "${local.worker_is} AND ${local.user_metric}/expired\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "expired" },
        { filter = "${local.worker_is} AND ${local.user_metric}/republished\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "published again" },
        { filter = "${local.worker_is} AND ${local.user_metric}/lease_lost\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "lease lost" },
      ]
    },
    {
      title = "Jobs accepted"
      unit  = "jobs"
      lines = [{ filter = "${local.api_is} AND ${local.user_metric}/jobs_accepted\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "accepted" }]
    },
    {
      title = "Jobs ended, by status"
      unit  = "jobs"
      lines = [
        { filter = "${local.worker_is} AND ${local.user_metric}/jobs_completed\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "completed" },
        { filter = "${local.worker_is} AND ${local.user_metric}/jobs_ended\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = ["metric.label.status"], name = "" },
        { filter = "${local.api_is} AND ${local.user_metric}/jobs_cancelled\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "cancelled by its owner" },
      ]
    },
    {
      title = "Notifications of jobs"
      unit  = "notifications"
      lines = [
        { filter = "${local.worker_is} AND ${local.user_metric}/webhooks_delivered\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "webhooks" },
        { filter = "${local.worker_is} AND ${local.user_metric}/webhooks_not_delivered\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "webhooks, in vain" },
        { filter = "${local.worker_is} AND ${local.user_metric}/emails_sent\"", aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", by = [], name = "e-mail" },
      ]
    },
  ]
}

# Monitoring omits zeros and empty values from what it returns. Here they would be a difference in
# every plan, so they are left out.
resource "google_monitoring_dashboard" "this" {
  project = var.project_id

  dashboard_json = jsonencode({
    displayName = "${var.prefix}: the way of an image"
    mosaicLayout = {
      columns = 48
      tiles = [
        for index, chart in local.charts : merge(
          { for key, position in { xPos = 16 * (index % 3), yPos = 14 * floor(index / 3) } : key => position if position != 0 },
          {
            width  = 16
            height = 14
            widget = {
              title = chart.title
              xyChart = {
                yAxis = { label = chart.unit, scale = "LINEAR" }
                dataSets = [
                  for line in chart.lines : merge(
                    line.name == "" ? {} : { legendTemplate = line.name },
                    {
                      plotType   = "LINE"
                      targetAxis = "Y1"
                      timeSeriesQuery = {
                        timeSeriesFilter = {
                          filter = line.filter
                          aggregation = merge(
                            length(line.by) == 0 ? {} : { groupByFields = line.by },
                            {
                              alignmentPeriod    = "60s"
                              perSeriesAligner   = line.aligner
                              crossSeriesReducer = line.reducer
                            },
                          )
                        }
                      }
                    },
                  )
                ]
              }
            }
          },
        )
      ]
    }
  })

  depends_on = [google_logging_metric.counted, google_logging_metric.measured]
}

-- name: roster
-- A job's recipients and the moment everything else of the transaction is as of.
SELECT number, recipients, chunk_size, vars, blob,
  (extract(epoch FROM now()) * 1000)::bigint AS as_of_ms
FROM bulk_jobs WHERE id = $1 AND ($2::uuid IS NULL OR owner = $2::uuid);

-- name: recipients
-- A window of positions with what each came to; what is not logged has no outcome yet. A message
-- that Graph holds back has no receipt of its own before a webhook speaks of it.
WITH seen AS (
  SELECT p AS position, l.outcome, l.reason, l.attempts, l.wamid, l.at, l.receipt_at,
    CASE WHEN l.receipt = 2 THEN coalesce(l.code, l.receipt_code) ELSE l.code END AS code,
    CASE WHEN l.receipt = 2 THEN coalesce(l.error, l.receipt_error) ELSE l.error END AS error,
    CASE WHEN l.receipt = 0 AND l.message_status <> 'accepted' THEN 1
      ELSE coalesce(l.receipt, 0) END AS receipt
  FROM generate_series($2::integer, $3::integer) AS p
  LEFT JOIN campaign_logs l ON l.job_number = $1 AND l.position = p
    AND l.position BETWEEN $2::integer AND $3::integer
)
SELECT position, outcome, reason, code, error, attempts, wamid, receipt,
  (extract(epoch FROM at) * 1000)::bigint AS at_ms,
  (extract(epoch FROM receipt_at) * 1000)::bigint AS receipt_at_ms
FROM seen
WHERE ($4::text[] IS NULL OR coalesce(outcome, 'pending') = ANY ($4))
  AND ($5::integer[] IS NULL OR (outcome IS NOT NULL AND receipt = ANY ($5)))
  AND ($6::integer[] IS NULL OR code = ANY ($6))
  AND ($7::bigint = 0 OR at < to_timestamp($7::bigint / 1000.0))
  AND ($8::integer[] IS NULL OR position = ANY ($8))
ORDER BY position LIMIT $9;

-- name: suppressed_count
-- How many of these people would be skipped now.
SELECT count(DISTINCT phone)::integer FROM suppressions
WHERE lifted_at IS NULL AND phone = ANY ($1::bigint[]) AND (scope = 'all' OR $2::boolean);

-- name: history
-- A job holds a number once, so a job's number says where a list goes on.
SELECT l.job_number, l.job_id, l.campaign_id, l.kind, l.template_name, l.sender, l.position,
  l.outcome, l.reason, l.attempts, l.wamid,
  CASE WHEN l.receipt = 2 THEN coalesce(l.code, l.receipt_code) ELSE l.code END AS code,
  CASE WHEN l.receipt = 2 THEN coalesce(l.error, l.receipt_error) ELSE l.error END AS error,
  (extract(epoch FROM l.at) * 1000)::bigint AS at_ms,
  (extract(epoch FROM l.receipt_at) * 1000)::bigint AS receipt_at_ms,
  CASE WHEN l.receipt = 0 AND l.message_status <> 'accepted' THEN 1 ELSE l.receipt END AS receipt
FROM campaign_logs l
WHERE l.phone = $1 AND ($2::uuid IS NULL OR l.owner = $2::uuid)
  AND ($3::bigint = 0 OR l.job_number < $3)
ORDER BY l.job_number DESC LIMIT $4;

-- name: campaign
-- A label's jobs added up, as PostgreSQL knows them.
SELECT CASE WHEN state = 'accepted' THEN 'queued' ELSE state END AS state, count(*)::integer AS jobs,
  sum(recipients)::bigint AS total, sum(sent)::bigint AS sent, sum(failed)::bigint AS failed,
  sum(skipped)::bigint AS skipped, sum(cancelled)::bigint AS cancelled,
  sum(unknown)::bigint AS unknown, sum(delivered)::bigint AS delivered, sum(read)::bigint AS read,
  sum(undelivered)::bigint AS undelivered, min(created_ms) AS first_ms, max(created_ms) AS last_ms
FROM bulk_jobs WHERE campaign_id = $1 AND ($2::uuid IS NULL OR owner = $2::uuid) GROUP BY 1;

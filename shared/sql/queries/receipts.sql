-- name: places_by_position
-- By primary key: what the opaque value of a message names. Without a row of its own `phone` is NULL.
SELECT n.i::integer AS i, j.number, j.id AS job, j.chunk_size, j.sender_id, n.position, l.phone,
  l.outcome, l.attempts, coalesce(l.message_status <> 'accepted', false) AS is_held,
  l.receipt_failed_at IS NOT NULL AS has_failed
FROM unnest($1::integer[], $2::text[], $3::integer[]) AS n (i, job, position)
JOIN bulk_jobs j ON j.id = n.job
LEFT JOIN campaign_logs l ON l.job_number = j.number AND l.position = n.position
WHERE n.position < j.recipients;

-- name: places_by_wamid
-- For statuses without an opaque value of ours. An id that two recipients have names neither.
SELECT n.i::integer AS i, j.number, j.id AS job, j.chunk_size, j.sender_id, l.position, l.phone,
  l.outcome, l.attempts, coalesce(l.message_status <> 'accepted', false) AS is_held,
  l.receipt_failed_at IS NOT NULL AS has_failed
FROM unnest($1::integer[], $2::text[]) AS n (i, wamid)
JOIN campaign_logs l ON l.wamid = n.wamid OR l.wamid2 = n.wamid
JOIN bulk_jobs j ON j.number = l.job_number;

-- name: lock_numbers
-- As the writer of outcomes does it, in the same order.
SELECT number FROM bulk_jobs WHERE number = ANY ($1::bigint[]) ORDER BY number FOR UPDATE;

-- name: raise_receipts
-- Receipts only move up, and each status keeps the time it was first said; whatever the order. Whose
-- number was erased (0) gets no message's id again: it holds the number.
WITH incoming AS (
  SELECT job_number, position, max(receipt) AS receipt,
    array_agg(DISTINCT wamid) AS wamids,
    to_timestamp(min(at_ms) FILTER (WHERE receipt = 0) / 1000.0) AS sent_at,
    to_timestamp(min(at_ms) FILTER (WHERE receipt = 2) / 1000.0) AS failed_at,
    to_timestamp(min(at_ms) FILTER (WHERE receipt = 3) / 1000.0) AS delivered_at,
    to_timestamp(min(at_ms) FILTER (WHERE receipt = 4) / 1000.0) AS read_at,
    (array_agg(code ORDER BY at_ms, code) FILTER (WHERE receipt = 2))[1] AS code,
    (array_agg(error ORDER BY at_ms, code, error) FILTER (WHERE receipt = 2))[1] AS error
  FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::smallint[], $5::bigint[],
    $6::integer[], $7::text[]) AS n (job_number, position, wamid, receipt, at_ms, code, error)
  GROUP BY job_number, position
), known AS (
  SELECT l.job_number, l.position, l.at, l.receipt AS was, l.wamid AS was_wamid,
    l.wamid2 AS was_second, greatest(l.receipt, i.receipt) AS receipt,
    CASE WHEN l.phone <> 0 THEN coalesce(l.wamid, i.wamids[1]) END AS wamid,
    CASE WHEN l.phone <> 0 THEN coalesce(l.wamid2, (SELECT min(w) FROM unnest(i.wamids) AS w
      WHERE w <> coalesce(l.wamid, i.wamids[1]))) END AS wamid2,
    l.receipt_sent_at AS was_sent, least(l.receipt_sent_at, i.sent_at) AS sent_at,
    l.receipt_failed_at AS was_failed, least(l.receipt_failed_at, i.failed_at) AS failed_at,
    l.receipt_delivered_at AS was_delivered,
    least(l.receipt_delivered_at, i.delivered_at) AS delivered_at,
    l.receipt_read_at AS was_read, least(l.receipt_read_at, i.read_at) AS read_at,
    l.receipt_code AS was_code, l.receipt_error AS was_error, i.code, i.error,
    i.failed_at IS NOT NULL AND (l.receipt_failed_at IS NULL
      OR (i.failed_at, coalesce(i.code, 0), coalesce(i.error, ''))
       < (l.receipt_failed_at, coalesce(l.receipt_code, 0), coalesce(l.receipt_error, '')))
      AS is_first
  FROM campaign_logs l
  JOIN incoming i ON i.job_number = l.job_number AND i.position = l.position
), written AS (
  UPDATE campaign_logs l SET receipt = k.receipt, wamid = k.wamid, wamid2 = k.wamid2,
    receipt_sent_at = k.sent_at, receipt_failed_at = k.failed_at,
    receipt_delivered_at = k.delivered_at, receipt_read_at = k.read_at,
    receipt_code = CASE WHEN k.is_first THEN k.code ELSE k.was_code END,
    receipt_error = CASE WHEN k.is_first THEN k.error ELSE k.was_error END,
    receipt_at = CASE k.receipt WHEN 4 THEN k.read_at WHEN 3 THEN k.delivered_at
      WHEN 2 THEN k.failed_at ELSE l.receipt_at END
  FROM known k
  WHERE l.job_number = k.job_number AND l.position = k.position
    AND (k.is_first
      OR (k.was, k.was_sent, k.was_failed, k.was_delivered, k.was_read, k.was_wamid, k.was_second)
      IS DISTINCT FROM
      (k.receipt, k.sent_at, k.failed_at, k.delivered_at, k.read_at, k.wamid, k.wamid2))
  RETURNING l.job_number, l.position
)
SELECT k.job_number, k.position, k.was, k.receipt,
  k.was_second IS NULL AND k.wamid2 IS NOT NULL AS is_second,
  CASE WHEN k.was_failed IS NULL THEN extract(epoch FROM k.failed_at - k.at)::float END AS failed_s,
  CASE WHEN k.was_delivered IS NULL THEN extract(epoch FROM k.delivered_at - k.at)::float END
    AS delivered_s,
  CASE WHEN k.was_read IS NULL THEN extract(epoch FROM k.read_at - k.at)::float END AS read_s
FROM written w JOIN known k ON k.job_number = w.job_number AND k.position = w.position;

-- name: move_receipts
-- Totals move by what changed and by nothing else; the version says which of two is newer.
UPDATE bulk_jobs j SET delivered = j.delivered + n.delivered, read = j.read + n.read,
  undelivered = j.undelivered + n.undelivered, receipts_version = j.receipts_version + 1
FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::integer[])
  AS n (number, delivered, read, undelivered)
WHERE j.number = n.number;

-- name: receipt_totals
-- What Redis is told, again too.
SELECT id AS job, receipts_version AS version, delivered, read, undelivered FROM bulk_jobs
WHERE number = ANY ($1::bigint[]) AND receipts_version > 0;

-- name: keep_early
-- A status may overtake its row; the same one comes more than once.
INSERT INTO early_receipts (wamid, receipt, at_ms, job_id, position, attempt, code, error)
SELECT * FROM unnest($1::text[], $2::smallint[], $3::bigint[], $4::text[], $5::integer[],
  $6::smallint[], $7::integer[], $8::text[])
ON CONFLICT DO NOTHING;

-- name: drop_early
-- What has found its row.
DELETE FROM early_receipts e USING unnest($1::text[], $2::smallint[], $3::bigint[])
  AS n (wamid, receipt, at_ms)
WHERE e.wamid = n.wamid AND e.receipt = n.receipt AND e.at_ms = n.at_ms;

-- name: ripe_early
-- Those whose row is there by now. A failure proves nothing of a message that was refused.
SELECT e.wamid, e.receipt, e.at_ms, e.job_id, e.position, e.attempt, e.code, e.error
FROM early_receipts e JOIN bulk_jobs j ON j.id = e.job_id
JOIN campaign_logs l ON l.job_number = j.number AND l.position = e.position
WHERE l.outcome IN ('sent', 'unknown') OR e.receipt <> 2
UNION
SELECT e.wamid, e.receipt, e.at_ms, e.job_id, e.position, e.attempt, e.code, e.error
FROM early_receipts e JOIN campaign_logs l ON l.wamid = e.wamid OR l.wamid2 = e.wamid
WHERE e.job_id = '' AND (l.outcome IN ('sent', 'unknown') OR e.receipt <> 2)
LIMIT $1;

-- name: expire_early
-- Nobody has ever heard of their message.
WITH gone AS (DELETE FROM early_receipts WHERE came_at < now() - make_interval(secs => $1)
  RETURNING 1)
SELECT count(*)::integer FROM gone;

-- name: stop_marketing
-- A wish is as old as it says: what was taken back later stays taken back.
INSERT INTO suppressions (id, phone, scope, reason, source, created_by, created_at, change)
SELECT 'sup_' || left(md5('stop:' || $1::bigint || ':' || $2::bigint), 26), $1, 'marketing', 'stop',
  'graph', 'system', to_timestamp($2::bigint / 1000.0),
  (SELECT coalesce(max(change), 0) + 1 FROM suppressions)
WHERE NOT EXISTS (SELECT 1 FROM suppressions WHERE phone = $1 AND scope = 'marketing'
  AND reason = 'stop' AND source = 'graph' AND lifted_at >= to_timestamp($2::bigint / 1000.0))
ON CONFLICT (phone, scope) WHERE lifted_at IS NULL DO UPDATE
  SET created_at = greatest(suppressions.created_at, excluded.created_at)
  WHERE suppressions.reason = 'stop' AND suppressions.source = 'graph';

-- name: resume_marketing
-- Lifts the entry that an earlier wish has made, and no other.
UPDATE suppressions SET lifted_at = to_timestamp($2::bigint / 1000.0),
  change = (SELECT coalesce(max(change), 0) + 1 FROM suppressions)
WHERE phone = $1 AND scope = 'marketing' AND reason = 'stop' AND source = 'graph'
  AND lifted_at IS NULL AND created_at <= to_timestamp($2::bigint / 1000.0);

-- name: remember_resume
-- An earlier stop may come later; what it meets is an entry that is lifted already.
INSERT INTO suppressions (id, phone, scope, reason, source, created_by, created_at, lifted_at,
  change)
SELECT 'sup_' || left(md5('resume:' || $1::bigint || ':' || $2::bigint), 26), $1, 'marketing',
  'stop', 'graph', 'system', to_timestamp($2::bigint / 1000.0),
  to_timestamp($2::bigint / 1000.0), (SELECT coalesce(max(change), 0) + 1 FROM suppressions)
ON CONFLICT DO NOTHING;

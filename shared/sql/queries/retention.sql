-- name: undeletable
-- The role of api and worker may not delete these; their owner may.
SELECT n.name FROM unnest(ARRAY['audit_log', 'bulk_jobs', 'campaign_logs']) AS n (name)
WHERE NOT has_table_privilege(n.name, 'DELETE');

-- name: old_jobs
-- Ended with every recipient logged: Redis holds the others without a TTL until then. What a younger
-- job stems from stays too: a retry asks for its whole family. Newest first, so that nobody goes
-- before his children.
WITH RECURSIVE old AS (
  SELECT number, id, parent, recipients FROM bulk_jobs
  WHERE state IN ('completed', 'cancelled') AND greatest(finished_ms, created_ms) < $1
    AND sent + failed + skipped + unknown + cancelled = recipients
), needed AS (
  SELECT j.parent AS id FROM bulk_jobs j
  WHERE j.parent IS NOT NULL AND NOT EXISTS (SELECT FROM old o WHERE o.number = j.number)
  UNION
  SELECT o.parent FROM old o JOIN needed n ON n.id = o.id WHERE o.parent IS NOT NULL
)
SELECT number, recipients FROM old WHERE id NOT IN (SELECT id FROM needed) ORDER BY number DESC;

-- name: unlogged_jobs
-- Ended long ago, and some recipients' outcomes have never come: somebody should look.
SELECT count(*)::integer FROM bulk_jobs
WHERE state IN ('completed', 'cancelled') AND greatest(finished_ms, created_ms) < $1
  AND sent + failed + skipped + unknown + cancelled <> recipients;

-- name: drop_jobs
-- A retry may have been made of one since they were looked for; who makes one holds its root.
DELETE FROM bulk_jobs j WHERE j.number = ANY ($1::bigint[]) AND NOT EXISTS (
  SELECT FROM bulk_jobs c WHERE c.parent = j.id AND c.number <> ALL ($1::bigint[]));

-- name: lost_logs
-- Numbers of jobs that are gone and have left rows behind; one look-up a job, not one a row.
WITH RECURSIVE seen AS (
  (SELECT job_number FROM campaign_logs ORDER BY job_number LIMIT 1)
  UNION ALL
  SELECT (SELECT l.job_number FROM campaign_logs l WHERE l.job_number > s.job_number
    ORDER BY l.job_number LIMIT 1)
  FROM seen s WHERE s.job_number IS NOT NULL
)
SELECT s.job_number FROM seen s WHERE s.job_number IS NOT NULL
  AND NOT EXISTS (SELECT FROM bulk_jobs j WHERE j.number = s.job_number);

-- name: drop_logs
-- Some rows of one job that is gone.
DELETE FROM campaign_logs WHERE job_number = $1 AND position IN (
  SELECT position FROM campaign_logs WHERE job_number = $1 ORDER BY position LIMIT $2);

-- name: old_audit
-- How many there are to go.
SELECT count(*)::bigint FROM audit_log WHERE at < to_timestamp($1 / 1000.0);

-- name: drop_audit
-- The oldest first.
DELETE FROM audit_log WHERE number IN (
  SELECT number FROM audit_log WHERE at < to_timestamp($1 / 1000.0) ORDER BY number LIMIT $2);

-- name: unfinished_blobs
-- Jobs whose recipients Redis may still hold, a few at a time: each may be megabytes.
SELECT number, id, blob FROM bulk_jobs
WHERE number > $1 AND NOT (state IN ('completed', 'cancelled')
  AND sent + failed + skipped + unknown + cancelled = recipients)
ORDER BY number LIMIT $2;

-- name: places_of_phone
-- Where somebody was written to, by the index of numbers.
SELECT job_number, array_agg(position ORDER BY position) AS positions FROM campaign_logs
WHERE phone = $1 GROUP BY job_number ORDER BY job_number;

-- name: job_for_erasure
-- Locked as the writers of outcomes and receipts lock it.
SELECT id, chunk_size, blob FROM bulk_jobs WHERE number = $1 FOR UPDATE;

-- name: set_blob
-- Without somebody who was in it.
UPDATE bulk_jobs SET blob = $2 WHERE number = $1;

-- name: blank_logs
-- A message's id at Meta holds the number; Graph's words may.
UPDATE campaign_logs SET phone = 0, wamid = NULL, wamid2 = NULL, error = NULL, trace = NULL,
  receipt_error = NULL
WHERE job_number = $1 AND position = ANY ($2::integer[]);

-- name: drop_early_of
-- Of the same recipients; they name the message.
DELETE FROM early_receipts WHERE job_id = $1 AND position = ANY ($2::integer[]);

-- name: upload_ids
-- Those whose time is over too: they lie there until somebody uploads.
SELECT id FROM uploads ORDER BY id;

-- name: upload_for_erasure
-- What is in one file.
SELECT content, default_region FROM uploads WHERE id = $1 FOR UPDATE;

-- name: set_content
-- Without somebody who was in it.
UPDATE uploads SET content = $2 WHERE id = $1;

-- name: blank_lifted
-- Lifted so long ago that every copy has heard of it and Meta repeats no wish that is older.
UPDATE suppressions SET phone = 0, reason = ''
WHERE phone = $1 AND lifted_at < now() - make_interval(days => $2);

-- name: entries_of_phone
-- What is left of somebody in the suppression list: that he is not to be written to.
SELECT count(*)::integer FROM suppressions WHERE phone = $1;
